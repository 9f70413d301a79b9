"""dropout：训练时随机丢弃一部分数，逼模型不依赖任何一个神经元。"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

LANES = 2**16  # 一个随机数的 16 位有这么多种取值


def dropout(x: Tensor, drop_rate: float) -> Tensor:
    """以概率 drop_rate 把每个数置 0，其余除以 1 - drop_rate，均值不变 (Srivastava et al. 2014)。形状不变。

    CPU 的随机数是逐个串行生成的：一次抽 64 位当四个用，比 F.dropout 快好几倍。
    概率取整到 1/65536，并使 1/(1 - p) 恰好是 x 的精度写得出的数（bfloat16 里 0.1 因此是 0.0986），均值才不偏。
    """
    if x.device.type != "cpu" or drop_rate == 0:
        return F.dropout(x, drop_rate)
    dropped = _count_dropped(drop_rate, x.dtype)
    bits = torch.empty((x.numel() + 3) // 4, dtype=torch.int64).random_(-(2**63), None)
    lanes = bits.view(torch.int16)[: x.numel()].view(x.shape)
    keep = lanes >= dropped - LANES // 2
    return x * (keep.to(x.dtype) * (LANES / (LANES - dropped)))


def _count_dropped(drop_rate: float, dtype: torch.dtype) -> int:
    """65536 种取值里丢掉几种，使 1/(1 - p) 是 dtype 写得出的数；bfloat16 里 p 最小是 0.0078。"""
    eps = torch.finfo(dtype).eps
    fraction, exponent = math.frexp(1 / (1 - drop_rate))  # fraction ∈ [0.5, 1)
    scale = max(math.ldexp(round(fraction * 2 / eps) * eps / 2, exponent), 1 + eps)
    return min(round(LANES * (1 - 1 / scale)), LANES - 1)


class Dropout(nn.Module):
    """训练时丢弃，评估时原样通过。"""

    def __init__(self, drop_rate: float):
        super().__init__()
        self.drop_rate = drop_rate

    def forward(self, x: Tensor) -> Tensor:
        return dropout(x, self.drop_rate) if self.training else x
