"""KV 缓存：已经算过的键和值不再重算，生成一个 token 只需一行查询。"""

import torch
from torch import Tensor

from model.config import ModelConfig


class KVCache:
    """每层的键和值，形状 (num_layers, batch, num_kv_heads, context_length, head_dim)。"""

    def __init__(self, cfg: ModelConfig, batch_size: int, device: torch.device | str = "cpu", dtype=torch.float32):
        shape = (cfg.num_layers, batch_size, cfg.num_kv_heads, cfg.context_length, cfg.head_dim)
        self.keys = torch.zeros(shape, device=device, dtype=dtype)
        self.values = torch.zeros(shape, device=device, dtype=dtype)
        self.length = 0  # 已缓存的 token 数

    def append(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """存入新 token 的键和值 (batch, num_kv_heads, seq, head_dim)，返回该层至今的全部键和值。"""
        end = self.length + keys.shape[2]
        self.keys[layer, :, :, self.length : end] = keys
        self.values[layer, :, :, self.length : end] = values
        return self.keys[layer, :, :, :end], self.values[layer, :, :, :end]
