"""半精度的线性层：生成时一次只算一行，时间都花在读权重上，字节少一半就快一倍。"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

MIN_PARAMETERS = 10_000_000  # 再小的模型，权重本来就放得进处理器的缓存，读它不花多少时间


class HalfLinear(nn.Module):
    """(..., in_features) -> (..., out_features)，权重存成 float16，进出都是 float32。

    一行用 float16 的内核，累加仍是 float32；多行（读提示语）时 CPU 的 float16 矩阵乘法很慢，换回 float32 再算。
    """

    def __init__(self, linear: nn.Linear):
        super().__init__()
        self.weight = nn.Parameter(linear.weight.half(), requires_grad=False)
        self.bias = None if linear.bias is None else nn.Parameter(linear.bias.half(), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        if x.numel() == x.shape[-1]:
            y = F.linear(x.half(), self.weight, self.bias).float()
            if math.isfinite(y.sum().item()):  # 超出 float16 的 65504 才会不是，这一行就用 float32 重算
                return y
        bias = None if self.bias is None else self.bias.float()
        return F.linear(x, self.weight.float(), bias)


def use_half_weights(model: nn.Module) -> None:
    """把 model 里的线性层都换成 HalfLinear；嵌入、归一化、注意力、KV 缓存仍是 float32。"""
    for module in list(model.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.Linear) and _fits_half(child.weight):
                setattr(module, name, HalfLinear(child))


def _fits_half(weight: Tensor) -> bool:
    """float16 最大只到 65504。"""
    smallest, largest = torch.aminmax(weight)
    return bool(max(-smallest, largest) <= torch.finfo(torch.float16).max)


def half_weights_pay(num_parameters: int, device: torch.device) -> bool:
    """CPU 上的大模型才划算；没有 AVX2 的处理器要逐个转换 float16，反而慢。"""
    has_fast_half = torch.backends.cpu.get_cpu_capability().startswith("AVX")
    return device.type == "cpu" and has_fast_half and num_parameters >= MIN_PARAMETERS
