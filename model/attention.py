"""多头因果自注意力：每个 token 从自己和前面的 token 那里取来信息。道理见 docs/注意力.md 和 docs/多头.md。"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from model.config import ModelConfig
from model.dropout import dropout
from model.kv_cache import KVCache
from model.layer_norm import EPS

BLOCK = 128  # 再小，矩阵太碎；再大，白算的多；量过 128 与 256，快慢差不多，128 省内存


def causal_mask(num_queries: int, num_keys: int, device: torch.device | None = None) -> Tensor:
    """(num_queries, num_keys) 的布尔表，True 表示看得见。最后一个查询与最后一个键是同一个 token。"""
    return torch.ones(num_queries, num_keys, dtype=torch.bool, device=device).tril(num_keys - num_queries)


def attention_map(queries: Tensor, keys: Tensor) -> tuple[Tensor, Tensor]:
    """softmax(QKᵀ / √head_dim)，只看过去；也交出遮住将来之前的分数。

    queries (batch, num_heads, num_queries, head_dim)，keys (batch, num_heads, num_keys, head_dim)
    -> 分数、权重，都是 (batch, num_heads, num_queries, num_keys)
    """
    # 除以 √head_dim，否则点积随维度变大，softmax 会饱和
    scores = queries @ keys.transpose(-2, -1) / math.sqrt(keys.shape[-1])
    mask = causal_mask(queries.shape[-2], keys.shape[-2], queries.device)
    weights = scores.masked_fill(~mask, -math.inf).softmax(dim=-1, dtype=queries.dtype)
    return scores, weights


def attention_by_definition(queries: Tensor, keys: Tensor, values: Tensor, drop_rate: float = 0.0) -> Tensor:
    """注意力的定义，softmax(QKᵀ / √head_dim) V (Vaswani et al. 2017, 式 1)，只看过去。

    queries (batch, num_heads, num_queries, head_dim)，keys 和 values (batch, num_heads, num_keys, head_dim)
    -> 与 queries 同形状
    """
    _, weights = attention_map(queries, keys)
    return dropout(weights, drop_rate) @ values


def attention_in_blocks(queries: Tensor, keys: Tensor, values: Tensor, drop_rate: float = 0.0) -> Tensor:
    """等于 attention_by_definition，但分数表右上角看不见的部分大多不算：一块查询只与它们看得见的键相乘。

    queries、keys、values 都是 (batch, num_heads, seq, head_dim)，即 num_queries 等于 num_keys -> 同形状
    """
    ends = range(BLOCK, queries.shape[-2] + BLOCK, BLOCK)
    blocks = [
        attention_by_definition(block, keys[..., :end, :], values[..., :end, :], drop_rate)
        for block, end in zip(queries.split(BLOCK, dim=-2), ends, strict=True)
    ]
    return torch.cat(blocks, dim=-2)


class QKNorm(nn.Module):
    """QK-norm：每个头的查询和键各做一次 RMSNorm，于是 |q·k| / √head_dim ≤ √head_dim，学习率大些分数也不会失控。

    Henry et al. 2020 的做法是 L2 归一化，再乘可学习的缩放；这里保留 1 / √head_dim。
    (batch, num_heads, seq, head_dim) -> 同形状；没有参数。
    """

    def __init__(self, head_dim: int):
        super().__init__()
        self.shape = (head_dim,)

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, self.shape, eps=EPS)


class MultiHeadAttention(nn.Module):
    """(batch, seq, emb_dim) -> (batch, seq, emb_dim)；数值等于 attention_by_definition，能快时用融合内核计算。"""

    def __init__(self, cfg: ModelConfig, layer: int):
        super().__init__()
        self.layer, self.head_dim, self.drop_rate = layer, cfg.head_dim, cfg.drop_rate
        self.is_grouped = cfg.num_kv_heads != cfg.num_heads
        kv_dim = cfg.num_kv_heads * cfg.head_dim
        self.W_query = nn.Linear(cfg.emb_dim, cfg.emb_dim, bias=cfg.qkv_bias)
        self.W_key = nn.Linear(cfg.emb_dim, kv_dim, bias=cfg.qkv_bias)
        self.W_value = nn.Linear(cfg.emb_dim, kv_dim, bias=cfg.qkv_bias)
        self.out_proj = nn.Linear(cfg.emb_dim, cfg.emb_dim, bias=cfg.bias) if cfg.out_proj else nn.Identity()
        self.qk_norm = QKNorm(cfg.head_dim) if cfg.qk_norm else nn.Identity()

    def forward(self, x: Tensor, position: nn.Module, cache: KVCache | None = None) -> Tensor:
        queries, keys, values = self.project(x, position, cache.length if cache is not None else 0)
        if cache is not None:
            keys, values = cache.append(self.layer, keys, values)
        context = self._attend(queries.to(keys.dtype), keys, values)
        return self.out_proj(context.transpose(1, 2).flatten(2))

    def project(self, x: Tensor, position: nn.Module, start: int = 0) -> tuple[Tensor, Tensor, Tensor]:
        """(batch, seq, emb_dim) -> 查询、键、值 (batch, num_heads, seq, head_dim)，键和值的头是 num_kv_heads 个。"""
        queries = position.rotate(self.qk_norm(self._split_heads(self.W_query(x))), start)
        keys = position.rotate(self.qk_norm(self._split_heads(self.W_key(x))), start)
        return queries, keys, self._split_heads(self.W_value(x))

    def _split_heads(self, x: Tensor) -> Tensor:
        """(batch, seq, num_heads × head_dim) -> (batch, num_heads, seq, head_dim)"""
        return x.unflatten(-1, (-1, self.head_dim)).transpose(1, 2)

    def _attend(self, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """三种情形：整段；接着缓存的一段；单个新 token，什么都看得见。"""
        num_queries, num_keys = queries.shape[2], keys.shape[2]
        is_whole = num_queries == num_keys
        drop_rate = self.drop_rate if self.training else 0.0
        if is_whole and self._definition_is_faster(queries, drop_rate):
            return attention_in_blocks(queries, keys, values, drop_rate)
        mask = None if is_whole or num_queries == 1 else causal_mask(num_queries, num_keys, queries.device)
        # 融合内核不把 (num_queries, num_keys) 的分数表写进内存，省内存也更快
        return F.scaled_dot_product_attention(
            queries, keys, values, attn_mask=mask, dropout_p=drop_rate, is_causal=is_whole, enable_gqa=self.is_grouped
        )

    def _definition_is_faster(self, queries: Tensor, drop_rate: float) -> bool:
        """CPU 的融合内核 (torch 2.13) 不会 dropout，bfloat16 也没有用上矩阵指令，照定义算反而快。"""
        return (
            queries.device.type == "cpu" and not self.is_grouped and (queries.dtype == torch.bfloat16 or drop_rate > 0)
        )
