"""model/lora.py：刚加上时什么也不变；只动适配器；合并前后相同；秩够大时与全量微调一样能拟合。"""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from conftest import tiny_config
from model.language_model import LanguageModel
from model.lora import PROJECTIONS, LoRAConfig, LoRALinear, adapter_state_dict, add_lora, merge_adapter, merge_lora


@pytest.fixture
def model():
    return LanguageModel(tiny_config()).eval()


TOKEN_IDS = torch.arange(16).reshape(2, 8)


def disturb(model: nn.Module) -> None:
    """让适配器不再是 0。"""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                nn.init.normal_(parameter, std=0.1)


def test_layer_equals_the_equation():
    linear, x = nn.Linear(5, 7), torch.randn(3, 5)
    layer = LoRALinear(linear, LoRAConfig(2, 6.0))
    nn.init.normal_(layer.lora_B)
    expected = x @ (linear.weight + 6.0 / 2 * layer.lora_B @ layer.lora_A).T + linear.bias
    torch.testing.assert_close(layer(x), expected)


def test_new_adapters_change_nothing(model):
    before = model(TOKEN_IDS)
    add_lora(model, LoRAConfig(4, 8.0))
    assert torch.equal(model(TOKEN_IDS), before)


def test_every_projection_of_every_block_gets_an_adapter_and_nothing_else(model):
    add_lora(model, LoRAConfig(4, 8.0))
    adapted = [name for name, module in model.named_modules() if isinstance(module, LoRALinear)]
    assert len(adapted) == 2 * 6 and all(name.startswith("trf_blocks.") for name in adapted)
    trainable = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trainable == adapter_state_dict(model).keys() - {"_extra_state"}


@pytest.mark.parametrize(("projections", "count"), [("attention", 4), ("feed_forward", 2)])
def test_only_the_chosen_projections_get_adapters(model, projections, count):
    add_lora(model, LoRAConfig(4, 8.0, projections))
    adapted = [name for name, module in model.named_modules() if isinstance(module, LoRALinear)]
    assert len(adapted) == 2 * count
    assert all(name.split(".")[2] in PROJECTIONS[projections] for name in adapted)


def test_base_weights_keep_their_names_and_values_while_training(model):
    before = {name: value.clone() for name, value in model.state_dict().items() if name != "_extra_state"}
    add_lora(model, LoRAConfig(4, 8.0))
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.1)
    for _ in range(3):
        model(TOKEN_IDS).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    after = model.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())


def test_merged_model_has_the_old_structure_and_the_same_output(model):
    names = list(model.state_dict())
    add_lora(model, LoRAConfig(4, 8.0))
    disturb(model)
    before = model(TOKEN_IDS)
    merge_lora(model)
    assert list(model.state_dict()) == names and not adapter_state_dict(model)
    torch.testing.assert_close(model(TOKEN_IDS), before, atol=1e-5, rtol=0)


def test_adapter_is_a_small_part_of_the_weights(model):
    add_lora(model, LoRAConfig(1, 8.0))
    adapter = sum(value.numel() for name, value in adapter_state_dict(model).items() if name != "_extra_state")
    assert adapter < 0.06 * sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize("projections", PROJECTIONS)
def test_adapter_alone_turns_the_base_into_the_merged_model(model, projections):
    assert adapter_state_dict(model) == {}
    base = copy.deepcopy(model)
    add_lora(model, LoRAConfig(2, 8.0, projections))
    disturb(model)
    adapter = adapter_state_dict(model)
    merge_lora(model)
    merge_adapter(base, adapter)
    assert all(torch.equal(base.state_dict()[name], value) for name, value in model.named_parameters())


@pytest.mark.parametrize("changes", [{}, {"emb_dim": 64}, {"num_layers": 3}, {"num_layers": 1}])
def test_adapter_of_another_model_is_refused(model, changes):
    add_lora(model, LoRAConfig(2, 8.0))
    with pytest.raises(ValueError, match="形状与模型不符|从另一个模型微调来"):
        merge_adapter(LanguageModel(tiny_config(**changes)), adapter_state_dict(model))


def fit(layer: nn.Module, x: torch.Tensor, y: torch.Tensor) -> float:
    """拟合之后的误差。"""
    optimizer = torch.optim.Adam([p for p in layer.parameters() if p.requires_grad], lr=0.02)
    for _ in range(1500):
        loss = F.mse_loss(layer(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return loss.item()


def test_rank_as_large_as_the_matrix_fits_as_well_as_full_fine_tuning():
    x, y = torch.randn(64, 6), torch.randn(64, 6) @ torch.randn(6, 6)
    base = nn.Linear(6, 6, bias=False).requires_grad_(False)
    full = nn.Linear(6, 6, bias=False)
    best = fit(full, x, y)
    assert fit(LoRALinear(base, LoRAConfig(6, 6.0)), x, y) < best + 1e-3
    assert fit(LoRALinear(base, LoRAConfig(1, 1.0)), x, y) > best + 0.1  # 秩 1 办不到
