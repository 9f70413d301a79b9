"""model/position.py：可学习的位置和 RoPE。"""

import math

import torch

from conftest import tiny_config
from model.position import LearnedPosition, RotaryPosition


def test_learned_position_adds_the_row_of_each_place():
    position, x = LearnedPosition(tiny_config()), torch.zeros(2, 3, 32)
    torch.testing.assert_close(position.embed(x, start=5), position.pos_emb.weight[5:8].expand(2, 3, 32))
    assert torch.equal(position.rotate(x, start=5), x)


def test_rope_rotates_each_plane_by_its_own_angle():
    cfg = tiny_config()  # head_dim = 8，四个平面
    x = torch.randn(1, 1, 1, 8)
    rotated = RotaryPosition(cfg).rotate(x, start=3)
    for plane in range(4):
        angle = 3 * 10000 ** (-2 * plane / 8)
        a, b = x[0, 0, 0, plane].item(), x[0, 0, 0, plane + 4].item()
        expected = complex(a, b) * complex(math.cos(angle), math.sin(angle))
        torch.testing.assert_close(rotated[0, 0, 0, plane].item(), expected.real, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(rotated[0, 0, 0, plane + 4].item(), expected.imag, atol=1e-5, rtol=1e-5)


def test_rope_dot_product_depends_only_on_distance():
    position = RotaryPosition(tiny_config())
    query, key = torch.randn(2, 1, 1, 1, 8)
    scores = [(position.rotate(query, m + 4) * position.rotate(key, m)).sum().item() for m in range(10)]
    torch.testing.assert_close(torch.tensor(scores), torch.full((10,), scores[0]), atol=1e-5, rtol=1e-5)
    assert abs((position.rotate(query, 5) * position.rotate(key, 0)).sum().item() - scores[0]) > 1e-4


def test_rope_keeps_lengths_and_has_no_parameters():
    position, x = RotaryPosition(tiny_config()), torch.randn(2, 4, 6, 8)
    torch.testing.assert_close(position.rotate(x, start=2).norm(dim=-1), x.norm(dim=-1))
    assert not list(position.parameters()) and not position.state_dict()
