"""utils/optimizers.py：参数分组、学习率、Muon 的用法。"""

import pytest
import torch

from conftest import tiny_config
from model.language_model import LanguageModel
from utils.optimizers import build_optimizers, learning_rate_factor, set_learning_rate
from utils.settings import TrainingSettings


def names_by_group(model, optimizers):
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return [
        (type(optimizer).__name__, group["weight_decay"], {names[id(p)] for p in group["params"]})
        for optimizer in optimizers
        for group in optimizer.param_groups
    ]


@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_every_parameter_is_in_exactly_one_group(kind):
    model = LanguageModel(tiny_config(tie_weights=False))
    groups = names_by_group(model, build_optimizers(model, TrainingSettings(optimizer=kind)))
    seen = [name for _, _, names in groups for name in names]
    assert sorted(seen) == sorted(name for name, _ in model.named_parameters())


def test_decay_touches_matrices_only():
    model = LanguageModel(tiny_config())
    for _, decay, names in names_by_group(model, build_optimizers(model, TrainingSettings(weight_decay=0.3))):
        assert decay == (0.3 if "tok_emb.weight" in names else 0.0)
        assert all((dict(model.named_parameters())[name].dim() >= 2) == (decay > 0) for name in names)


def test_muon_gets_hidden_matrices_and_nothing_else():
    model = LanguageModel(tiny_config(tie_weights=False))
    groups = names_by_group(model, build_optimizers(model, TrainingSettings(optimizer="muon")))
    muon = set().union(*(names for kind, _, names in groups if kind == "Muon"))
    assert all(name.startswith("trf_blocks.") and name.endswith("weight") and "norm" not in name for name in muon)
    assert len(muon) == 6 * model.cfg.num_layers


def test_frozen_parameters_are_left_out():
    model = LanguageModel(tiny_config())
    model.tok_emb.weight.requires_grad = False
    groups = names_by_group(model, build_optimizers(model, TrainingSettings()))
    assert all("tok_emb.weight" not in names for _, _, names in groups)


def test_learning_rate_warms_up_then_decays_to_zero():
    factors = [learning_rate_factor(step, 4, step / 100) for step in range(101)]
    assert factors[0] == pytest.approx(0.2)
    assert max(factors) == factors[4] and factors[4] == pytest.approx(0.96)
    assert all(later < earlier for earlier, later in zip(factors[4:], factors[5:], strict=False))
    assert factors[100] == 0


def test_each_group_keeps_its_own_peak():
    model = LanguageModel(tiny_config())
    settings = TrainingSettings(optimizer="muon", learning_rate=0.001, muon_learning_rate=0.05)
    optimizers = build_optimizers(model, settings)
    set_learning_rate(optimizers, 0.5)
    rates = {type(o).__name__: {group["lr"] for group in o.param_groups} for o in optimizers}
    assert rates == {"AdamW": {0.0005}, "Muon": {0.025}}


def test_adamw_step_equals_the_equations():
    """Loshchilov & Hutter 2019，算法 2，两步。"""
    parameter = torch.nn.Parameter(torch.tensor([[1.0, -2.0]]))
    model = torch.nn.Module()
    model.register_parameter("weight", parameter)
    optimizer = build_optimizers(model, TrainingSettings(learning_rate=0.1, weight_decay=0.5))[0]
    x, m, v = parameter.detach().clone(), torch.zeros(1, 2), torch.zeros(1, 2)
    for t, gradient in enumerate((torch.tensor([[0.3, 1.0]]), torch.tensor([[-0.2, 0.5]])), start=1):
        parameter.grad = gradient.clone()
        optimizer.step()
        m, v = 0.9 * m + 0.1 * gradient, 0.95 * v + 0.05 * gradient**2
        update = (m / (1 - 0.9**t)) / ((v / (1 - 0.95**t)).sqrt() + 1e-8)
        x = x - 0.1 * (update + 0.5 * x)
        torch.testing.assert_close(parameter.detach(), x, atol=1e-6, rtol=1e-5)
