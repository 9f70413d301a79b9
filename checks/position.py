"""检查 model/position.py：参照是嵌入表的查表，和复数乘法写成的旋转。"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from checks.building import Tensors, install, random_inputs, tiny_config
from checks.comparison import Check, Suspect
from model.position import LearnedPosition, RotaryPosition

USES = ()
START = 3
SHAPE = (2, 4, 5, 8)  # (batch, num_heads, seq, head_dim)


@dataclass(frozen=True)
class Learned:
    """查表，加上去。"""

    start: int = START
    factor: float = 1.0
    along: str = "seq"  # 沿哪一个轴变化
    reverses: bool = False

    def __call__(self, inputs: Tensors) -> Tensor:
        x, table = inputs["x"], inputs["pos_emb.weight"]
        places = torch.arange(self.start, self.start + x.shape[1])
        vectors = F.embedding(places.flip(0) if self.reverses else places, table)
        if self.along == "batch":
            vectors = F.embedding(torch.arange(self.start, self.start + x.shape[0]), table)[:, None]
        if self.along == "none":
            vectors = F.embedding(torch.tensor(self.start), table)
        return x + self.factor * vectors


@dataclass(frozen=True)
class Rotate:
    """复数 (第 i 维 + 第 i + head_dim/2 维 · j) 乘以 e^{j·m·θᵢ}。"""

    start: int = START
    base: float = 10000.0
    sign: float = 1.0
    pairs: str = "halves"  # 第 i 维与谁配对
    exponent: float = 1.0  # θᵢ = base^(-exponent · 2i/d)
    axis: int = -2  # 位置沿哪个轴
    swaps: bool = False  # 前一半和后一半对调

    def __call__(self, inputs: Tensors) -> Tensor:
        return self.rotate(inputs["x"], self.start)

    def rotate(self, x: Tensor, start: int) -> Tensor:
        half = x.shape[-1] // 2
        theta = self.base ** (-self.exponent * torch.arange(half) / half)
        places = torch.arange(start, start + x.shape[self.axis]).float()
        angles = self.sign * places.view(-1, *[1] * (-self.axis - 1)) * theta
        turn = torch.polar(torch.ones_like(angles), angles)
        if self.pairs == "neighbours":
            pair = torch.view_as_complex(x.unflatten(-1, (half, 2)).contiguous())
            return torch.view_as_real(pair * turn).flatten(-2)
        first, second = x.chunk(2, dim=-1)
        turned = torch.complex(first, second) * turn
        parts = (turned.imag, turned.real) if self.swaps else (turned.real, turned.imag)
        return torch.cat(parts, dim=-1)


class Stub(nn.Module):
    """代替 model/position.py 的位置，检查别的模块时用：位置写错了不会连累它们。"""

    def __init__(self, rotates: bool):
        super().__init__()
        self.rotates = rotates

    def rotate(self, x: Tensor, start: int) -> Tensor:
        return Rotate().rotate(x, start) if self.rotates else x


LEARNED_SUSPECTS = [
    Suspect("位置从 0 数起：没有用 start", {"start": 0}),
    Suspect("位置错了一位：多了 1", {"start": START + 1}),
    Suspect("位置错了一位：少了 1", {"start": START - 1}),
    Suspect("没有加位置嵌入", {"factor": 0.0}),
    Suspect("位置嵌入是减去的，应为加上", {"factor": -1.0}),
    Suspect("位置嵌入加了两次", {"factor": 2.0}),
    Suspect("位置沿着 batch 变化，应沿着 seq", {"along": "batch"}),
    Suspect("所有 token 用了同一个位置", {"along": "none"}),
    Suspect("位置的次序反了", {"reverses": True}),
]
ROTARY_SUSPECTS = [
    Suspect("RoPE 的方向反了：sin 的符号", {"sign": -1.0}),
    Suspect("RoPE 配对错了：配成相邻两维，应为第 i 维配第 i + head_dim/2 维", {"pairs": "neighbours"}),
    Suspect("位置从 0 数起：没有用 start", {"start": 0}),
    Suspect("位置错了一位：多了 1", {"start": START + 1}),
    Suspect("位置错了一位：少了 1", {"start": START - 1}),
    Suspect("RoPE 的频率不对：指数应为 -2i/head_dim，少了 2 倍", {"exponent": 0.5}),
    Suspect("RoPE 的频率不对：指数应为 -2i/head_dim，多了 2 倍", {"exponent": 2.0}),
    Suspect("RoPE 的频率不对：指数漏了负号", {"exponent": -1.0}),
    Suspect("RoPE 的频率不对：各平面的频率都成了 1", {"exponent": 0.0}),
    Suspect("RoPE 的频率不对：指数的分母是 head_dim，写成了 emb_dim", {"exponent": SHAPE[-1] / tiny_config().emb_dim}),
    Suspect("RoPE 的两半次序反了：前一半应是 x₁cos − x₂sin", {"swaps": True}),
    Suspect("RoPE 的底数不对：应为 rope_base", {"base": 1000.0}),
    Suspect("RoPE 没有转", {"sign": 0.0}),
    Suspect("RoPE 的位置轴不对：沿着 heads 变化，应沿着 seq", {"axis": -3}),
]


def _learned_inputs() -> Tensors:
    return random_inputs(**{"x": (2, 5, 32), "pos_emb.weight": (16, 32)})


def _learned(inputs: Tensors) -> Tensor:
    position = install(LearnedPosition(tiny_config()), {"pos_emb.weight": inputs["pos_emb.weight"]})
    return position.embed(inputs["x"], START)


def _untouched_check(name: str, apply) -> Check:
    """两种位置都有一个什么也不做的方法。"""
    return Check(
        name,
        lambda: random_inputs(x=SHAPE),
        lambda inputs: apply(inputs["x"]),
        lambda: lambda inputs: inputs["x"] * 1.0,
        [],
    )


CHECKS = [
    Check("可学习的位置", _learned_inputs, _learned, lambda **changes: Learned(**changes), LEARNED_SUSPECTS),
    _untouched_check("可学习的位置不旋转", lambda x: LearnedPosition(tiny_config()).rotate(x, START)),
    Check(
        "RoPE",
        lambda: random_inputs(x=SHAPE),
        lambda inputs: install(RotaryPosition(tiny_config()), {}).rotate(inputs["x"], START),
        lambda **changes: Rotate(**changes),
        ROTARY_SUSPECTS,
    ),
    _untouched_check("RoPE 不动嵌入", lambda x: RotaryPosition(tiny_config()).embed(x, START)),
]
