"""四种格式的每一位管什么；bfloat16 是只留前一半的 float32。"""

import torch

from docs.pictures.svg import BLUE, GREEN, GREY, INK, LIGHT, ORANGE, RED, Picture

CELL, LEFT, ROW = 13, 104, 74
# 名字、符号、指数、尾数的位数
FORMATS = ((torch.float32, 1, 8, 23), (torch.bfloat16, 1, 8, 7), (torch.float16, 1, 5, 10), (torch.int8, 1, 0, 7))
NUMBER = 1.003


def draw() -> Picture:
    picture = Picture(720, 414, "float32、bfloat16、float16、int8 的每一位")
    for x, color, meaning in (
        (LEFT, RED, "符号"),
        (LEFT + 84, GREEN, "指数：管范围"),
        (LEFT + 224, BLUE, "尾数：管精度"),
    ):
        picture.rect(x, 22, 13, 13, fill=LIGHT[color], stroke=color)
        picture.text(x + 20, 28, meaning, size=13, color=color, anchor="start")
    picture.text(620, 28, f"{NUMBER} 存成", size=13, bold=True)
    for index, (dtype, *bits) in enumerate(FORMATS):
        draw_bits(picture, 62 + index * ROW, dtype, bits)
    cut = LEFT + 16 * CELL
    picture.line([(cut, 52), (cut, 170)], color=ORANGE, dashed=True)
    picture.text(cut + 8, 62 + ROW + 13, "后 16 位四舍五入，就是 bfloat16", size=13, color=ORANGE, anchor="start")
    picture.text(cut + 8, 62 + 2 * ROW + 13, "指数少三位，最大只到 65,504", size=13, color=GREY, anchor="start")
    picture.text(cut + 8, 62 + 3 * ROW + 13, "只有整数；每行权重另存一个尺度", size=13, color=GREY, anchor="start")
    picture.text(360, 382, "权重一步只改万分之几：存成 bfloat16 就被舍掉了，所以训练时权重留在 float32", size=14)
    return picture


def draw_bits(picture: Picture, top: float, dtype: torch.dtype, bits: list[int]) -> None:
    name = str(dtype).removeprefix("torch.")
    picture.text(LEFT - 12, top + 13, name, size=14, anchor="end", bold=True, mono=True)
    x = LEFT
    for color, count in zip((RED, GREEN, BLUE), bits, strict=True):
        for _ in range(count):
            picture.rect(x, top, CELL, 26, fill=LIGHT[color], stroke=color)
            x += CELL
    picture.text(LEFT, top + 40, f"{sum(bits)} 位，{sum(bits) // 8} 字节", size=12, color=GREY, anchor="start")
    if dtype.is_floating_point:
        stored = f"{torch.tensor(NUMBER).to(dtype).item():.6f}".rstrip("0")
        stored += "0" * stored.endswith(".")
        picture.text(620, top + 13, stored, size=15, mono=True, color=INK if stored == str(NUMBER) else RED)
