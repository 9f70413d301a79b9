"""检查 model/lora.py：参照是 F.linear。"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from checks.building import Tensors, install, random_inputs, tiny_config
from checks.comparison import Check, Suspect, fact_check
from model.language_model import LanguageModel
from model.lora import LoRAConfig, LoRALinear, add_lora, merge_lora, merged_state_dict

USES = ()
RANK, ALPHA = 2, 6.0
CONFIG = LoRAConfig(RANK, ALPHA)
SHAPES = {"x": (3, 5), "weight": (7, 5), "bias": (7,), "lora_A": (RANK, 5), "lora_B": (7, RANK)}


@dataclass(frozen=True)
class Adapted:
    """y = xWᵀ + b + scale · xAᵀBᵀ；每一步都可以改错。"""

    scale: float = ALPHA / RANK
    base: float = 1.0
    biased: bool = True

    def __call__(self, inputs: Tensors) -> Tensor:
        low = F.linear(F.linear(inputs["x"], inputs["lora_A"]), inputs["lora_B"])
        base = F.linear(inputs["x"], inputs["weight"], inputs["bias"] if self.biased else None)
        return self.base * base + self.scale * low


SUSPECTS = [
    Suspect("没有乘 alpha / rank", {"scale": 1.0}),
    Suspect("乘的是 alpha，没有除以 rank", {"scale": ALPHA}),
    Suspect("乘的是 1 / rank，漏了 alpha", {"scale": 1 / RANK}),
    Suspect("alpha / rank 写倒了", {"scale": RANK / ALPHA}),
    Suspect("乘的是 alpha · rank，应为相除", {"scale": ALPHA * RANK}),
    Suspect("修正的符号反了，应为加上", {"scale": -ALPHA / RANK}),
    Suspect("漏了低秩的修正", {"scale": 0.0}),
    Suspect("漏了原来的线性层", {"base": 0.0}),
    Suspect("漏了原来的偏置", {"biased": False}),
]


def _layer(inputs: Tensors) -> LoRALinear:
    layer = LoRALinear(nn.Linear(5, 7), CONFIG)
    return install(layer, {name: tensor for name, tensor in inputs.items() if name != "x"})


def _plain_inputs() -> Tensors:
    """合并用不着梯度。"""
    return {name: tensor.detach() for name, tensor in random_inputs(**SHAPES).items()}


def _merged(inputs: Tensors) -> Tensor:
    layer = LoRALinear(nn.Linear(5, 7), CONFIG)
    with torch.no_grad():
        for name, parameter in layer.named_parameters():
            parameter.copy_(inputs[name])
        return layer.merged()(inputs["x"])


def _facts() -> dict[str, float]:
    model = LanguageModel(tiny_config()).eval()
    token_ids, names = torch.arange(8)[None], list(model.state_dict())
    with torch.no_grad():
        before = model(token_ids)
        add_lora(model, CONFIG)
        found = {"刚加上时输出不变": torch.allclose(model(token_ids), before)}
        adapters = [module for module in model.modules() if isinstance(module, LoRALinear)]
        trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
        for adapter in adapters:
            nn.init.normal_(adapter.lora_B)
        after, saved = model(token_ids), merged_state_dict(model)
        merge_lora(model)
        found["merge_lora 前后不变"] = torch.allclose(model(token_ids), after, atol=1e-5)
        model.load_state_dict(saved)
        found["merged_state_dict 前后不变"] = torch.allclose(model(token_ids), after, atol=1e-5)
    return found | {
        "适配器的个数": len(adapters),
        "A 是 0 的个数": sum(bool((adapter.lora_A == 0).all()) for adapter in adapters),
        "可训练的参数个数": sum(parameter.numel() for parameter in trainable),
        "合并之后名字不变": list(model.state_dict()) == names,
    }


NUM_ADAPTERS = 2 * 6
NUM_TRAINABLE = RANK * 2 * (4 * 64 + 2 * 160)  # 两块；四个 32 → 32，两个 32 ↔ 128
EXPECTED = {
    "刚加上时输出不变": 1,
    "merge_lora 前后不变": 1,
    "merged_state_dict 前后不变": 1,
    "适配器的个数": NUM_ADAPTERS,
    "A 是 0 的个数": 0,
    "可训练的参数个数": NUM_TRAINABLE,
    "合并之后名字不变": 1,
}
CHECKS = [
    Check(
        "LoRALinear",
        lambda: random_inputs(**SHAPES),
        lambda inputs: _layer(inputs)(inputs["x"]),
        lambda **changes: Adapted(**changes),
        SUSPECTS,
    ),
    Check("LoRALinear.merged", _plain_inputs, _merged, lambda **changes: Adapted(**changes), SUSPECTS),
    fact_check(
        "加上、冻结、合并",
        _facts,
        EXPECTED,
        [
            Suspect("原来的参数没有冻结", {"可训练的参数个数": tiny_config().num_parameters + NUM_TRAINABLE}),
            Suspect("A 也从 0 开始：梯度全是 0，学不动", {"A 是 0 的个数": NUM_ADAPTERS}),
            Suspect("B 应从 0 开始，刚加上时输出才不变", {"刚加上时输出不变": 0}),
            Suspect("merge_lora 没有把修正加进权重", {"merge_lora 前后不变": 0}),
            Suspect("merged_state_dict 没有把修正加进权重", {"merged_state_dict 前后不变": 0}),
            Suspect("merged 没有把修正加进权重", {"merge_lora 前后不变": 0, "merged_state_dict 前后不变": 0}),
            Suspect("前馈没有加适配器", {"适配器的个数": 2 * 4, "可训练的参数个数": RANK * 2 * 4 * 64}),
            Suspect("注意力没有加适配器", {"适配器的个数": 2 * 2, "可训练的参数个数": RANK * 2 * 2 * 160}),
        ],
        tolerance=0.0,
    ),
]
