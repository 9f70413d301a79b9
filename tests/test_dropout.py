"""model/dropout.py"""

import pytest
import torch

from model.dropout import LANES, Dropout, _count_dropped, dropout


@pytest.mark.parametrize("drop_rate", [0.1, 0.25, 0.5, 0.9])
def test_fraction_and_mean_are_as_asked(drop_rate):
    x = torch.ones(1000, 1001)
    dropped = dropout(x, drop_rate)
    assert (dropped == 0).float().mean().item() == pytest.approx(drop_rate, abs=0.002)
    kept = dropped[dropped != 0]
    torch.testing.assert_close(kept, torch.full_like(kept, 1 / (1 - drop_rate)), atol=1e-3, rtol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("drop_rate", [1e-4, 0.003, 0.01, 0.05, 0.1, 0.2, 0.3, 0.5, 0.9, 0.99, 0.9999])
def test_scale_is_the_inverse_of_the_true_keep_rate(dtype, drop_rate):
    """留下的数乘的系数，是真正的保留概率的倒数，在 dtype 里也不再有舍入误差，均值就不偏。"""
    rate = _count_dropped(drop_rate, dtype) / LANES
    scale = torch.tensor(1 / (1 - rate), dtype=dtype).item()
    assert scale * (1 - rate) == pytest.approx(1.0, abs=0.51 / (LANES * (1 - rate)))  # 只剩个数取整的误差
    smallest = 0.0078 if dtype == torch.bfloat16 else 0
    assert rate == pytest.approx(max(drop_rate, smallest), rel=0.25, abs=1e-5)


@pytest.mark.parametrize("drop_rate", [0.1, 0.3])
def test_mean_is_kept_in_bfloat16_too(drop_rate):
    dropped = dropout(torch.ones(4000, 1000, dtype=torch.bfloat16), drop_rate).double()
    error = dropped.std().item() / dropped.numel() ** 0.5  # 均值的标准误
    assert dropped.mean().item() == pytest.approx(1.0, abs=5 * error)
    assert (dropped == 0).double().mean().item() == pytest.approx(drop_rate, abs=0.002)


@pytest.mark.parametrize("size", [1, 2, 3, 5, 4097])
def test_every_size_and_shape_is_kept(size):
    assert dropout(torch.ones(size), 0.5).shape == (size,)
    assert dropout(torch.ones(3, size, 2), 0.5).shape == (3, size, 2)


def test_neighbouring_lanes_are_independent():
    """四个数出自同一个 64 位随机数，也不该一起丢或一起留。"""
    kept = (dropout(torch.ones(400_000), 0.5) != 0).float().view(-1, 4)
    correlation = torch.corrcoef(kept.T) - torch.eye(4)
    assert correlation.abs().max() < 0.02


def test_gradient_is_dropped_with_the_same_mask():
    x = torch.randn(50, 50, requires_grad=True)
    y = dropout(x, 0.3)
    y.sum().backward()
    torch.testing.assert_close(x.grad * x.detach(), y.detach())


def test_seed_fixes_the_mask_and_dtype_is_kept():
    masks = []
    for _ in range(2):
        torch.manual_seed(3)
        masks.append(dropout(torch.ones(100, dtype=torch.bfloat16), 0.5))
    assert torch.equal(*masks) and masks[0].dtype == torch.bfloat16


def test_module_does_nothing_in_evaluation_and_at_rate_zero():
    x = torch.randn(10)
    assert Dropout(0.5).eval()(x) is x
    assert torch.equal(Dropout(0.0).train()(x), x)


def test_rate_just_below_one_is_finite():
    assert torch.isfinite(dropout(torch.ones(1000), 0.999999)).all()
