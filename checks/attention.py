"""检查 model/attention.py：参照是 F.scaled_dot_product_attention 和 F.linear。"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from checks.building import Tensors, install, linear_shapes, random_inputs, tiny_config
from checks.comparison import Check, Suspect, fact_check
from checks.position import Stub
from model.attention import BLOCK, MultiHeadAttention, attention_by_definition, attention_in_blocks
from model.config import ModelConfig

USES = ()
EPS = 1e-5
PIECES = (4, 1, 3, 1)  # 接着缓存算时，一段几个 token
Attend = Callable[[Tensor, Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Fused:
    """融合内核，只看过去；最后一个查询与最后一个键对齐。"""

    shift: int = 0  # 掩码往后错几位
    aligned: bool = True
    masks_pieces: bool = True  # 接着缓存的一段也要遮

    def mask(self, queries: Tensor, keys: Tensor) -> Tensor:
        num_queries, num_keys = queries.shape[-2], keys.shape[-2]
        if num_queries != num_keys and not self.masks_pieces:
            return torch.ones(num_queries, num_keys, dtype=torch.bool)
        offset = num_keys - num_queries if self.aligned else 0
        return torch.ones(num_queries, num_keys, dtype=torch.bool).tril(offset + self.shift)

    def __call__(self, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(queries, keys, values, attn_mask=self.mask(queries, keys))


@dataclass(frozen=True)
class Stepwise(Fused):
    """照公式写的注意力，每一步都可以改错。"""

    power: float = -0.5  # 分数乘以 head_dim 的几次方
    scale_axis: int = -1  # 按哪一个轴的长度缩放
    num_heads: int = 1  # 按几个头合起来的长度缩放
    scaling: str = "before"  # 在 softmax 之前缩放；after 是错的
    swaps: bool = False  # 分数的行是键，列是查询
    masking: str = "before"  # 在 softmax 之前遮；after、none、inverted、zero 都是错的
    softmax_axis: int = -1
    weighs: str = "values"

    def __call__(self, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        visible = self.mask(queries, keys)
        visible = ~visible if self.masking == "inverted" else visible
        factor = (self.num_heads * keys.shape[self.scale_axis]) ** self.power
        scores = keys @ queries.mT if self.swaps else queries @ keys.mT
        scores = scores * factor if self.scaling == "before" else scores
        if self.masking in ("before", "inverted"):
            scores = scores.masked_fill(~visible, -torch.inf)
        if self.masking == "zero":
            scores = scores.masked_fill(~visible, 0.0)
        weights = scores.softmax(dim=self.softmax_axis)
        if self.masking == "after":
            weights = weights * visible
        weights = weights * factor if self.scaling == "after" else weights
        return weights @ (keys if self.weighs == "keys" else values)


def build_attend(**changes) -> Attend:
    """不改动时是融合内核，改动时是照公式写的。"""
    return Stepwise(**changes) if changes else Fused()


@dataclass(frozen=True)
class Blocks:
    """一块查询与它们看得见的键。"""

    extra: int = 0  # 多看几个键
    local: bool = False  # 只看自己这一块的键
    attend: Attend = Fused()

    def __call__(self, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        outputs = []
        for start in range(0, queries.shape[-2], BLOCK):
            seen = slice(start if self.local else 0, start + BLOCK + self.extra)
            outputs.append(
                self.attend(queries[..., start : start + BLOCK, :], keys[..., seen, :], values[..., seen, :])
            )
        return torch.cat(outputs, dim=-2)


def split_heads(x: Tensor, head_dim: int) -> Tensor:
    """(batch, seq, num_heads × head_dim) -> (batch, num_heads, seq, head_dim)"""
    return x.unflatten(-1, (-1, head_dim)).transpose(1, 2)


def merge_heads(x: Tensor) -> Tensor:
    """(batch, num_heads, seq, head_dim) -> (batch, seq, num_heads × head_dim)"""
    return x.transpose(1, 2).flatten(2)


@dataclass(frozen=True)
class Heads:
    """多头注意力，也能分几段接着算；每一步都可以改错。"""

    cfg: ModelConfig
    prefix: str = ""  # 参数名的开头
    pieces: tuple[int, ...] | None = None
    names: tuple[str, str, str] = ("W_query", "W_key", "W_value")
    biased: bool = True
    split: Callable[[Tensor, int], Tensor] = split_heads
    merge: Callable[[Tensor], Tensor] = merge_heads
    normalizes: str | None = None  # 归一化 q、k、v 中的哪些；None 表示照配置
    rotates: str = "qk"
    tiles: bool = False  # 共用的键和值怎样复制给查询头：1212 还是 1122
    starts: tuple[bool, bool] = (True, True)  # 查询、键的位置是否接着数
    keeps_past: bool = True
    projects: bool = True
    adds_input: bool = False
    attend: Attend = Fused()

    def __call__(self, inputs: Tensors) -> Tensor:
        x, position = inputs["x"], Stub(self.cfg.position == "rope")
        outputs, past = [], []
        for piece in x.split(self.pieces or x.shape[1], dim=1):
            start = sum(keys.shape[2] for keys, _ in past)
            queries, keys, values = self._project(inputs, piece, position, start)
            past = [*past, (keys, values)] if self.keeps_past else [(keys, values)]
            keys, values = (torch.cat(tensors, dim=2) for tensors in zip(*past, strict=True))
            context = self.merge(self.attend(queries, self._share(keys), self._share(values)))
            context = context + piece if self.adds_input else context
            projects = self.projects and self.cfg.out_proj
            outputs.append(self._linear(inputs, "out_proj", context) if projects else context)
        return torch.cat(outputs, dim=1)

    def _linear(self, inputs: Tensors, name: str, x: Tensor) -> Tensor:
        bias = inputs.get(f"{self.prefix}{name}.bias") if self.biased or name == "out_proj" else None
        return F.linear(x, inputs[f"{self.prefix}{name}.weight"], bias)

    def _project(self, inputs: Tensors, x: Tensor, position: Stub, start: int) -> tuple[Tensor, Tensor, Tensor]:
        normalizes = self.normalizes
        if normalizes is None:
            normalizes = "qk" if self.cfg.qk_norm else ""
        heads = []
        for part, name, counts in zip("qkv", self.names, (*self.starts, True), strict=True):
            head = self.split(self._linear(inputs, name, x), self.cfg.head_dim)
            head = F.rms_norm(head, head.shape[-1:], eps=EPS) if part in normalizes else head
            heads.append(position.rotate(head, start if counts else 0) if part in self.rotates else head)
        return tuple(heads)

    def _share(self, x: Tensor) -> Tensor:
        count = self.cfg.num_heads // self.cfg.num_kv_heads
        return x.repeat(1, count, 1, 1) if self.tiles else x.repeat_interleave(count, dim=1)


class PlainCache:
    """代替 model/kv_cache.py 的缓存，检查别的模块时用。"""

    def __init__(self):
        self.length, self.past = 0, []

    def append(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        self.past.append((keys, values))
        return tuple(torch.cat(tensors, dim=2) for tensors in zip(*self.past, strict=True))


def in_pieces(module: nn.Module, x: Tensor, position: nn.Module) -> Tensor:
    """接着缓存，一段一段地算 module。x (batch, sum(PIECES), emb_dim) -> 同形状"""
    cache, outputs = PlainCache(), []
    for piece in x.split(PIECES, dim=1):
        outputs.append(module(piece, position, cache))
        cache.length += piece.shape[1]
    return torch.cat(outputs, dim=1)


ATTEND_SUSPECTS = [
    Suspect("没有除以 √head_dim", {"power": 0.0}),
    Suspect("除以了 head_dim，应为 √head_dim", {"power": -1.0}),
    Suspect("乘了 √head_dim，应为除以", {"power": 0.5}),
    Suspect("缩放用错了长度：除以了 √seq，应为 √head_dim", {"scale_axis": -2}),
    Suspect("缩放的位置不对：应缩放分数，写成了缩放 softmax 之后的权重", {"scaling": "after"}),
    Suspect("掩码错一位：看得见下一个 token", {"shift": 1}),
    Suspect("掩码错一位：看不见自己", {"shift": -1}),
    Suspect("没有因果掩码：看得见未来", {"masking": "none"}),
    Suspect("掩码反了：看见的是未来", {"masking": "inverted"}),
    Suspect("掩码反了：看见的是自己和未来", {"masking": "inverted", "shift": -1}),
    Suspect("先 softmax 再清零：剩下的权重和不是 1", {"masking": "after"}),
    Suspect("遮住的分数填了 0，应为 -∞", {"masking": "zero"}),
    Suspect("softmax 的轴不对：应为最后一维（键）", {"softmax_axis": -2}),
    Suspect("softmax 的轴不对：应为最后一维（键）", {"softmax_axis": 1}),
    Suspect("加权的是键，应为值", {"weighs": "keys"}),
]
SWAPPED = Suspect("分数的行和列反了：应为 QKᵀ，写成了 KQᵀ", {"swaps": True})  # 在模块里与“查询和键用反了投影”分不开
UNALIGNED = Suspect("掩码没有对齐：最后一个查询应对着最后一个键", {"aligned": False})
BLOCK_SUSPECTS = [
    Suspect("每块只看了自己那一块的键，前面的也看得见", {"local": True}),
    Suspect("每块多看了一个键：看得见未来", {"extra": 1}),
    Suspect("每块少看了一个键", {"extra": -1}),
    Suspect("每块多看了一块键：看得见未来", {"extra": BLOCK}),
]
HEAD_SUSPECTS = [
    Suspect("输出没有乘 out_proj", {"projects": False}),
    Suspect(
        "多头拆分的轴错了：先拆最后一维，再与 seq 交换",
        {"split": lambda x, head_dim: x.reshape(len(x), -1, x.shape[1], head_dim)},
    ),
    Suspect("合并各头之前没有把 heads 换回 seq 之后", {"merge": lambda x: x.reshape(len(x), x.shape[2], -1)}),
    Suspect(
        "多头拆分的轴错了：head_dim 与 heads 的次序反了",
        {
            "split": lambda x, head_dim: x.unflatten(-1, (head_dim, -1)).permute(0, 3, 1, 2),
        },
    ),
    Suspect("查询和键用反了投影", {"names": ("W_key", "W_query", "W_value")}),
    Suspect("键和值用反了投影", {"names": ("W_query", "W_value", "W_key")}),
    Suspect("键用了查询的投影", {"names": ("W_query", "W_query", "W_value")}),
    Suspect("值用了查询的投影", {"names": ("W_query", "W_key", "W_query")}),
    Suspect("多加了残差：残差在块里加，这里不加", {"adds_input": True}),
    Suspect("查询、键、值缺偏置", {"biased": False}),
    Suspect("缩放用错了长度：除以了 √emb_dim，应为 √head_dim", {"attend": Stepwise(num_heads=4)}),
    *(Suspect(suspect.guess, {"attend": Stepwise(**suspect.changes)}) for suspect in ATTEND_SUSPECTS),
]
EXTRA_NORM = Suspect("多了 qk_norm：配置里没有", {"normalizes": "qk"})
ROTATE_SUSPECTS = [
    Suspect("查询和键都没有旋转：位置信息丢了", {"rotates": ""}),
    Suspect("只旋转了查询，键也要", {"rotates": "q"}),
    Suspect("只旋转了键，查询也要", {"rotates": "k"}),
    Suspect("值也旋转了，只该旋转查询和键", {"rotates": "qkv"}),
    Suspect("漏了 qk_norm", {"normalizes": ""}),
    Suspect("qk_norm 只作用在查询上，键也要", {"normalizes": "q"}),
    Suspect("qk_norm 只作用在键上，查询也要", {"normalizes": "k"}),
    Suspect("qk_norm 也作用在值上了", {"normalizes": "qkv"}),
]
GROUP_SUSPECTS = [
    Suspect("分组错了：相邻的查询头共用一个键头，应是 1122，不是 1212", {"tiles": True}),
]
PIECE_SUSPECTS = [
    Suspect("KV 缓存错位：新 token 的位置从 0 数起", {"starts": (False, False)}),
    Suspect("KV 缓存错位：查询的位置没有接着数", {"starts": (False, True)}),
    Suspect("KV 缓存错位：键的位置没有接着数", {"starts": (True, False)}),
    Suspect("没有用缓存里的键和值", {"keeps_past": False}),
    Suspect(UNALIGNED.guess, {"attend": Fused(aligned=False)}),
    Suspect("没有因果掩码：看得见未来", {"attend": Stepwise(masking="none")}),
    Suspect("接着缓存的一段没有因果掩码：看得见未来", {"attend": Fused(masks_pieces=False)}),
]


def parameter_shapes(cfg: ModelConfig, prefix: str = "") -> dict[str, tuple[int, ...]]:
    """多头注意力的参数。"""
    kv_dim = cfg.num_kv_heads * cfg.head_dim
    shapes = {
        **linear_shapes("W_query", cfg.emb_dim, cfg.emb_dim, cfg.qkv_bias),
        **linear_shapes("W_key", kv_dim, cfg.emb_dim, cfg.qkv_bias),
        **linear_shapes("W_value", kv_dim, cfg.emb_dim, cfg.qkv_bias),
        **(linear_shapes("out_proj", cfg.emb_dim, cfg.emb_dim, cfg.bias) if cfg.out_proj else {}),
    }
    return {f"{prefix}{name}": shape for name, shape in shapes.items()}


def _plain_check(name: str, ours: Attend, num_queries: int, num_keys: int, suspects: list[Suspect]) -> Check:
    """只有查询、键、值的比较。"""
    heads, dim = (2, 4), 8

    def build_reference(**changes):
        function = Blocks(**changes) if ours is attention_in_blocks else build_attend(**changes)
        return lambda inputs: function(*inputs.values())

    shapes = {"queries": num_queries, "keys": num_keys, "values": num_keys}
    return Check(
        name,
        lambda: random_inputs(**{part: (*heads, length, dim) for part, length in shapes.items()}),
        lambda inputs: ours(*inputs.values()),
        build_reference,
        suspects,
    )


def _build(inputs: Tensors, cfg: ModelConfig) -> nn.Module:
    parameters = {name: tensor for name, tensor in inputs.items() if name != "x"}
    return install(MultiHeadAttention(cfg, layer=0), parameters)


def _module_check(name: str, cfg: ModelConfig, suspects: list[Suspect]) -> Check:
    """整段一次算完。"""
    return Check(
        name,
        lambda: random_inputs(x=(2, 9, cfg.emb_dim), **parameter_shapes(cfg)),
        lambda inputs: _build(inputs, cfg)(inputs["x"], Stub(cfg.position == "rope")),
        lambda **changes: Heads(cfg, **changes),
        suspects,
    )


def _cached_check(name: str, cfg: ModelConfig, suspects: list[Suspect]) -> Check:
    """接着缓存，一段一段地算。"""

    def ours(inputs: Tensors) -> Tensor:
        return in_pieces(_build(inputs, cfg), inputs["x"], Stub(rotates=True))

    return Check(
        name,
        lambda: random_inputs(x=(2, sum(PIECES), cfg.emb_dim), **parameter_shapes(cfg)),
        ours,
        lambda **changes: Heads(cfg, **{"pieces": PIECES} | changes),
        suspects,
    )


def changes_every_time(module: nn.Module, x: Tensor, *others) -> bool:
    """同样的输入算两次，结果不同就是丢弃了什么。"""
    return not torch.equal(module(x.clone(), *others), module(x.clone(), *others))


def _modes() -> dict[str, float]:
    """共用键和值时走的是融合内核，也要丢。"""
    found = {}
    for kind, heads in (("", 4), ("，GQA", 2)):
        attention = MultiHeadAttention(tiny_config(drop_rate=0.5, num_kv_heads=heads), layer=0)
        arguments = torch.randn(1, 9, 32), Stub(rotates=False)
        found[f"训练时丢弃{kind}"] = changes_every_time(attention.train(), *arguments)
        found[f"评估时丢弃{kind}"] = changes_every_time(attention.eval(), *arguments)
    return found


MODES = {"训练时丢弃": 1, "评估时丢弃": 0, "训练时丢弃，GQA": 1, "评估时丢弃，GQA": 0}
OWN_MODE_SUSPECTS = [
    Suspect("评估时还在丢：没有看 self.training", {"评估时丢弃": 1, "评估时丢弃，GQA": 1}),
    Suspect("训练时没有丢", {"训练时丢弃": 0, "训练时丢弃，GQA": 0}),
    Suspect("照定义算时没有丢：漏了 dropout(weights, drop_rate)", {"训练时丢弃": 0}),
    Suspect("融合内核没有丢：漏了 dropout_p", {"训练时丢弃，GQA": 0}),
    Suspect("训练和评估弄反了", {name: 1 - value for name, value in MODES.items()}),
]
MODE_SUSPECTS = [
    Suspect("评估时还在丢：没有看 self.training", {"评估时丢弃": 1}),
    Suspect("训练时没有丢", {"训练时丢弃": 0}),
    Suspect("训练和评估弄反了", {"评估时丢弃": 1, "训练时丢弃": 0}),
]
ROTARY = tiny_config(position="rope", qk_norm=True)
CHECKS = [
    _plain_check("attention_by_definition，整段", attention_by_definition, 7, 7, [SWAPPED, *ATTEND_SUSPECTS]),
    _plain_check("attention_by_definition，一段", attention_by_definition, 3, 7, [UNALIGNED, *ATTEND_SUSPECTS]),
    _plain_check("attention_in_blocks", attention_in_blocks, BLOCK + 9, BLOCK + 9, BLOCK_SUSPECTS),
    _module_check("MultiHeadAttention", tiny_config(), [EXTRA_NORM, *HEAD_SUSPECTS]),
    _module_check("无 qkv 偏置", tiny_config(qkv_bias=False), []),
    _module_check("无 out_proj", tiny_config(out_proj=False), []),
    _module_check("RoPE 和 qk_norm", ROTARY, ROTATE_SUSPECTS + HEAD_SUSPECTS),
    _module_check("GQA（共用键和值）", tiny_config(num_kv_heads=2), GROUP_SUSPECTS + HEAD_SUSPECTS),
    _cached_check("接着缓存", ROTARY, PIECE_SUSPECTS + ROTATE_SUSPECTS),
    fact_check("训练时丢，评估时不丢", _modes, MODES, OWN_MODE_SUSPECTS, 0.1),
]
