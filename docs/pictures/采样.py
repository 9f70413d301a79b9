"""同一组分数，六种旋钮，五个词的概率各变成多少。"""

import torch

from docs.pictures.svg import BLUE, GREEN, GREY, INK, ORANGE, PALE, PURPLE, RED, Picture
from utils.generation import Sampling, adjust_logits

WORDS, PROBABILITIES = "猴妖山云饭", [0.4, 0.3, 0.15, 0.1, 0.05]  # 与手算的相同，“猴”已经出现过
PANELS = [
    ("T = 0.5：强者更强", BLUE, Sampling(temperature=0.5)),
    ("T = 1：原样", GREY, Sampling(temperature=1.0)),
    ("T = 2：趋于平均", ORANGE, Sampling(temperature=2.0)),
    ("top-k 2：留下前两个", GREEN, Sampling(temperature=1.0, top_k=2)),
    ("top-p 0.8：凑够 0.8 就停", PURPLE, Sampling(temperature=1.0, top_p=0.8)),
    ("惩罚 1.2：“猴”出现过", RED, Sampling(temperature=1.0, repetition_penalty=1.2)),
]
BAR, HEIGHT = 30, 110  # 条宽；概率 0.6 的条高


def draw() -> Picture:
    picture = Picture(720, 440, "温度、截断和重复惩罚怎样改变五个词的概率")
    logits, seen = torch.tensor([PROBABILITIES], dtype=torch.float64).log(), torch.tensor([[0]])
    for index, (title, color, sampling) in enumerate(PANELS):
        left, top = 30 + index % 3 * 232, 26 + index // 3 * 200
        probabilities = adjust_logits(logits, seen, sampling).softmax(dim=-1)[0].tolist()
        picture.text(left + 98, top, title, size=14, color=INK if color == GREY else color, bold=True)
        _draw_bars(picture, left, top + 148, probabilities, color)
    picture.text(360, 420, "虚框是原来的概率；每一格里实心的条加起来都是 1", size=13, color=GREY)
    return picture


def _draw_bars(picture: Picture, left: float, bottom: float, probabilities: list[float], color: str) -> None:
    """实心的条是新的概率，虚框是原来的。"""
    for index, (word, p, before) in enumerate(zip(WORDS, probabilities, PROBABILITIES, strict=True)):
        x, top = left + 8 + index * 38, bottom - p / 0.6 * HEIGHT
        picture.rect(x, top, BAR, bottom - top, fill=color)
        old = bottom - before / 0.6 * HEIGHT
        picture.line(
            [(x - 2, bottom), (x - 2, old), (x + BAR + 2, old), (x + BAR + 2, bottom)],
            color=INK,
            width=0.8,
            dashed=True,
        )
        picture.text(x + BAR / 2, min(top, old) - 9, f"{p:.2f}" if p else "0", size=12, color=color)
        picture.text(x + BAR / 2, bottom + 13, word, size=14)
    picture.line([(left, bottom), (left + 196, bottom)], color=PALE)
