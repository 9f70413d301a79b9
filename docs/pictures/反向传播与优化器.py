"""上：手算里的链式法则，往前算数，往回乘导数。下：三种优化器在同一个山谷里各走四十步，学习率各用最好的。"""

import math

import torch

from docs.pictures.svg import BLUE, GREEN, GREY, INK, LIGHT, ORANGE, PURPLE, RED, Axes, Picture, Point
from utils.optimizers import ADAM_BETAS

STEEP, START, STEPS = 50.0, (-3.6, 0.8), 40  # 山谷 L = (w₁² + 50·w₂²) / 2
RATES = [float(f"{digit}e{power}") for power in (-3, -2, -1, 0) for digit in (1, 2, 3, 5)]  # 0.001 到 5
OPTIMIZERS = {
    "SGD": (BLUE, lambda p, rate: torch.optim.SGD(p, lr=rate)),
    "动量": (PURPLE, lambda p, rate: torch.optim.SGD(p, lr=rate, momentum=0.9)),
    "AdamW": (ORANGE, lambda p, rate: torch.optim.AdamW(p, lr=rate, betas=ADAM_BETAS, weight_decay=0.0)),
}


def draw() -> Picture:
    picture = Picture(720, 540, "往前算数，往回乘导数；三种优化器怎样下山")
    _draw_chain(picture)
    axes = Axes(picture, 60, 260, 620, 230, (-4, 1.6), (-0.95, 0.95))
    for level in (0.3, 1.2, 3, 6, 10, 16):
        _draw_contour(axes, level)
    ticks = {x: str(x) for x in range(-4, 2)}, {y: str(y) for y in (-0.5, 0, 0.5)}
    axes.frame("w₁：缓的方向", "w₂：陡的方向", *ticks)
    for index, (name, (color, _)) in enumerate(OPTIMIZERS.items()):
        rate, loss, path = best_walk(name)
        axes.curve(path, color=color, width=1.8)
        for x, y in path[1:]:
            picture.circle(*axes.at(x, y), 2.2, fill=color)
        left = 214 + 160 * index
        picture.line([(left, 222), (left + 24, 222)], color=color, width=3)
        picture.text(left + 30, 222, f"{name}，学习率 {rate:g}", size=13, color=color, anchor="start")
        picture.text(left + 30, 240, f"末了损失 {loss:.2g}", size=12, color=GREY, anchor="start")
    picture.circle(*axes.at(0, 0), 5, fill=GREEN)
    picture.text(*axes.at(0, -0.33), "谷底", size=13, color=GREEN)
    picture.circle(*axes.at(*START), 5, fill=INK)
    picture.text(axes.at(*START)[0] + 10, axes.at(*START)[1] - 10, "起点", size=13, anchor="start")
    return picture


def best_walk(name: str, steep: float = STEEP) -> tuple[float, float, list[Point]]:
    """RATES 里走完 STEPS 步损失最低的一个：(学习率, 最后的损失, 经过的点)。"""
    walks = [(rate, _walk(OPTIMIZERS[name][1], rate, steep)) for rate in RATES]
    losses = [(path[-1][0] ** 2 + steep * path[-1][1] ** 2) / 2 for _, path in walks]
    loss, (rate, path) = min(zip(losses, walks, strict=True), key=lambda pair: pair[0])
    return rate, loss, path


def _draw_chain(picture: Picture) -> None:
    """L = (wx + b − y)²，与手算的数相同。"""
    nodes = [("w = 2", 20), ("wx = 6", 170), ("wx + b = 7", 320), ("差 = −3", 470), ("L = 9", 620)]
    steps = ["× x，x = 3", "+ b，b = 1", "− y，y = 10", "平方"]
    slopes = ["× 3", "× 1", "× 1", "× 2·(−3)"]
    gradients = ["−18", "−6", "−6", "−6", "1"]
    picture.text(20, 24, "前向 →", size=13, color=BLUE, anchor="start")
    picture.text(20, 176, "← 反向：从 1 开始，每过一步乘上它的导数", size=13, color=RED, anchor="start")
    for (label, left), gradient in zip(nodes, gradients, strict=True):
        picture.box(left, 60, 90, 36, label)
        picture.text(left + 45, 132, gradient, size=15, color=RED, bold=True)
    for (_, left), step, slope in zip(nodes, steps, slopes, strict=False):
        picture.line([(left + 90, 78), (left + 149, 78)], color=BLUE, arrow=True)
        picture.text(left + 120, 48, step, size=12, color=BLUE)
        picture.line([(left + 164, 132), (left + 76, 132)], color=RED, arrow=True)
        picture.text(left + 120, 148, slope, size=12, color=RED)


def _draw_contour(axes: Axes, level: float) -> None:
    """L = level 的椭圆，只画框里的部分。"""
    angles = [2 * math.pi * i / 720 for i in range(721)]
    points = [(math.sqrt(2 * level) * math.cos(a), math.sqrt(2 * level / STEEP) * math.sin(a)) for a in angles]
    pieces, piece = [], []
    for x, y in points:
        if axes.x_range[0] <= x <= axes.x_range[1] and axes.y_range[0] <= y <= axes.y_range[1]:
            piece.append((x, y))
        elif piece:
            pieces, piece = [*pieces, piece], []
    for part in [*pieces, piece]:
        if len(part) > 1:
            axes.curve(part, color=LIGHT[BLUE], width=1.5)


def _walk(build, rate: float, steep: float) -> list[Point]:
    """从 START 走 STEPS 步经过的点。"""
    point = torch.tensor(START, dtype=torch.float64, requires_grad=True)
    optimizer = build([point], rate)
    path = [START]
    for _ in range(STEPS):
        optimizer.zero_grad()
        ((point[0] ** 2 + steep * point[1] ** 2) / 2).backward()
        optimizer.step()
        path.append(tuple(point.tolist()))
    return path
