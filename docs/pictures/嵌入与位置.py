"""编号到嵌入表里取一行；位置或者加进去，或者把查询和键转一个角度。数与正文手算的相同。"""

import math

import torch

from docs.pictures.svg import BLUE, GREEN, GREY, INK, ORANGE, PURPLE, Picture, Point
from model.config import ModelConfig
from model.position import LearnedPosition, RotaryPosition

TABLE = torch.tensor([[0.1, 0.9, 0.3], [0.6, 0.2, 0.8], [0.9, 0.4, 0.1], [0.3, 0.7, 0.5]])
POSITIONS = torch.tensor([[0.0, 0.1, 0.0], [0.1, 0.0, 0.0], [0.0, 0.0, 0.1]])
TOKENS, IDS = ["猴", "石", "猴"], [2, 0, 2]
CELL, RADIUS = 40, 60
SHAPE = {"vocab_size": 4, "num_layers": 1, "drop_rate": 0.0, "qkv_bias": False, "num_heads": 1}


def draw() -> Picture:
    picture = Picture(720, 500, "嵌入与位置：查表，再加上位置或按位置转动")
    _lookup(picture)
    picture.line([(30, 246), (690, 246)], color="#e4e7eb")
    _learned(picture)
    _rotary(picture)
    return picture


def _row(picture: Picture, left: float, top: float, numbers: list[float], color: str) -> None:
    """一行数，越大颜色越深。"""
    picture.heatmap(left, top, CELL, [[number * 0.6 + 0.04 for number in numbers]], color=color)
    for column, number in enumerate(numbers):
        picture.text(left + CELL * (column + 0.5), top + CELL / 2, f"{number:.1f}", size=13, color=INK)


def _lookup(picture: Picture) -> None:
    picture.text(90, 26, "token 和编号", bold=True)
    picture.text(340, 26, "嵌入表，一个编号一行", bold=True)
    picture.text(600, 26, "取出的向量", bold=True)
    for index, numbers in enumerate(TABLE.tolist()):
        top = 56 + CELL * 1.06 * index
        picture.text(266, top + CELL / 2, str(index), color=GREY)
        _row(picture, 280, top, numbers, BLUE if index in IDS else GREY)
    for order, (token, token_id) in enumerate(zip(TOKENS, IDS, strict=True)):
        middle, row = 84 + 56 * order, 56 + CELL * (1.06 * token_id + 0.5)
        picture.box(40, middle - 19, 100, 38, f"{token}　{token_id}", color=ORANGE, size=15)
        picture.line([(140, middle), (252, row)], color=GREY, arrow=True)
        picture.line([(406, row), (532, middle)], color=GREY, arrow=True)
        _row(picture, 540, middle - CELL / 2, TABLE[token_id].tolist(), BLUE)


def _learned(picture: Picture) -> None:
    position = LearnedPosition(ModelConfig(context_length=3, emb_dim=3, **SHAPE))
    position.pos_emb.weight.data = POSITIONS
    total = position.embed(TABLE[IDS][None], 0)[0, 2].tolist()
    picture.text(160, 274, "learned：加上位置自己的向量", bold=True)
    labels = ["“猴”", "位置 2", "两者之和"]
    rows = zip(labels, (TABLE[2].tolist(), POSITIONS[2].tolist(), total), (BLUE, PURPLE, GREEN), strict=True)
    for index, (label, numbers, color) in enumerate(rows):
        top = 306 + 52 * index
        picture.text(108, top + CELL / 2, label, anchor="end")
        picture.text(124, top + CELL / 2, " +="[index], size=18, color=GREY)
        _row(picture, 140, top, numbers, color)


def _rotary(picture: Picture) -> None:
    rotary = RotaryPosition(ModelConfig(context_length=8, emb_dim=2, **SHAPE))
    vectors = rotary.rotate(torch.tensor([1.0, 0.0]).expand(1, 1, 8, 2), 0)[0, 0]
    picture.text(515, 274, "rope：位置是几，就转几份角度", bold=True)
    for centre, query, key in (((420, 376), 2, 1), ((610, 376), 5, 4)):
        picture.circle(*centre, RADIUS, stroke="#e4e7eb")
        for index, color in ((query, ORANGE), (key, BLUE)):
            label, tip = "q" if index == query else "k", vectors[index].tolist()
            picture.line([centre, _place(centre, tip, RADIUS)], color=color, width=2.5, arrow=True)
            picture.text(*_place(centre, tip, RADIUS + 20), f"{label}，位置 {index}", size=13, color=color)
        arc = [(math.cos(key + t / 12), math.sin(key + t / 12)) for t in range(13)]
        picture.line([_place(centre, point, 24) for point in arc], color=GREY)
        product = float(vectors[query] @ vectors[key])
        picture.text(centre[0], 480, f"相距 1，点积 {product:.2f}", size=13)


def _place(centre: Point, point: Point, length: float) -> Point:
    """从 centre 朝 point 的方向走 length；图上 y 向下，所以反号。"""
    return centre[0] + point[0] * length, centre[1] - point[1] * length
