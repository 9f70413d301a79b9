"""一个向量切成三段，三个头各看各的，再接起来过 out_proj。权重与正文手算的相同。"""

import math

import torch

from docs.pictures.svg import BLUE, GREEN, GREY, LIGHT, ORANGE, PURPLE, WHITE, Picture
from model.attention import attention_map

TOKENS, COLORS = ["石", "猴", "笑", "了"], [BLUE, ORANGE, PURPLE]
HEADS = {"头 0：看前一个": [0, 0, 1, 2], "头 1：看开头": [0, 0, 0, 0], "头 2：一样多": None}  # 每个查询找第几个键
CELL, ROW, SEGMENT = 24, 26, 34


def draw() -> Picture:
    picture = Picture(720, 430, "多头注意力：切成几段，各看各的，再接起来")
    middle = 230
    for left, title, below in ((44, "查询、键、值", "每段是一个头"), (382, "接起来", "还是原来的维数")):
        _rows(picture, left, middle - 2 * ROW, [(SEGMENT, color) for color in COLORS])
        picture.text(left + 1.5 * SEGMENT, middle - 2 * ROW - 22, title, bold=True)
        picture.text(left + 1.5 * SEGMENT, middle + 2 * ROW + 18, below, size=13, color=GREY)
    for row, token in enumerate(TOKENS):
        picture.text(30, middle + ROW * (row - 1.5), token, color=GREY)
    for index, (title, targets) in enumerate(HEADS.items()):
        top, color = 50 + 134 * index, COLORS[index]
        picture.text(264, top - 18, title, bold=True, color=color)
        picture.heatmap(216, top, CELL, head_weights(targets), color=color)
        height = middle + (index - 1) * ROW
        picture.line([(150, height), (211, top + 48)], color=color, arrow=True)
        picture.line([(316, top + 48), (377, height)], color=color, arrow=True)
    picture.line([(486, middle), (503, middle)], color=GREY, arrow=True)
    picture.box(504, middle - 24, 74, 48, "out_proj", color=GREY)
    picture.line([(578, middle), (597, middle)], color=GREY, arrow=True)
    _rows(picture, 600, middle - 2 * ROW, [(3 * SEGMENT, GREEN)])
    picture.text(651, middle - 2 * ROW - 22, "输出", bold=True)
    picture.text(651, middle + 2 * ROW + 18, "各头混在一起", size=13, color=GREY)
    return picture


def head_weights(targets: list[int] | None) -> list[list[float | None]]:
    """键是独热向量，查询是它找的那个键的 2 ln 9 倍，于是找的那个占 9 份，别的各占 1 份；None 是查询全为 0。"""
    keys = torch.eye(len(TOKENS))
    queries = keys[targets] * 2 * math.log(9) if targets else torch.zeros_like(keys)
    weights = attention_map(queries[None, None], keys[None, None])[1][0, 0].tolist()
    return [row[: query + 1] + [None] * (len(TOKENS) - 1 - query) for query, row in enumerate(weights)]


def _rows(picture: Picture, left: float, top: float, segments: list[tuple[float, str]]) -> None:
    """每个 token 一行，一行由几段不同颜色的数组成。"""
    for row in range(len(TOKENS)):
        x = left
        for width, color in segments:
            picture.rect(x, top + ROW * row, width, ROW, fill=LIGHT[color], stroke=WHITE)
            picture.line([(x + 6, top + ROW * (row + 0.5)), (x + width - 6, top + ROW * (row + 0.5))], color=color)
            x += width
