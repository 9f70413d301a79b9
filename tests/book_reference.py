"""《从零构建大模型》的 GPTModel 和 PocketLLM 的早期版本，照各自的说明另写一遍，作对照。

两者的结构相同：后面不共用输出层的 GPT-2。不同的是名字、激活、ε，和注意力最后有没有 out_proj。
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True)
class Style:
    """一个项目给部件起的名字，和它怎样算。"""

    attention: str
    feed_forward: str
    norm: tuple[str, str]  # 缩放和平移
    eps: float
    approximate: str  # F.gelu 的参数：tanh 是近似，none 是准确的
    projects: bool  # 有没有 out_proj


BOOK = Style("att", "ff", ("scale", "shift"), 1e-5, "tanh", True)
EARLY = Style("attn", "ffn", ("weight", "bias"), 1e-12, "none", True)
EARLIEST = Style("attn", "ff", ("scale", "shift"), 1e-12, "none", False)


class ReferenceModel:
    """权重在 state_dict 里，名字是那个项目的；都是随机数，偏置也是，漏读了才看得出来。"""

    def __init__(self, style: Style, shape: dict, std: float = 0.2):
        self.style, self.num_heads, self.num_layers = style, shape["num_heads"], shape["num_layers"]
        self.context_length, dim = shape["context_length"], shape["emb_dim"]
        sizes = {"tok_emb.weight": (shape["vocab_size"], dim), "pos_emb.weight": (self.context_length, dim)}
        for layer in range(self.num_layers):
            sizes |= self._block_sizes(f"trf_blocks.{layer}.", dim, shape["qkv_bias"])
        sizes |= {f"final_norm.{kind}": (dim,) for kind in style.norm}
        sizes["out_head.weight"] = (shape["vocab_size"], dim)
        # 位置嵌入大些，续写才不会只重复一个 token
        self.weights = {n: torch.randn(size) * (0.5 if "pos_emb" in n else std) for n, size in sizes.items()}

    def _block_sizes(self, prefix: str, dim: int, qkv_bias: bool) -> dict[str, tuple[int, ...]]:
        attention, feed_forward = prefix + self.style.attention, prefix + self.style.feed_forward
        linears = {f"{attention}.{name}": (dim, dim, qkv_bias) for name in ("W_query", "W_key", "W_value")}
        if self.style.projects:
            linears[f"{attention}.out_proj"] = dim, dim, True
        linears |= {f"{feed_forward}.layers.0": (4 * dim, dim, True), f"{feed_forward}.layers.2": (dim, 4 * dim, True)}
        sizes = {f"{prefix}{norm}.{kind}": (dim,) for norm in ("norm1", "norm2") for kind in self.style.norm}
        for name, (outputs, inputs, has_bias) in linears.items():
            sizes |= {f"{name}.weight": (outputs, inputs)} | ({f"{name}.bias": (outputs,)} if has_bias else {})
        return sizes

    def state_dict(self) -> dict[str, Tensor]:
        """同项目自己存的：每层还有一张因果掩码。"""
        mask = torch.ones(self.context_length, self.context_length).triu(1)
        names = [f"trf_blocks.{layer}.{self.style.attention}.mask" for layer in range(self.num_layers)]
        return {**self.weights, **{name: mask.clone() for name in names}}

    def __call__(self, token_ids: Tensor) -> Tensor:
        """(batch, seq) -> (batch, seq, vocab_size)"""
        x = F.embedding(token_ids, self.weights["tok_emb.weight"])
        x = x + self.weights["pos_emb.weight"][: token_ids.shape[1]]
        for layer in range(self.num_layers):
            prefix = f"trf_blocks.{layer}."
            x = x + self._attend(f"{prefix}{self.style.attention}.", self._normalize(f"{prefix}norm1.", x))
            hidden = self._linear(f"{prefix}{self.style.feed_forward}.layers.0", self._normalize(f"{prefix}norm2.", x))
            hidden = F.gelu(hidden, approximate=self.style.approximate)
            x = x + self._linear(f"{prefix}{self.style.feed_forward}.layers.2", hidden)
        return F.linear(self._normalize("final_norm.", x), self.weights["out_head.weight"])

    def _linear(self, name: str, x: Tensor) -> Tensor:
        return F.linear(x, self.weights[f"{name}.weight"], self.weights.get(f"{name}.bias"))

    def _normalize(self, prefix: str, x: Tensor) -> Tensor:
        scale, shift = (self.weights[f"{prefix}{kind}"] for kind in self.style.norm)
        variance = x.var(dim=-1, keepdim=True, unbiased=False)
        return scale * (x - x.mean(dim=-1, keepdim=True)) / (variance + self.style.eps).sqrt() + shift

    def _attend(self, prefix: str, x: Tensor) -> Tensor:
        batch, seq, dim = x.shape
        shape = batch, seq, self.num_heads, dim // self.num_heads
        queries, keys, values = (
            self._linear(prefix + name, x).view(shape).transpose(1, 2) for name in ("W_query", "W_key", "W_value")
        )
        scores = queries @ keys.mT / shape[-1] ** 0.5
        hidden = torch.ones(seq, seq, dtype=torch.bool).triu(1)
        context = scores.masked_fill(hidden, -torch.inf).softmax(dim=-1) @ values
        context = context.transpose(1, 2).reshape(x.shape)
        return self._linear(f"{prefix}out_proj", context) if self.style.projects else context


def continue_by_recomputing(model, token_ids: Tensor, count: int, context_length: int) -> list[int]:
    """贪心续写，每次都从头算：model (1, seq) -> (1, seq, vocab_size)"""
    for _ in range(count):
        logits = model(token_ids[:, -context_length:])[:, -1]
        token_ids = torch.cat([token_ids, logits.argmax(dim=-1, keepdim=True)], dim=1)
    return token_ids[0, -count:].tolist()
