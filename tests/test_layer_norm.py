"""model/layer_norm.py：定义、融合内核、torch.nn 三者相等。"""

import torch
from torch import nn

from conftest import tiny_config
from model.layer_norm import EPS, LayerNorm, RMSNorm, build_norm, layer_norm_by_definition, rms_norm_by_definition


def randomized(module: nn.Module) -> nn.Module:
    for parameter in module.parameters():
        nn.init.normal_(parameter)
    return module


def assert_same_with_gradients(first, second, x):
    """两个函数的输出和对输入的梯度都相等。"""
    a, b = x.clone().requires_grad_(), x.clone().requires_grad_()
    out, expected = first(a), second(b)
    torch.testing.assert_close(out, expected, atol=1e-5, rtol=1e-5)
    weights = torch.randn_like(out)
    (out * weights).sum().backward()
    (expected * weights).sum().backward()
    torch.testing.assert_close(a.grad, b.grad, atol=1e-5, rtol=1e-4)


def test_layer_norm_equals_definition_and_torch():
    ours, x = randomized(LayerNorm(32)), torch.randn(2, 5, 32) * 3 + 1
    theirs = nn.LayerNorm(32, eps=EPS)
    theirs.load_state_dict(ours.state_dict())
    assert_same_with_gradients(ours, theirs, x)
    assert_same_with_gradients(ours, lambda x: layer_norm_by_definition(x, ours.weight, ours.bias), x)


def test_rms_norm_equals_definition_and_torch():
    ours, x = randomized(RMSNorm(32)), torch.randn(2, 5, 32) * 3 + 1
    theirs = nn.RMSNorm(32, eps=EPS)
    theirs.load_state_dict(ours.state_dict())
    assert_same_with_gradients(ours, theirs, x)
    assert_same_with_gradients(ours, lambda x: rms_norm_by_definition(x, ours.weight), x)


def test_table_gives_the_configured_class():
    assert type(build_norm(tiny_config())) is LayerNorm
    assert type(build_norm(tiny_config(norm="rms_norm"))) is RMSNorm
    assert build_norm(tiny_config(bias=False)).bias is None


def test_epsilon_comes_from_the_configuration():
    """方差与 ε 差不多大，ε 不同结果就不同。"""
    x = torch.randn(4, 32) * 1e-3
    for norm, theirs in (("layer_norm", nn.LayerNorm(32, eps=1e-3)), ("rms_norm", nn.RMSNorm(32, eps=1e-3))):
        ours = build_norm(tiny_config(norm=norm, norm_eps=1e-3))
        torch.testing.assert_close(ours(x), theirs(x))
        assert not torch.allclose(ours(x), build_norm(tiny_config(norm=norm))(x), atol=1e-2)


def test_constant_input_gives_no_nan():
    assert torch.isfinite(LayerNorm(8)(torch.full((1, 8), 3.0))).all()
