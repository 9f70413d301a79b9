"""model/feed_forward.py：激活函数和三种前馈网络与 torch 逐数比较。"""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from conftest import tiny_config
from model.feed_forward import GELU, SquaredReLU, build_feed_forward, gelu_by_definition


def test_gelu_equals_definition_and_torch():
    x = torch.linspace(-6, 6, 101)
    torch.testing.assert_close(GELU()(x), nn.GELU(approximate="tanh")(x))
    torch.testing.assert_close(GELU()(x), gelu_by_definition(x), atol=1e-6, rtol=1e-5)


def test_squared_relu_by_hand():
    assert SquaredReLU()(torch.tensor([-2.0, 0.0, 0.5, 3.0])).tolist() == [0.0, 0.0, 0.25, 9.0]


@pytest.mark.parametrize(
    ("activation", "function"),
    [
        ("gelu", nn.GELU(approximate="tanh")),
        ("gelu_exact", lambda x: x * (1 + torch.erf(x / 2**0.5)) / 2),
        ("relu2", SquaredReLU()),
    ],
)
def test_plain_feed_forward_equals_torch_layers(activation, function):
    cfg = tiny_config(activation=activation)
    ff, x = build_feed_forward(cfg), torch.randn(2, 3, cfg.emb_dim, requires_grad=True)
    up, _, down = ff.layers
    torch.testing.assert_close(ff(x), down(function(up(x))))


def test_swiglu_equals_its_equation():
    cfg = tiny_config(activation="swiglu", hidden_dim=48)
    ff, x = build_feed_forward(cfg), torch.randn(2, 3, cfg.emb_dim)
    gate, up = F.linear(x, ff.gate.weight, ff.gate.bias), F.linear(x, ff.up.weight, ff.up.bias)
    expected = F.linear(gate * torch.sigmoid(gate) * up, ff.out_proj.weight, ff.out_proj.bias)
    torch.testing.assert_close(ff(x), expected, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("activation", ["gelu", "gelu_exact", "relu2", "swiglu"])
def test_each_token_is_processed_alone(activation):
    ff, x = build_feed_forward(tiny_config(activation=activation)), torch.randn(1, 6, 32)
    torch.testing.assert_close(ff(x)[:, [2]], ff(x[:, [2]]), atol=1e-6, rtol=1e-5)
