"""画 SVG 的几样东西：方框、箭头、文字、折线、热图和坐标轴。坐标以像素计，原点在左上角，y 向下。"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

INK, GREY, PALE, WHITE = "#1f2933", "#7b8794", "#e4e7eb", "#ffffff"
BLUE, ORANGE, GREEN, RED, PURPLE = "#2563a8", "#c2570c", "#2f7d4f", "#b42318", "#6b46a8"
LIGHT = {BLUE: "#dbe9f8", ORANGE: "#fde8d7", GREEN: "#dcf1e3", RED: "#fbe0dd", PURPLE: "#e9e1f6", GREY: "#f1f3f5"}
SANS = "'Noto Sans CJK SC','PingFang SC','Microsoft YaHei',sans-serif"
MONO = "'DejaVu Sans Mono',Menlo,Consolas,monospace"

Point = tuple[float, float]


class Picture:
    """一幅图：依次画上去，后画的盖住先画的。白底，深色网页上也看得清。"""

    def __init__(self, width: float, height: float, title: str):
        self.width, self.height, self.title = width, height, title
        self._parts: list[str] = []

    def rect(self, x: float, y: float, width: float, height: float, *, fill=WHITE, stroke="none", radius=0) -> None:
        where = f'x="{_n(x)}" y="{_n(y)}" width="{_n(width)}" height="{_n(height)}" rx="{_n(radius)}"'
        self._parts.append(f'<rect {where} fill="{fill}" stroke="{stroke}"/>')

    def circle(self, x: float, y: float, radius: float, *, fill=WHITE, stroke="none") -> None:
        self._parts.append(f'<circle cx="{_n(x)}" cy="{_n(y)}" r="{_n(radius)}" fill="{fill}" stroke="{stroke}"/>')

    def text(self, x: float, y: float, content: str, *, size=14, color=INK, anchor="middle", bold=False, mono=False):
        """(x, y) 是一行文字的横向锚点和纵向中线；anchor 取 start、middle、end。"""
        style = f'font-size="{size}" fill="{color}" text-anchor="{anchor}"'
        style += ' font-weight="600"' * bold + f' font-family="{MONO}"' * mono
        self._parts.append(f'<text x="{_n(x)}" y="{_n(y + size * 0.35)}" {style}>{escape(content)}</text>')

    def line(self, points: Sequence[Point], *, color=INK, width=1.5, dashed=False, arrow=False) -> None:
        """折线；arrow 时末端带箭头。"""
        path = " ".join(f"{_n(x)},{_n(y)}" for x, y in points)
        style = f'fill="none" stroke="{color}" stroke-width="{width}"' + ' stroke-dasharray="5 4"' * dashed
        self._parts.append(f'<polyline points="{path}" {style}/>')
        if arrow:
            self._arrow_head(points[-2], points[-1], color)

    def _arrow_head(self, start: Point, end: Point, color: str) -> None:
        (x1, y1), (x2, y2) = start, end
        length = ((x2 - x1) ** 2 + (y2 - y1) ** 2) ** 0.5
        dx, dy = (x2 - x1) / length * 8, (y2 - y1) / length * 8
        corners = [(x2, y2), (x2 - dx - dy / 2, y2 - dy + dx / 2), (x2 - dx + dy / 2, y2 - dy - dx / 2)]
        self._parts.append(f'<polygon points="{" ".join(f"{_n(x)},{_n(y)}" for x, y in corners)}" fill="{color}"/>')

    def box(
        self, x: float, y: float, width: float, height: float, *lines: str, color=BLUE, size=14, mono=False
    ) -> None:
        """圆角方框，几行文字居中，第一行是主。"""
        self.rect(x, y, width, height, fill=LIGHT[color], stroke=color, radius=6)
        step = size * 1.35
        top = y + height / 2 - step * (len(lines) - 1) / 2
        for index, content in enumerate(lines):
            self.text(x + width / 2, top + step * index, content, size=size if index == 0 else size - 2, mono=mono)

    def heatmap(self, x: float, y: float, cell: float, values: Sequence[Sequence[float | None]], *, color=BLUE) -> None:
        """values[行][列] 在 0–1 之间，越大颜色越深；None 是看不见的格子，画成斜线。"""
        for row, numbers in enumerate(values):
            for column, number in enumerate(numbers):
                left, top = x + column * cell, y + row * cell
                self.rect(left, top, cell, cell, fill=PALE if number is None else mix(color, number), stroke=WHITE)
                if number is None:
                    self.line([(left, top + cell), (left + cell, top)], color=WHITE, width=1)

    def svg(self) -> str:
        head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_n(self.width)} {_n(self.height)}"'
        head += f' width="{_n(self.width)}" height="{_n(self.height)}" font-family="{SANS}" role="img">'
        paper = f'<rect width="{_n(self.width)}" height="{_n(self.height)}" rx="8" fill="{WHITE}"/>'
        return "\n".join([head, f"<title>{escape(self.title)}</title>", paper, *self._parts, "</svg>\n"])


@dataclass(frozen=True)
class Axes:
    """一个坐标系：左上角 (x, y)，宽高，两轴的范围。把数据换成像素，画出轴和刻度。"""

    picture: Picture
    x: float
    y: float
    width: float
    height: float
    x_range: Point
    y_range: Point

    def at(self, x: float, y: float) -> Point:
        """数据的一点在图上的位置。"""
        across = (x - self.x_range[0]) / (self.x_range[1] - self.x_range[0])
        up = (y - self.y_range[0]) / (self.y_range[1] - self.y_range[0])
        return self.x + across * self.width, self.y + (1 - up) * self.height

    def frame(self, x_label: str, y_label: str, x_ticks: dict[float, str], y_ticks: dict[float, str]) -> None:
        """两根轴、刻度和轴的名字；横线淡淡地贯穿。"""
        left, bottom = self.x, self.y + self.height
        for value, label in y_ticks.items():
            height = self.at(self.x_range[0], value)[1]
            self.picture.line([(left, height), (left + self.width, height)], color=PALE, width=1)
            self.picture.text(left - 8, height, label, size=12, color=GREY, anchor="end")
        for value, label in x_ticks.items():
            self.picture.text(self.at(value, self.y_range[0])[0], bottom + 14, label, size=12, color=GREY)
        self.picture.line([(left, self.y), (left, bottom), (left + self.width, bottom)], color=GREY, width=1)
        self.picture.text(left + self.width / 2, bottom + 34, x_label, size=13)
        self.picture.text(left, self.y - 16, y_label, size=13, anchor="start")

    def curve(self, points: Sequence[Point], *, color=BLUE, width=2, dashed=False) -> None:
        self.picture.line([self.at(x, y) for x, y in points], color=color, width=width, dashed=dashed)


def mix(color: str, amount: float) -> str:
    """amount 为 0 是白，为 1 是 color。"""
    channels = (int(color[i : i + 2], 16) for i in (1, 3, 5))
    return "#" + "".join(f"{round(255 + (channel - 255) * amount):02x}" for channel in channels)


def _n(number: float) -> str:
    """写成最短的小数，免得文件随机器的舍入变化。"""
    return f"{number:.1f}".removesuffix(".0")
