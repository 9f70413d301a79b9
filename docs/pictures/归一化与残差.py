"""支路先归一化、算完加回残差流；没有归一化信号消失，没有残差梯度消失。"""

import math

from docs.pictures.svg import BLUE, GREEN, GREY, INK, ORANGE, PURPLE, RED, WHITE, Axes, Picture

STREAM = 152  # 残差流的高度
NORM_GAIN = 256 * 0.02**2  # 手算：过一个 256 × 256 的矩阵，方差乘这么多
SLOPE = 0.1  # 手算：f(x) = 0.1x


def draw() -> Picture:
    picture = Picture(720, 450, "残差流与两条支路；归一化和残差各防止了什么")
    picture.line([(52, STREAM), (676, STREAM)], color=INK, width=4)
    picture.line([(650, STREAM), (684, STREAM)], color=INK, arrow=True)
    picture.text(34, STREAM, "x", size=18, mono=True)
    _draw_branch(picture, 75, "norm1", "注意力", "x + attn(norm1(x))")
    _draw_branch(picture, 375, "norm2", "前馈", "x + ff(norm2(x))")
    picture.text(360, STREAM + 30, "残差流：从嵌入一直通到输出层，只有加法碰它", size=13, color=GREY)

    left = Axes(picture, 70, 265, 260, 130, (0, 10), (-10, 0.5))
    left.frame("过了几层", "信号的方差", {n: str(n) for n in (0, 2, 4, 6, 8, 10)}, {0: "1", -5: "10⁻⁵", -10: "10⁻¹⁰"})
    left.curve([(n, n * math.log10(NORM_GAIN)) for n in range(11)], color=RED, width=3)
    left.curve([(0, 0), *((n, math.log10(NORM_GAIN)) for n in range(1, 11))], color=PURPLE, width=3)
    picture.text(*left.at(6.2, -2.3), "有归一化", size=13, color=PURPLE)
    picture.text(*left.at(3, -7), "没有归一化", size=13, color=RED)

    right = Axes(picture, 430, 265, 260, 130, (0, 20), (-20, 1))
    ticks = {0: "1", -10: "10⁻¹⁰", -20: "10⁻²⁰"}
    right.frame("隔了几层", "传回来的导数", {n: str(n) for n in (0, 5, 10, 15, 20)}, ticks)
    right.curve([(n, n * math.log10(SLOPE)) for n in range(21)], color=RED, width=3)
    right.curve([(n, n * math.log10(1 + SLOPE)) for n in range(21)], color=GREEN, width=3)
    picture.text(*right.at(12.4, -3), "有残差", size=13, color=GREEN)
    picture.text(*right.at(6, -14), "没有残差", size=13, color=RED)
    return picture


def _draw_branch(picture: Picture, left: float, norm: str, work: str, formula: str) -> None:
    """一条支路：从残差流读，归一化，计算，加回残差流。"""
    top, plus = 52, left + 240
    picture.line([(left, STREAM), (left, top), (left + 24, top)], color=GREY, arrow=True)
    picture.circle(left, STREAM, 4, fill=INK)
    picture.box(left + 25, top - 24, 90, 48, "归一化", norm, color=PURPLE)
    picture.line([(left + 115, top), (left + 134, top)], color=GREY, arrow=True)
    picture.box(left + 135, top - 24, 80, 48, work, color=BLUE if work == "注意力" else ORANGE)
    picture.text(left + 120, 112, formula, mono=True)
    picture.line([(left + 215, top), (plus, top), (plus, STREAM - 13)], color=GREY, arrow=True)
    picture.circle(plus, STREAM, 12, fill=WHITE, stroke=GREEN)
    picture.line([(plus - 7, STREAM), (plus + 7, STREAM)], color=GREEN, width=2)
    picture.line([(plus, STREAM - 7), (plus, STREAM + 7)], color=GREEN, width=2)
