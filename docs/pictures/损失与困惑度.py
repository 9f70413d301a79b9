"""一句话是几道填空题：正确答案得到的概率越小，损失越大；平均起来，再取指数。"""

import math

from docs.pictures.svg import BLUE, GREEN, GREY, LIGHT, ORANGE, RED, Axes, Picture

SENTENCE = "行者笑道"
ANSWERS = [(0.25, BLUE), (0.8, GREEN), (0.6, ORANGE)]  # 模型给正确的下一个字的概率，与手算的相同
CELL = 34


def draw() -> Picture:
    picture = Picture(720, 380, "一句话是几道填空题，损失是 −ln p 的平均")
    picture.text(24, 34, "看到的 → 要猜的", size=13, anchor="start")
    picture.text(228, 34, "模型给正确答案的概率", size=13, anchor="start")
    for number, (p, color) in enumerate(ANSWERS):
        _draw_question(picture, 66 + number * 84, number + 1, p, color)
    costs = [-math.log(p) for p, _ in ANSWERS]
    mean = sum(costs) / len(costs)

    axes = Axes(picture, 440, 50, 250, 220, (0, 1), (0, 4))
    axes.frame(
        "正确答案的概率 p", "损失 −ln p", {x: f"{x:g}" for x in (0, 0.25, 0.5, 0.75, 1)}, {y: str(y) for y in range(5)}
    )
    axes.curve([(p / 200, -math.log(p / 200)) for p in range(4, 201)], color=GREY)
    axes.curve([(0, mean), (1, mean)], color=RED, dashed=True, width=1.5)
    picture.text(*axes.at(0.99, mean + 0.25), f"平均 {mean:.3f}", size=13, color=RED, anchor="end")
    for (p, color), cost in zip(ANSWERS, costs, strict=True):
        x, y = axes.at(p, cost)
        picture.circle(x, y, 6, fill=color)
        below = color == ORANGE  # 它的上方是平均线
        place = (x - 8, y + 12, "end") if below else (x + 10, y - 12, "start")
        picture.text(*place[:2], f"{cost:.3f}", size=13, color=color, anchor=place[2])
    words = f"困惑度 e^{mean:.3f} = {math.exp(mean):.2f}：平均起来，像在两个字里瞎猜"
    picture.text(360, 350, words, size=15, bold=True)
    return picture


def _draw_question(picture: Picture, top: float, seen: int, p: float, color: str) -> None:
    """一道题：看得见的字，要猜的字，模型给它的概率。"""
    middle = top + CELL / 2
    for index, character in enumerate(SENTENCE[:seen]):
        picture.rect(24 + index * CELL, top, CELL - 4, CELL, fill=LIGHT[GREY], stroke=GREY, radius=4)
        picture.text(24 + index * CELL + (CELL - 4) / 2, middle, character, size=16)
    place = 24 + seen * CELL + 30
    picture.line([(place - 30, middle), (place - 3, middle)], color=GREY, arrow=True)
    picture.rect(place, top, CELL - 4, CELL, fill=LIGHT[color], stroke=color, radius=4)
    picture.text(place + (CELL - 4) / 2, middle, SENTENCE[seen], size=16, color=color, bold=True)
    picture.rect(228, middle - 8, 110, 16, fill=LIGHT[GREY])
    picture.rect(228, middle - 8, 110 * p, 16, fill=color)
    picture.text(346, middle, f"p = {p:g}", size=13, color=color, anchor="start")
