"""训练损失一路下降，验证损失先降后升：数取自这一章的实验。"""

import re
from pathlib import Path

from docs.pictures.svg import BLUE, GREY, ORANGE, RED, Axes, Picture

CHAPTER = Path(__file__).parents[1] / "评估与过拟合.md"
RECORD = re.compile(r"Step (\d+)\): Train loss ([\d.]+), Validate loss ([\d.]+)")


def draw() -> Picture:
    text = CHAPTER.read_text(encoding="utf-8")
    records = [(int(step), float(train), float(validate)) for step, train, validate in RECORD.findall(text)]
    best = min(records, key=lambda record: record[2])
    last = records[-1]

    picture = Picture(720, 390, "训练损失一路下降，验证损失先降后升")
    axes = Axes(picture, 70, 50, 560, 280, (0, 850), (0, 0.76))
    left, top = axes.at(best[0], 0.76)
    picture.rect(left, top, axes.at(850, 0)[0] - left, 280, fill="#fdf3f1")
    ticks = {y / 10: f"0.{y}" for y in range(0, 8)}
    axes.frame("步数", "损失", {step: str(step) for step in range(0, 801, 100)}, ticks)
    axes.curve([(step, train) for step, train, _ in records], color=BLUE, width=3)
    axes.curve([(step, validate) for step, _, validate in records], color=ORANGE, width=3)
    for step, train, validate in records:
        picture.circle(*axes.at(step, train), 3.5, fill=BLUE)
        picture.circle(*axes.at(step, validate), 3.5, fill=ORANGE)
    picture.line([(left, top), (left, axes.at(0, best[2])[1] - 6)], color=GREY, dashed=True)
    picture.text(left + 10, top + 16, f"第 {best[0]} 步验证最低：{best[2]}", size=13, color=GREY, anchor="start")
    picture.text(left + 10, top + 40, "从这里起是在背书", size=13, color=RED, anchor="start")
    picture.text(*axes.at(690, 0.40), "验证损失：没见过的文字", size=13, color=ORANGE)
    picture.text(*axes.at(690, 0.06), "训练损失：见过的文字", size=13, color=BLUE)
    _draw_gap(picture, axes, last[1], last[2])
    return picture


def _draw_gap(picture: Picture, axes: Axes, train: float, validate: float) -> None:
    """右边的括号：最后一步两条线差多少。"""
    (x, low), high = axes.at(850, train), axes.at(850, validate)[1]
    picture.line([(x + 6, low), (x + 12, low), (x + 12, high), (x + 6, high)], color=RED)
    middle = (low + high) / 2
    picture.text(x + 20, middle - 9, "差距", size=13, color=RED, anchor="start")
    picture.text(x + 20, middle + 9, f"{validate - train:.3f}", size=13, color=RED, anchor="start")
