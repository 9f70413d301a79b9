"""utils/half_linear.py：权重存成 float16，分数仍与 float32 的模型相符。"""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from conftest import tiny_config
from model.language_model import LanguageModel
from utils import half_linear
from utils.half_linear import HalfLinear, half_weights_pay, use_half_weights


@pytest.mark.parametrize("rows", [1, 7])
@pytest.mark.parametrize("bias", [True, False])
def test_equals_a_float32_linear_of_the_rounded_weights(rows, bias):
    linear, x = nn.Linear(64, 96, bias=bias), torch.randn(1, rows, 64).half().float()
    rounded_bias = linear.bias.half().float() if bias else None
    expected = F.linear(x, linear.weight.half().float(), rounded_bias)
    result = HalfLinear(linear)(x)
    assert result.dtype == torch.float32
    torch.testing.assert_close(result, expected, atol=2e-3, rtol=2e-3)


def test_long_sums_are_kept_in_float32():
    linear = nn.Linear(8192, 1, bias=False)
    nn.init.constant_(linear.weight, 1.0)
    x = torch.full((1, 8192), 0.25)  # 逐个累加到 2048 以后，float16 就加不动 0.25 了
    assert HalfLinear(linear)(x).item() == 2048.0


def build(**changes) -> LanguageModel:
    return LanguageModel(tiny_config(**changes)).eval()


@pytest.mark.parametrize("changes", [{}, {"position": "rope", "activation": "swiglu", "num_kv_heads": 1}])
def test_logits_and_loss_stay_within_tolerance(changes):
    model, token_ids = build(**changes), torch.randint(0, 300, (1, 12))
    with torch.inference_mode():
        expected = model(token_ids)
        use_half_weights(model)
        whole = model(token_ids)
        cache = model.new_cache()
        steps = torch.cat([model.next_logits(token_ids[:, [i]], cache) for i in range(12)])
    scale = expected.abs().max()
    assert (whole - expected).abs().max() < 5e-3 * scale
    assert (steps - expected[0]).abs().max() < 5e-3 * scale
    targets = torch.randint(0, 300, (12,))
    losses = [F.cross_entropy(logits, targets).item() for logits in (expected[0], steps)]
    assert losses[1] == pytest.approx(losses[0], rel=0.005)


def test_every_linear_is_replaced_and_the_embedding_is_not():
    model = build()
    use_half_weights(model)
    assert not any(isinstance(module, nn.Linear) for module in model.modules())
    assert isinstance(model.out_head, HalfLinear) and model.tok_emb.weight.dtype == torch.float32
    assert model.new_cache().keys.dtype == torch.float32


def test_weights_beyond_the_range_of_float16_stay_float32():
    model = build()
    with torch.no_grad():
        model.trf_blocks[0].ff.layers[0].weight[0, 0] = 1e5
    use_half_weights(model)
    assert isinstance(model.trf_blocks[0].ff.layers[0], nn.Linear)
    assert torch.isfinite(model.next_logits(torch.tensor([[1]]))).all()


def test_pays_only_for_large_models_on_a_cpu(monkeypatch):
    cpu = torch.device("cpu")
    for capability, expected in (("AVX512", True), ("AVX2", True), ("DEFAULT", False)):
        monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda name=capability: name)
        assert half_weights_pay(124_000_000, cpu) is expected
        assert not half_weights_pay(half_linear.MIN_PARAMETERS - 1, cpu)
        assert not half_weights_pay(124_000_000, torch.device("cuda"))
