"""第三个 token 回头看前两个；三张表：分数、权重、取回的值。数与正文手算的相同。"""

import torch

from docs.pictures.svg import BLUE, GREY, INK, ORANGE, Picture
from model.attention import attention_by_definition, attention_map

TOKENS = ["石", "猴", "笑"]
QUERIES, KEYS, VALUES = [2.0, -2.0, 2.0], torch.tensor([1.0, 2.0, 5.0]).log(), [8.0, 16.0, 24.0]
CELL, TOP = 54, 236


def draw() -> Picture:
    picture = Picture(720, 450, "注意力：分数变成权重，权重乘上值")
    queries, keys = torch.zeros(1, 1, 3, 4), torch.zeros(1, 1, 3, 4)
    queries[0, 0, :, 0], keys[0, 0, :, 0] = torch.tensor(QUERIES), KEYS
    scores, weights = (table[0, 0].tolist() for table in attention_map(queries, keys))
    outputs = attention_by_definition(queries, keys, torch.tensor(VALUES).view(1, 1, 3, 1)).flatten().tolist()
    _look_back(picture, weights[-1])
    low, high = min(map(min, scores)), max(map(max, scores))
    shades = [[(score - low) / (high - low) * 0.5 + 0.08 for score in row] for row in scores]
    _table(picture, 58, "分数 QKᵀ/√d", shades, scores)
    picture.line([(230, TOP + 81), (296, TOP + 81)], color=GREY, arrow=True)
    picture.text(262, TOP + 62, "遮住未来", size=13, color=GREY)
    picture.text(262, TOP + 101, "softmax", size=13, color=GREY)
    visible = [
        [weight if key <= query else None for key, weight in enumerate(row)] for query, row in enumerate(weights)
    ]
    _table(picture, 324, "权重，每行的和是 1", visible, visible)
    _column(picture, 536, "值 V", VALUES, BLUE, "×")
    _column(picture, 642, "取回", outputs, ORANGE, "=")
    picture.rect(321, TOP + 2 * CELL - 3, 3 * CELL + 6, CELL + 6, fill="none", stroke=ORANGE, radius=6)
    picture.text(511, TOP + 3 * CELL + 30, "1/8 × 8 + 2/8 × 16 + 5/8 × 24 = 20", size=14, color=ORANGE)
    return picture


def _look_back(picture: Picture, weights: list[float]) -> None:
    """最后一个 token 看前面各个和自己：线越粗，取得越多。"""
    centres = [170, 360, 550]
    for centre, weight in zip(centres, weights, strict=True):
        itself = centre == centres[-1]
        start, end, height = (594, 532, 64) if itself else (528, centre, 56 if centre == centres[1] else 96)
        arc = [(start + (end - start) * t / 24, 128 - 4 * height * (t / 24) * (1 - t / 24)) for t in range(25)]
        picture.line(arc, color=ORANGE, width=weight * 14)
        picture.text(
            (start + end) / 2, 148 - height + 14 * itself, f"{weight * 8:.0f}/8", size=14, color=ORANGE, bold=True
        )
    for centre, token, value in zip(centres, TOKENS, VALUES, strict=True):
        picture.box(centre - 55, 128, 110, 46, token, f"值 {value:.0f}", color=BLUE, size=16)


def _table(picture: Picture, left: float, title: str, shades: list, numbers: list) -> None:
    picture.text(left + CELL * 1.5, TOP - 38, title, size=14, bold=True)
    picture.heatmap(left, TOP, CELL, shades, color=BLUE)
    for row, token in enumerate(TOKENS):
        middle = TOP + CELL * (row + 0.5)
        picture.text(left + CELL * (row + 0.5), TOP - 13, token, color=GREY)
        picture.text(left - 16, middle, token, color=GREY)
        for column, number in enumerate(numbers[row]):
            if number is not None:
                color = "#ffffff" if shades[row][column] > 0.55 else INK
                picture.text(left + CELL * (column + 0.5), middle, f"{number:.3g}", size=13, color=color)


def _column(picture: Picture, left: float, title: str, numbers: list[float], color: str, sign: str) -> None:
    picture.text(left + 25, TOP - 38, title, size=14, bold=True)
    picture.text(left - 22, TOP + 81, sign, size=20, color=GREY)
    for row, number in enumerate(numbers):
        picture.box(left, TOP + CELL * row + 5, 54, CELL - 10, f"{number:.4g}", color=color)
