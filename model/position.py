"""位置：注意力本身不分先后，位置信息要另外加进去。道理见 docs/嵌入与位置.md。"""

import torch
from torch import Tensor, nn

from model.config import ModelConfig


class LearnedPosition(nn.Module):
    """GPT-2 的做法：每个位置有一个可学习的向量，加在 token 嵌入上。"""

    def __init__(self, cfg: ModelConfig):
        super().__init__()
        self.pos_emb = nn.Embedding(cfg.context_length, cfg.emb_dim)

    def embed(self, x: Tensor, start: int) -> Tensor:
        """(batch, seq, emb_dim) -> 同形状；x 的第一个 token 位于 start。"""
        return x + self.pos_emb.weight[start : start + x.shape[1]]

    def rotate(self, x: Tensor, start: int) -> Tensor:
        """查询和键保持原样。"""
        return x


class RotaryPosition(nn.Module):
    """RoPE：位置 m 的查询和键按角度 m·θᵢ 旋转，点积里的位置便只剩两者的距离 (Su et al. 2021, 式 34)。"""

    def __init__(self, cfg: ModelConfig):
        super().__init__()
        frequencies = cfg.rope_base ** (-torch.arange(0, cfg.head_dim, 2) / cfg.head_dim)
        angles = torch.arange(cfg.context_length)[:, None] * frequencies
        # 由配置就能重算，不必存进权重文件
        self.register_buffer("cos", angles.cos(), persistent=False)
        self.register_buffer("sin", angles.sin(), persistent=False)

    def embed(self, x: Tensor, start: int) -> Tensor:
        """token 嵌入保持原样。"""
        return x

    def rotate(self, x: Tensor, start: int) -> Tensor:
        """(batch, num_heads, seq, head_dim) -> 同形状；x 的第一个 token 位于 start。"""
        positions = slice(start, start + x.shape[-2])
        cos, sin = self.cos[positions].to(x.dtype), self.sin[positions].to(x.dtype)
        # 第 i 维与第 i + head_dim/2 维配成一个平面；论文配的是相邻两维，只是次序不同
        first, second = x.chunk(2, dim=-1)
        return torch.cat((first * cos - second * sin, first * sin + second * cos), dim=-1)


POSITION_CLASSES = {"learned": LearnedPosition, "rope": RotaryPosition}
