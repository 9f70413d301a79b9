"""前馈网络：每个 token 各自加工刚从注意力取来的信息。先升维，过激活函数，再降回来。道理见 docs/前馈与激活.md。"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from model.config import ModelConfig


def gelu_by_definition(x: Tensor) -> Tensor:
    """GELU 的 tanh 近似，0.5x(1 + tanh(√(2/π)(x + 0.044715x³))) (Hendrycks & Gimpel 2016)。形状不变。"""
    return 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


class GELU(nn.Module):
    """GPT-2 的激活函数；数值等于 gelu_by_definition，用融合内核计算。形状不变。"""

    def forward(self, x: Tensor) -> Tensor:
        return F.gelu(x, approximate="tanh")


class SquaredReLU(nn.Module):
    """ReLU²：max(0, x)² (So et al. 2021)。小模型上常比 GELU 学得快，算得也省。形状不变。"""

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x).square()


class FeedForward(nn.Module):
    """(batch, seq, emb_dim) -> (batch, seq, emb_dim)，act(x W₁ + b₁) W₂ + b₂ (Vaswani et al. 2017, 式 2)"""

    def __init__(self, cfg: ModelConfig, activation: nn.Module):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(cfg.emb_dim, cfg.hidden_dim, bias=cfg.bias),
            activation,
            nn.Linear(cfg.hidden_dim, cfg.emb_dim, bias=cfg.bias),
        )

    @property
    def out_proj(self) -> nn.Linear:
        """写回残差的那个投影。"""
        return self.layers[2]

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


class GatedFeedForward(nn.Module):
    """(batch, seq, emb_dim) -> (batch, seq, emb_dim)，SwiGLU：(SiLU(x W_gate) ⊙ x W_up) W_down (Shazeer 2020, 式 6)"""

    def __init__(self, cfg: ModelConfig):
        super().__init__()
        self.gate = nn.Linear(cfg.emb_dim, cfg.hidden_dim, bias=cfg.bias)
        self.up = nn.Linear(cfg.emb_dim, cfg.hidden_dim, bias=cfg.bias)
        self.out_proj = nn.Linear(cfg.hidden_dim, cfg.emb_dim, bias=cfg.bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.out_proj(F.silu(self.gate(x)) * self.up(x))


FEED_FORWARDS = {
    "gelu": lambda cfg: FeedForward(cfg, GELU()),
    "gelu_exact": lambda cfg: FeedForward(cfg, nn.GELU()),  # 准确的 x·Φ(x)，不用近似
    "relu2": lambda cfg: FeedForward(cfg, SquaredReLU()),
    "swiglu": GatedFeedForward,
}


def build_feed_forward(cfg: ModelConfig) -> nn.Module:
    """按 cfg.activation 建立前馈网络。"""
    return FEED_FORWARDS[cfg.activation](cfg)
