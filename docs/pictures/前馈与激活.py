"""升到四倍，过激活，再降回来：圆点的深浅是一个真的 FeedForward 算出的数；右边是三种激活函数。"""

import torch
from torch.nn import functional as F

from docs.pictures.svg import BLUE, GREEN, GREY, ORANGE, PALE, PURPLE, WHITE, Axes, Picture, mix
from model.config import ModelConfig
from model.feed_forward import SquaredReLU, build_feed_forward, gelu_by_definition

MIDDLE = 212


def draw() -> Picture:
    picture = Picture(720, 420, "前馈网络：升维、激活、降维；三种激活函数")
    _network(picture)
    _curves(picture)
    return picture


def _network(picture: Picture) -> None:
    layers = zip((50, 190, 330), (_levels(), _levels(hidden=True), _levels(output=True)), strict=True)
    columns = [
        (x, [(MIDDLE + (index - (len(levels) - 1) / 2) * 19, level) for index, level in enumerate(levels)])
        for x, levels in layers
    ]
    for (left, starts), (right, ends) in zip(columns, columns[1:], strict=False):
        for start, _ in starts:
            for end, _ in ends:
                picture.line([(left, start), (right, end)], color=PALE, width=1)
    for (x, nodes), color in zip(columns, (BLUE, ORANGE, GREEN), strict=True):
        for y, level in nodes:
            picture.circle(x, y, 7.5, fill=mix(color, level) if level else WHITE, stroke=color if level else GREY)
    for x, name, size in ((50, "输入", "emb_dim"), (190, "激活之后", "4 × emb_dim"), (330, "输出", "emb_dim")):
        picture.text(x, 26, name, bold=True)
        picture.text(x, 396, size, size=13, color=GREY)
    picture.text(116, 58, "W₁", color=GREY)
    picture.text(264, 58, "W₂", color=GREY)


def _levels(hidden: bool = False, output: bool = False) -> list[float]:
    """一个 token 在 FeedForward 里某处的各个数的大小，最大的是 1。"""
    torch.manual_seed(4)
    shape = {"vocab_size": 2, "context_length": 2, "emb_dim": 4, "num_heads": 1, "num_layers": 1}
    cfg = ModelConfig(**shape, drop_rate=0.0, qkv_bias=False, activation="relu2", bias=False)
    network, x = build_feed_forward(cfg), torch.randn(4)
    values = network(x) if output else network.layers[:2](x) if hidden else x
    return (values.abs() / values.abs().max()).tolist()


def _curves(picture: Picture) -> None:
    axes = Axes(picture, 430, 60, 260, 290, (-3, 3), (-0.5, 3))
    axes.frame("输入", "", {value: str(value) for value in range(-3, 4)}, {value: str(value) for value in range(4)})
    picture.text(560, 26, "激活函数", bold=True)
    functions = {"ReLU²": (SquaredReLU(), ORANGE), "GELU": (gelu_by_definition, BLUE), "SiLU": (F.silu, PURPLE)}
    for index, (name, (function, color)) in enumerate(functions.items()):
        x = torch.linspace(-3, 3, 121)
        points = [(a, b) for a, b in zip(x.tolist(), function(x).tolist(), strict=True) if b <= 3]
        axes.curve(points, color=color, width=2.5)
        picture.line([(446, 84 + 24 * index), (472, 84 + 24 * index)], color=color, width=2.5)
        picture.text(480, 84 + 24 * index, name, size=13, color=color, anchor="start")
