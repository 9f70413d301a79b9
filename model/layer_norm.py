"""归一化：让每个 token 的向量保持合适的大小，深层网络才训练得动。道理见 docs/归一化与残差.md。"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from model.config import ModelConfig

EPS = 1e-5  # 防止除以 0；与 GPT-2 相同


def layer_norm_by_definition(x: Tensor, weight: Tensor, bias: Tensor | None, eps: float = EPS) -> Tensor:
    """LayerNorm 的定义，y = (x - E[x]) / √(Var[x] + ε) · γ + β (Ba et al. 2016, 式 4)。形状不变。"""
    mean = x.mean(dim=-1, keepdim=True)
    variance = x.var(dim=-1, keepdim=True, unbiased=False)
    normalized = (x - mean) / torch.sqrt(variance + eps) * weight
    return normalized if bias is None else normalized + bias


def rms_norm_by_definition(x: Tensor, weight: Tensor, eps: float = EPS) -> Tensor:
    """RMSNorm 的定义，y = x / √(E[x²] + ε) · γ (Zhang & Sennrich 2019, 式 4)。形状不变。"""
    return x / torch.sqrt(x.square().mean(dim=-1, keepdim=True) + eps) * weight


class LayerNorm(nn.Module):
    """(..., emb_dim) -> (..., emb_dim)；数值等于 layer_norm_by_definition，用融合内核计算。"""

    def __init__(self, dim: int, bias: bool = True, eps: float = EPS):
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(dim))
        self.bias = nn.Parameter(torch.zeros(dim)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, self.weight.shape, self.weight, self.bias, self.eps)


class RMSNorm(nn.Module):
    """(..., emb_dim) -> (..., emb_dim)；不减均值，比 LayerNorm 省一半统计量。按定义没有偏置，bias 参数不起作用。"""

    def __init__(self, dim: int, bias: bool = False, eps: float = EPS):
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, self.weight.shape, self.weight, self.eps)


NORM_CLASSES = {"layer_norm": LayerNorm, "rms_norm": RMSNorm}


def build_norm(cfg: ModelConfig) -> nn.Module:
    """按 cfg.norm 建立作用在 emb_dim 上的归一化层。"""
    return NORM_CLASSES[cfg.norm](cfg.emb_dim, bias=cfg.bias, eps=cfg.norm_eps)
