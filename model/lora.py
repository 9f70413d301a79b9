"""LoRA：冻结原来的权重，只学一个低秩的修正 (Hu et al. 2021)。"""

import hashlib
import math
from collections.abc import Container, Iterator
from dataclasses import asdict, dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

PREFIX = "lora_"  # 适配器的参数都以它开头
FINGERPRINT_NUMBERS = 256  # 每个冻结的权重取这么多个数作指纹，换一次训练就全都不同

PROJECTIONS = {"all": ("attn", "ff"), "attention": ("attn",), "feed_forward": ("ff",)}  # 块里的哪些部件加适配器


@dataclass(frozen=True)
class LoRAConfig:
    """秩、缩放，和给哪些投影加适配器（PROJECTIONS 里的名字）。"""

    rank: int = 8
    alpha: float = 16.0
    projections: str = "all"


class LoRALinear(nn.Linear):
    """(…, in_features) -> (…, out_features)，y = xWᵀ + b + (alpha/rank)·xAᵀBᵀ

    W、b 冻结；A (rank, in)、B (out, rank) 可训练。B 从 0 开始，所以刚加上时输出不变。
    """

    def __init__(self, linear: nn.Linear, config: LoRAConfig):
        super().__init__(linear.in_features, linear.out_features, bias=linear.bias is not None, device="meta")
        self.weight, self.bias = linear.weight, linear.bias
        self.config, self.scale = config, config.alpha / config.rank
        self.lora_A = nn.Parameter(torch.empty(config.rank, linear.in_features, device=linear.weight.device))
        self.lora_B = nn.Parameter(torch.zeros(linear.out_features, config.rank, device=linear.weight.device))
        nn.init.kaiming_uniform_(self.lora_A, a=math.sqrt(5))  # 与 nn.Linear 的权重同样的初始化

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight, self.bias) + self.scale * F.linear(F.linear(x, self.lora_A), self.lora_B)

    def merged(self) -> nn.Linear:
        """把修正加进权重，变回普通的线性层：W + (alpha/rank)·BA。"""
        linear = nn.Linear(self.in_features, self.out_features, bias=self.bias is not None, device="meta")
        linear.weight = nn.Parameter(self.weight.detach() + self.scale * (self.lora_B @ self.lora_A).detach())
        linear.bias = self.bias
        return linear


def add_lora(model: nn.Module, config: LoRAConfig) -> None:
    """冻结 model 的全部参数，给每个块里选定的投影加上适配器。"""
    model.requires_grad_(False)
    for parent, name, linear in list(_projections(model, nn.Linear, PROJECTIONS[config.projections])):
        setattr(parent, name, LoRALinear(linear, config))


def merge_lora(model: nn.Module) -> None:
    """把全部适配器合并进权重，结构变回原来的样子。"""
    for parent, name, linear in list(_projections(model, LoRALinear)):
        setattr(parent, name, linear.merged())


def merged_state_dict(model: nn.Module) -> dict:
    """合并之后的 state_dict；model 本身不变。"""
    state = {name: value for name, value in model.state_dict().items() if PREFIX not in name}
    for path, module in model.named_modules():
        if isinstance(module, LoRALinear):
            state[f"{path}.weight"] = module.merged().weight.detach()
    return state


def adapter_state_dict(model: nn.Module) -> dict:
    """学到的东西，几百 KB：各个 A、B，分类模型还有新的头。没有加过 LoRA 就是空的。

    "_extra_state" 说明怎样用：LoRAConfig 的各项，和它修正的是哪个模型。
    """
    layers = [layer for _, _, layer in _projections(model, LoRALinear)]
    if not layers:
        return {}
    learned = {name: value.detach() for name, value in model.named_parameters() if value.requires_grad}
    return {**learned, "_extra_state": {**asdict(layers[0].config), "base": _fingerprint(model, learned)}}


def merge_adapter(model: nn.Module, adapter: dict) -> None:
    """把 adapter_state_dict 的结果加到原来的模型上，合并进权重；不是给这个模型的就抛出 ValueError。"""
    description = adapter["_extra_state"]
    config = LoRAConfig(*(description[field] for field in ("rank", "alpha", "projections")))
    learned = {name: value for name, value in adapter.items() if name != "_extra_state"}
    add_lora(model, config)
    try:
        missing, unexpected = model.load_state_dict(learned, strict=False)
    except RuntimeError:
        raise ValueError("形状与模型不符") from None
    if unexpected or any(PREFIX in name for name in missing) or _fingerprint(model, learned) != description["base"]:
        raise ValueError("是从另一个模型微调来的")
    merge_lora(model)


def backbone_fingerprint(model: nn.Module) -> str:
    """主干的指纹，头和适配器不算；训练之前取，就是起点的指纹。"""
    return _fingerprint(model, {name for name, _ in model.named_parameters() if PREFIX in name or "out_head" in name})


def _fingerprint(model: nn.Module, learned: Container[str]) -> str:
    """权重的指纹，名字在 learned 里的不算。"""
    digest = hashlib.sha256()
    for name, value in model.named_parameters():
        if name not in learned:
            digest.update(value.detach().flatten()[:FINGERPRINT_NUMBERS].float().cpu().numpy().tobytes())
    return digest.hexdigest()


def _projections(
    model: nn.Module, kind: type, parts: tuple[str, ...] = PROJECTIONS["all"]
) -> Iterator[tuple[nn.Module, str, nn.Linear]]:
    """各块的 parts 里的线性层：(所在的模块, 名字, 线性层)"""
    for layer, block in enumerate(model.trf_blocks):
        for path, module in block.named_modules():
            if isinstance(module, kind) and path.split(".")[0] in parts:
                parent, _, name = f"trf_blocks.{layer}.{path}".rpartition(".")
                yield model.get_submodule(parent), name, module
