"""utils/muon.py：与 torch.optim.Muon 逐步比较。"""

import copy

import pytest
import torch
from torch import nn

from utils import muon
from utils.muon import Muon, orthogonalize

SHAPES = [(24, 24), (24, 24), (48, 24), (24, 48), (24, 48), (7, 3)]
OPTIONS = {"lr": 0.02, "weight_decay": 0.1, "momentum": 0.95}


def parameters() -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(1)
    return [nn.Parameter(torch.randn(shape, generator=generator)) for shape in SHAPES]


def test_equals_torch_muon_step_by_step():
    ours, theirs = parameters(), parameters()
    our_optimizer, their_optimizer = Muon(ours, **OPTIONS), torch.optim.Muon(theirs, **OPTIONS)
    for _ in range(5):
        before = [one.detach().clone() for one in ours]
        for one, other in zip(ours, theirs, strict=True):
            one.grad = torch.randn_like(one)
            other.grad = one.grad.clone()
        our_optimizer.step()
        their_optimizer.step()
        for one, other, old in zip(ours, theirs, before, strict=True):
            assert (one - other).norm() < 0.02 * (one - old).norm()  # bfloat16 迭代五次，误差约百分之一
            other.data.copy_(one)  # 误差不积累


@pytest.mark.parametrize("shape", [(16, 16), (64, 16), (16, 64)])
def test_singular_values_become_about_one(shape):
    values = torch.linalg.svdvals(orthogonalize(torch.randn(3, *shape)).float())
    assert values.min() > 0.3 and values.max() < 1.4


def test_matrices_of_one_batch_do_not_mix():
    matrices = torch.randn(3, 8, 16)
    together = orthogonalize(matrices)
    for index in range(3):
        torch.testing.assert_close(together[index], orthogonalize(matrices[[index]])[0], atol=1e-2, rtol=0)


def test_many_matrices_are_split_into_batches_with_the_same_result(monkeypatch):
    results = []
    for elements in (1 << 24, 1):  # 一批装下全部；一批只装一个
        monkeypatch.setattr(muon, "BATCH_ELEMENTS", elements)
        matrices = parameters()
        for index, matrix in enumerate(matrices):
            matrix.grad = torch.randn(matrix.shape, generator=torch.Generator().manual_seed(index))
        Muon(matrices, **OPTIONS).step()
        results.append(matrices)
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, atol=1e-3, rtol=0)


def test_zero_matrix_stays_finite():
    assert torch.equal(orthogonalize(torch.zeros(1, 4, 4)), torch.zeros(1, 4, 4, dtype=torch.bfloat16))


def test_parameters_without_gradient_are_left_alone():
    with_gradient, without = parameters()[:2]
    before = without.detach().clone()
    with_gradient.grad = torch.randn_like(with_gradient)
    Muon([with_gradient, without], **OPTIONS).step()
    assert torch.equal(without, before)


def test_state_travels_through_a_state_dict():
    ours, resumed = parameters(), parameters()
    first, second = Muon(ours, **OPTIONS), Muon(resumed, **OPTIONS)
    for step in range(4):
        if step == 2:
            for one, other in zip(ours, resumed, strict=True):
                other.data.copy_(one)
            second.load_state_dict(copy.deepcopy(first.state_dict()))
        for one, other in zip(ours, resumed, strict=True):
            one.grad = other.grad = torch.randn(one.shape, generator=torch.Generator().manual_seed(step))
        first.step()
        if step >= 2:
            second.step()
    assert all(torch.equal(one, other) for one, other in zip(ours, resumed, strict=True))
