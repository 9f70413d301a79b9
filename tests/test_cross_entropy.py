"""utils/cross_entropy.py：损失和梯度与 F.cross_entropy 逐数比较。"""

import pytest
import torch
from torch.nn import functional as F

from utils.cross_entropy import IGNORE_INDEX, cross_entropy


def loss_and_gradient(function, logits: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    logits = logits.clone().requires_grad_()
    loss = function(logits, targets)
    (3 * loss).backward()  # 累积梯度时损失还要乘一个系数
    return loss.detach(), logits.grad


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("ignored", [[], [0], [1, 2, 5]])
def test_equals_the_reference_in_loss_and_gradient(dtype, ignored):
    logits, targets = (4 * torch.randn(6, 300)).to(dtype), torch.randint(300, (6,))
    targets[ignored] = IGNORE_INDEX
    loss, gradient = loss_and_gradient(cross_entropy, logits, targets)

    def reference(logits, targets):
        return F.cross_entropy(logits.float(), targets, ignore_index=IGNORE_INDEX)

    expected_loss, expected_gradient = loss_and_gradient(reference, logits, targets)
    assert loss.dtype == torch.float32 and gradient.dtype == dtype
    torch.testing.assert_close(loss, expected_loss, atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(gradient, expected_gradient)


def test_gradient_survives_a_nearly_certain_answer_in_bfloat16():
    """p = 0.9997 舍入成 bfloat16 就是 1，先舍入再减 1 梯度便没有了。"""
    logits = torch.tensor([[8.0, 0.0]], dtype=torch.bfloat16)
    _, gradient = loss_and_gradient(cross_entropy, logits, torch.tensor([0]))
    assert gradient[0, 0].item() == pytest.approx(-3 * 3.354e-4, rel=0.01)


def test_ignored_rows_do_not_matter_whatever_they_hold():
    logits, targets = torch.randn(3, 5), torch.tensor([2, IGNORE_INDEX, IGNORE_INDEX])
    expected_loss, expected_gradient = loss_and_gradient(cross_entropy, logits[:1], targets[:1])
    logits[1], logits[2, 0] = torch.nan, -torch.inf
    loss, gradient = loss_and_gradient(cross_entropy, logits, targets)
    assert loss == expected_loss and torch.equal(gradient[:1], expected_gradient) and not gradient[1:].any()


def test_nothing_to_learn_is_zero_loss_and_zero_gradient():
    """累积梯度时，一个小批可能恰好一个目标也没有。"""
    loss, gradient = loss_and_gradient(cross_entropy, torch.randn(2, 5), torch.full((2,), IGNORE_INDEX))
    assert loss == 0 and not gradient.any()


def test_extreme_logits_stay_finite():
    logits = torch.tensor([[1e4, -1e4, 0.0]])
    loss, gradient = loss_and_gradient(cross_entropy, logits, torch.tensor([1]))
    assert loss.item() == 2e4 and torch.isfinite(gradient).all()


def test_target_outside_the_vocabulary_is_an_error():
    for target in (-1, 3):
        with pytest.raises((RuntimeError, IndexError)):
            cross_entropy(torch.zeros(1, 3), torch.tensor([target]))


def test_evaluation_builds_no_gradient():
    with torch.inference_mode():
        assert cross_entropy(torch.zeros(2, 4), torch.tensor([1, 2])).item() == pytest.approx(1.3863, abs=1e-4)
