"""检查 model/transform_block.py：参照由 F.layer_norm、多头注意力和前馈网络的参照拼成。"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from checks import attention, feed_forward
from checks.attention import PIECES, Heads, changes_every_time, in_pieces
from checks.building import Tensors, install, random_inputs, tiny_config
from checks.comparison import Check, Suspect, fact_check
from checks.layer_norm import layer_norm, rms_norm
from checks.position import Stub
from model.config import ModelConfig
from model.transform_block import TransformBlock

USES = ("layer_norm", "attention", "feed_forward", "dropout")
Combine = Callable[[Tensor, Tensor], Tensor]
# 配置里的激活函数 -> 前馈网络的参照；参数名都接在 ff. 之后
FEED_FORWARDS = {
    "gelu": feed_forward.Plain(feed_forward.gelu),
    "gelu_exact": feed_forward.Plain(functional.gelu),
    "relu2": feed_forward.Plain(feed_forward.squared_relu),
    "swiglu": feed_forward.Gated(),
}


def under(inputs: Tensors, prefix: str) -> Tensors:
    """名字以 prefix 开头的那些，去掉开头。"""
    return {name.removeprefix(prefix): tensor for name, tensor in inputs.items() if name.startswith(prefix)}


def normalize(cfg: ModelConfig, x: Tensor, parameters: Tensors) -> Tensor:
    """按配置归一化。"""
    if cfg.norm == "rms_norm":
        return rms_norm(x, parameters["weight"], cfg.norm_eps)
    return layer_norm(x, parameters["weight"], parameters.get("bias"), cfg.norm_eps)


@dataclass(frozen=True)
class Block:
    """先归一化的残差块；每一步都可以改错。inputs 里有 x 和各参数。"""

    cfg: ModelConfig
    pieces: tuple[int, ...] | None = None
    keeps_past: bool = True
    residuals: tuple[bool, bool] = (True, True)  # 两次相加
    norms: tuple[str, str] = ("norm1", "norm2")  # 两个子层用哪个归一化；空表示不用
    placements: tuple[str, str] = (
        "pre",
        "pre",
    )  # 先归一化；post 相加之后归一化；after 归一化加上的；keep 归一化后的当作 x
    order: tuple[str, str] = ("attn", "ff")
    parallel: bool = False  # 两个子层都读最初的 x
    times: tuple[float, float] = (1.0, 1.0)  # 加上的乘几倍
    combines: tuple[Combine, Combine] = (torch.add, torch.add)

    def __call__(self, inputs: Tensors) -> Tensor:
        x = start = inputs["x"]
        sublayers = zip(self.order, self.norms, self.residuals, self.placements, self.times, self.combines, strict=True)
        for name, norm, residual, placement, times, combine in sublayers:
            source = start if self.parallel else x
            if placement == "post":
                x = self._normalize(inputs, norm, x + self._sublayer(inputs, name, source))
                continue
            normed = source if placement == "after" else self._normalize(inputs, norm, source)
            update = times * self._sublayer(inputs, name, normed)
            update = self._normalize(inputs, norm, update) if placement == "after" else update
            base = normed if placement == "keep" else x
            x = combine(base, update) if residual else update
        return x

    def _normalize(self, inputs: Tensors, norm: str, x: Tensor) -> Tensor:
        return normalize(self.cfg, x, under(inputs, f"{norm}.")) if norm else x

    def _sublayer(self, inputs: Tensors, name: str, x: Tensor) -> Tensor:
        parameters = {**under(inputs, f"{name}."), "x": x}
        if name == "attn":
            return Heads(self.cfg, pieces=self.pieces, keeps_past=self.keeps_past)(parameters)
        return FEED_FORWARDS[self.cfg.activation](parameters) if name == "ff" else torch.zeros_like(x)


def _once_or_twice(guess: str, field: str, right: Any, wrong: Any) -> list[Suspect]:
    """同一种错，可能只犯在一个子层里，也可能两个都犯。"""
    return [
        Suspect(f"{guess}（注意力那一次）", {field: (wrong, right)}),
        Suspect(f"{guess}（前馈网络那一次）", {field: (right, wrong)}),
        Suspect(f"{guess}（两次都是）", {field: (wrong, wrong)}),
    ]


SUSPECTS = [
    Suspect("残差漏加：注意力那一次", {"residuals": (False, True)}),
    Suspect("残差漏加：前馈网络那一次", {"residuals": (True, False)}),
    Suspect("残差漏加：两次都漏了", {"residuals": (False, False)}),
    *_once_or_twice("先归一化变成了后归一化：应为 x + f(norm(x))", "placements", "pre", "post"),
    *_once_or_twice("残差加错了：加的是归一化之后的 x，应为原来的 x", "placements", "pre", "keep"),
    *_once_or_twice("归一化的位置不对：应为 x + f(norm(x))，写成了 x + norm(f(x))", "placements", "pre", "after"),
    *_once_or_twice("残差应相加，写成了相乘", "combines", torch.add, torch.mul),
    *_once_or_twice("x 加了两次", "combines", torch.add, lambda x, update: 2 * x + update),
    *_once_or_twice("子层的结果是减去的，应为加上", "times", 1.0, -1.0),
    *_once_or_twice("子层的结果加了两次", "times", 1.0, 2.0),
    Suspect("漏了 norm1：注意力之前没有归一化", {"norms": ("", "norm2")}),
    Suspect("漏了 norm2：前馈网络之前没有归一化", {"norms": ("norm1", "")}),
    Suspect("norm1 用了两次，前馈网络应当用 norm2", {"norms": ("norm1", "norm1")}),
    Suspect("norm2 用了两次，注意力应当用 norm1", {"norms": ("norm2", "norm2")}),
    Suspect("norm1 与 norm2 用反了", {"norms": ("norm2", "norm1")}),
    Suspect("次序反了：应先注意力，后前馈网络", {"order": ("ff", "attn"), "norms": ("norm2", "norm1")}),
    Suspect("漏了注意力", {"order": ("", "ff")}),
    Suspect("漏了前馈网络", {"order": ("attn", "")}),
    Suspect("前馈网络读的是最初的 x，应当读加过注意力的 x", {"parallel": True}),
]


def norm_shapes(cfg: ModelConfig, name: str) -> dict[str, tuple[int, ...]]:
    names = ("weight", "bias") if cfg.norm == "layer_norm" and cfg.bias else ("weight",)
    return {f"{name}.{kind}": (cfg.emb_dim,) for kind in names}


def parameter_shapes(cfg: ModelConfig, prefix: str = "") -> dict[str, tuple[int, ...]]:
    """一个块的参数。"""
    layers = feed_forward.parameter_shapes(cfg)
    return {
        **norm_shapes(cfg, f"{prefix}norm1"),
        **attention.parameter_shapes(cfg, f"{prefix}attn."),
        **norm_shapes(cfg, f"{prefix}norm2"),
        **{f"{prefix}ff.{name}": shape for name, shape in layers.items()},
    }


def _check(name: str, cfg: ModelConfig) -> Check:
    def ours(inputs: Tensors) -> Tensor:
        parameters = {key: tensor for key, tensor in inputs.items() if key != "x"}
        block = install(TransformBlock(cfg, layer=0), parameters)
        return block(inputs["x"] * 1.0, Stub(cfg.position == "rope"))  # 乘 1 才不是叶子，允许原地相加

    return Check(
        name,
        lambda: random_inputs(x=(2, 7, cfg.emb_dim), **parameter_shapes(cfg)),
        ours,
        lambda **changes: Block(cfg, **changes),
        SUSPECTS,
    )


def _cached_check(name: str, cfg: ModelConfig) -> Check:
    """接着缓存，一段一段地算。"""

    def ours(inputs: Tensors) -> Tensor:
        parameters = {key: tensor for key, tensor in inputs.items() if key != "x"}
        block = install(TransformBlock(cfg, layer=0), parameters)
        return in_pieces(block, inputs["x"] * 1.0, Stub(cfg.position == "rope"))

    return Check(
        name,
        lambda: random_inputs(x=(2, sum(PIECES), cfg.emb_dim), **parameter_shapes(cfg)),
        ours,
        lambda **changes: Block(cfg, **{"pieces": PIECES} | changes),
        [Suspect("缓存没有传给注意力：每一段看不见前面的", {"keeps_past": False})],
    )


def _modes() -> dict[str, float]:
    """把一个子层的参数清零，它就什么也不加，剩下的是另一个子层的 dropout。"""
    found = {}
    for name, silent in (("注意力", "ff"), ("前馈网络", "attn")):
        block = TransformBlock(tiny_config(drop_rate=0.5), layer=0)
        block.attn.drop_rate = 0.0  # 只看块自己的 dropout
        for parameter in getattr(block, silent).parameters():
            nn.init.zeros_(parameter)
        arguments = torch.randn(1, 9, 32), Stub(rotates=False)
        found[f"{name}之后训练时丢弃"] = changes_every_time(block.train(), *arguments)
        found[f"{name}之后评估时丢弃"] = changes_every_time(block.eval(), *arguments)
    return found


MODES = {f"{name}之后{mode}时丢弃": mode == "训练" for name in ("注意力", "前馈网络") for mode in ("训练", "评估")}
MODE_SUSPECTS = [
    Suspect("注意力之后漏了 dropout", {"注意力之后训练时丢弃": 0}),
    Suspect("前馈网络之后漏了 dropout", {"前馈网络之后训练时丢弃": 0}),
    Suspect("两个子层之后都漏了 dropout", {name: 0 for name in MODES if "训练" in name}),
    Suspect("评估时还在丢：没有看 self.training", {name: 1 for name in MODES if "评估" in name}),
    Suspect("训练和评估弄反了", {name: not value for name, value in MODES.items()}),
]


CHECKS = [
    _check("GPT-2 的块", tiny_config()),
    _check(
        "RoPE、RMSNorm、SwiGLU 的块", tiny_config(position="rope", norm="rms_norm", activation="swiglu", hidden_dim=48)
    ),
    _cached_check("接着缓存", tiny_config(position="rope")),
    fact_check("训练时丢，评估时不丢", _modes, MODES, MODE_SUSPECTS, 0.1),
]
