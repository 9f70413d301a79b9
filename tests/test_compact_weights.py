"""utils/compact_weights.py：权重压缩了，分数和损失仍与 float32 的模型相符。"""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from conftest import tiny_config
from model.language_model import LanguageModel
from utils.compact_weights import FORMATS, Float16Linear, Int8Linear, compact_weights

TOLERANCES = {"float16": 2e-3, "bfloat16": 2e-2, "int8": 5e-2}  # 分数的最大误差 / 最大的分数


def relative_error(result: torch.Tensor, expected: torch.Tensor) -> float:
    return ((result - expected).abs().max() / expected.abs().max()).item()


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("rows", [1, 7])
@pytest.mark.parametrize("bias", [True, False])
def test_one_layer_equals_the_float32_one(name, rows, bias):
    linear, x = nn.Linear(256, 96, bias=bias), torch.randn(1, rows, 256)
    result = FORMATS[name](linear)(x)
    assert result.dtype == torch.float32 and result.shape == (1, rows, 96)
    assert relative_error(result, linear(x)) < TOLERANCES[name]


def test_int8_has_one_scale_per_output_channel():
    linear, x = nn.Linear(64, 2, bias=False), torch.randn(1, 1, 64)
    with torch.no_grad():
        linear.weight[1] *= 1e-4  # 只有一个尺度的话，这一行会全部变成 0
        assert relative_error(Int8Linear(linear)(x)[..., 1], linear(x)[..., 1]) < 0.05


def test_int8_keeps_a_channel_of_zeros():
    linear = nn.Linear(32, 2, bias=False)
    with torch.no_grad():
        linear.weight[0] = 0
        result = Int8Linear(linear)(torch.ones(1, 1, 32))
    assert result[0, 0, 0] == 0 and torch.isfinite(result).all()


def test_long_sums_are_kept_in_float32():
    linear = nn.Linear(8192, 1, bias=False)
    nn.init.constant_(linear.weight, 1.0)
    x = torch.full((1, 8192), 0.25)  # 逐个累加到 2048 以后，float16 就加不动 0.25 了
    for layer_class in FORMATS.values():
        assert layer_class(linear)(x).item() == 2048.0


def test_a_row_beyond_the_range_of_float16_is_computed_in_float32():
    linear = nn.Linear(8, 4)
    x = torch.full((1, 8), 1e6)
    torch.testing.assert_close(Float16Linear(linear)(x), linear(x), rtol=2e-3, atol=1.0)


def build(**changes) -> LanguageModel:
    """权重放大十倍：分数拉得开，误差才会影响损失。"""
    model = LanguageModel(tiny_config(**changes)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 2:
                parameter *= 10
    return model


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("changes", [{}, {"position": "rope", "activation": "swiglu", "num_kv_heads": 1}])
def test_logits_and_loss_stay_within_tolerance(name, changes):
    model, token_ids = build(**changes), torch.randint(0, 300, (1, 12))
    with torch.inference_mode():
        expected = model(token_ids)
        compact_weights(model, name)
        whole = model(token_ids)
        cache = model.new_cache()
        steps = torch.cat([model.next_logits(token_ids[:, [i]], cache) for i in range(12)])
    assert relative_error(whole, expected) < TOLERANCES[name]
    assert relative_error(steps, expected[0]) < TOLERANCES[name]
    targets = expected[0].argmax(dim=-1)  # 像训练过的模型那样，多半猜得对
    losses = [F.cross_entropy(logits, targets).item() for logits in (expected[0], steps)]
    assert losses[0] < 4  # 没学过的模型约 5.7
    assert losses[1] == pytest.approx(losses[0], rel=0.005, abs=0.005)


def test_every_linear_is_replaced_and_the_embedding_is_not():
    for name, layer_class in FORMATS.items():
        model = build()
        compact_weights(model, name)
        assert not any(isinstance(module, nn.Linear) for module in model.modules())
        assert isinstance(model.out_head, layer_class) and model.tok_emb.weight.dtype == torch.float32


def test_cache_is_bfloat16_only_where_its_contents_already_are():
    for name in FORMATS:
        model = build()
        compact_weights(model, name)
        assert model.new_cache().keys.dtype == (torch.bfloat16 if name == "bfloat16" else torch.float32)


def test_weights_beyond_the_range_of_float16_stay_float32():
    model = build()
    with torch.no_grad():
        model.trf_blocks[0].ff.layers[0].weight[0, 0] = 1e5
    compact_weights(model, "float16")
    assert isinstance(model.trf_blocks[0].ff.layers[0], nn.Linear)
    assert torch.isfinite(model.next_logits(torch.tensor([[1]]))).all()


def test_widths_that_the_int8_kernel_cannot_read_stay_float32():
    model = build(emb_dim=24, hidden_dim=32)
    compact_weights(model, "int8")
    layers = model.trf_blocks[0].ff.layers
    assert isinstance(layers[0], nn.Linear) and isinstance(layers[2], Int8Linear)
    assert torch.isfinite(model.next_logits(torch.tensor([[1]]))).all()
