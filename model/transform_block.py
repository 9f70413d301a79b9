"""Transformer 块：注意力在 token 之间交换信息，前馈网络在 token 内部加工信息。道理见 docs/归一化与残差.md。"""

from torch import Tensor, nn

from model.attention import MultiHeadAttention
from model.config import ModelConfig
from model.dropout import Dropout
from model.feed_forward import build_feed_forward
from model.kv_cache import KVCache
from model.layer_norm import build_norm


class TransformBlock(nn.Module):
    """(batch, seq, emb_dim) -> (batch, seq, emb_dim)，先归一化的残差块 (Radford et al. 2019, 2.3 节)"""

    def __init__(self, cfg: ModelConfig, layer: int):
        super().__init__()
        self.norm1 = build_norm(cfg)
        self.attn = MultiHeadAttention(cfg, layer)
        self.norm2 = build_norm(cfg)
        self.ff = build_feed_forward(cfg)
        self.dropout = Dropout(cfg.drop_rate)

    def forward(self, x: Tensor, position: nn.Module, cache: KVCache | None = None) -> Tensor:
        # 残差 x + f(x)：梯度可以不经过 f 直接回到前面的层
        x = x + self.dropout(self.attn(self.norm1(x), position, cache))
        x = x + self.dropout(self.ff(self.norm2(x)))
        return x
