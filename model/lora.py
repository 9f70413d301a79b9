"""LoRA：冻结原来的权重，只学一个低秩的修正 (Hu et al. 2021)。"""

import math
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional as F

PREFIX = "lora_"  # 适配器的参数都以它开头


class LoRALinear(nn.Linear):
    """(…, in_features) -> (…, out_features)，y = xWᵀ + b + (alpha/rank)·xAᵀBᵀ

    W、b 冻结；A (rank, in)、B (out, rank) 可训练。B 从 0 开始，所以刚加上时输出不变。
    """

    def __init__(self, linear: nn.Linear, rank: int, alpha: float):
        super().__init__(linear.in_features, linear.out_features, bias=linear.bias is not None, device="meta")
        self.weight, self.bias, self.scale = linear.weight, linear.bias, alpha / rank
        self.lora_A = nn.Parameter(torch.empty(rank, linear.in_features, device=linear.weight.device))
        self.lora_B = nn.Parameter(torch.zeros(linear.out_features, rank, device=linear.weight.device))
        nn.init.kaiming_uniform_(self.lora_A, a=math.sqrt(5))  # 与 nn.Linear 的权重同样的初始化

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight, self.bias) + self.scale * F.linear(F.linear(x, self.lora_A), self.lora_B)

    def merged(self) -> nn.Linear:
        """把修正加进权重，变回普通的线性层：W + (alpha/rank)·BA。"""
        linear = nn.Linear(self.in_features, self.out_features, bias=self.bias is not None, device="meta")
        linear.weight = nn.Parameter(self.weight.detach() + self.scale * (self.lora_B @ self.lora_A).detach())
        linear.bias = self.bias
        return linear


def add_lora(model: nn.Module, rank: int, alpha: float) -> None:
    """冻结 model 的全部参数，给每个块的投影加上适配器。"""
    model.requires_grad_(False)
    for parent, name, linear in list(_projections(model, nn.Linear)):
        setattr(parent, name, LoRALinear(linear, rank, alpha))


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


def lora_state_dict(model: nn.Module) -> dict[str, Tensor]:
    """只有适配器的参数；大小是全部权重的百分之几。"""
    return {name: value for name, value in model.state_dict().items() if PREFIX in name}


def _projections(model: nn.Module, kind: type) -> Iterator[tuple[nn.Module, str, nn.Linear]]:
    """(所在的模块, 名字, 线性层)"""
    for path, module in model.named_modules():
        if isinstance(module, kind) and path.startswith("trf_blocks."):
            parent, _, name = path.rpartition(".")
            yield model.get_submodule(parent), name, module
