"""比较的结果怎样写：一张表、几句话、一张图，和给程序读的 JSON。"""

import json
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from utils.comparison import EqualBudget, Plan
from utils.console import display_width, pad
from utils.files import write_atomically
from utils.plotting import find_chinese_font

WIDTH = 80
UNITS = (
    "nats/char：整个验证部分每个字的损失，越小越好；训练：同样的权重在训练部分上的；",
    "极差：种子之间最大与最小之差；参数：百万个；内存：进程的最高点，MB；",
    "缓存：KV 缓存里一个 token 占的字节；轮：把训练部分看了几遍。",
)


@dataclass(frozen=True)
class Row:
    """表里的一行：一种配置，和它各个种子的结果。"""

    plan: Plan
    results: list[dict]
    failures: list[str]

    @property
    def label(self) -> tuple[str, ...]:
        return self.plan.variation.label

    @property
    def nats(self) -> list[float]:
        return [result["nats_per_char"] for result in self.results]

    @property
    def mean(self) -> float:
        return fmean(self.nats)

    @property
    def spread(self) -> float:
        """种子之间最大与最小之差。"""
        return max(self.nats) - min(self.nats)

    def values(self) -> dict[str, Any]:
        """写进 JSON 的各项。"""
        mean = {name: fmean(result[name] for result in self.results) for name in ("epochs", "train_nats_per_char")}
        return {
            "label": list(self.label),
            "config": self.plan.variation.values,
            "nats_per_char": self.mean,
            "spread": self.spread,
            "tokens_per_second": sum(r["tokens"] for r in self.results) / sum(r["seconds"] for r in self.results),
            "parameters": self.plan.num_parameters,
            "peak_bytes": max(result["peak_bytes"] for result in self.results),
            "estimated_bytes": self.plan.estimated_bytes,
            "cache_bytes_per_token": self.plan.cache_bytes,
            "flops_per_token": self.plan.flops_per_token,
            **mean,
            "runs": self.results,
        }


@dataclass(frozen=True)
class Report:
    """一次比较至今的结果；header 是各行 label 的名字。"""

    header: tuple[str, ...]
    rows: list[Row]
    budget: EqualBudget
    num_seeds: int
    data_path: Path

    def cells(self) -> tuple[list[str], list[list[str]]]:
        """-> (表头, 各行)，算出了结果的才有一行。"""
        has_spread = self.num_seeds > 1
        header = ["nats/char", *["极差"] * has_spread, "训练", "token/s", "参数", "内存", "缓存", "轮"]
        lines = []
        for row in self.rows:
            if not row.results:
                continue
            values = row.values()
            numbers = [
                f"{row.mean:.3f}",
                *[f"{row.spread:.3f}"] * has_spread,
                f"{values['train_nats_per_char']:.3f}",
                f"{values['tokens_per_second']:,.0f}",
                f"{row.plan.num_parameters / 1e6:.2f}",
                f"{values['peak_bytes'] / 1e6:,.0f}",
                f"{row.plan.cache_bytes:,}",
                f"{values['epochs']:.1f}",
            ]
            lines.append([*row.label, *numbers])
        return [*self.header, *header], lines

    def table(self) -> str:
        """终端里的表，不超过 WIDTH 列：一起变的字段名叠成几行；还放不下的，名字另占一行。"""
        (header, lines), count = self.cells(), len(self.header)
        text = align([*stack(header), *lines], count)
        if max(map(display_width, text.splitlines())) <= WIDTH:
            return text
        figures = align([line[count:] for line in (header, *lines)], 0).splitlines()
        pairs = zip(map(self.describe, lines), figures[1:], strict=True)
        return "\n".join(["    " + figures[0], *(f"{name}\n    {figure}" for name, figure in pairs)])

    def markdown(self) -> str:
        header, lines = self.cells()
        table = [f"| {' | '.join(line)} |" for line in (header, ["---"] * len(header), *lines)]
        title = f"# 比较\n\n语料 {self.data_path}，每次训练 {self.budget}，{self.num_seeds} 个种子。"
        return "\n\n".join([title, "\n".join(table), *self.remarks(), "".join(UNITS)]) + "\n"

    def describe(self, label: Any) -> str:
        """learning_rate=0.01"""
        return " ".join(f"{name}={value}" for name, value in zip(self.header, label, strict=False))

    def remarks(self) -> list[str]:
        """哪个最好，差别算不算数；哪些没有练完。"""
        finished = sorted((row for row in self.rows if row.results), key=lambda row: row.mean)
        lines = [
            f"没有练完：{self.describe(row.label)}：{reason}。"
            for row in self.rows
            for reason in sorted(set(row.failures))
        ]
        if len(finished) > 1:
            lines.insert(0, self._compare_best(*finished[:2]))
        return lines

    def _compare_best(self, best: Row, second: Row) -> str:
        gap, noise = second.mean - best.mean, max(best.spread, second.spread)
        if f"{best.mean:.3f}" == f"{second.mean:.3f}":
            return f"最低的 {self.describe(best.label)} 与 {self.describe(second.label)} 一样：分不出高下。"
        text = f"最低：{self.describe(best.label)}，比次低的 {self.describe(second.label)} 低 {gap:.3f}"
        if self.num_seeds == 1:
            return f"{text}；只练了一个种子，差别算不算数要用 --seeds 3 看。"
        if gap > 2 * noise:
            return f"{text}，超过种子之间极差 {noise:.3f} 的两倍。"
        return f"{text}，不到种子之间极差 {noise:.3f} 的两倍：分不出高下。"

    def write(self, folder: Path) -> None:
        """compare.json、compare.md、compare.png。"""
        content = {
            "data_path": str(self.data_path),
            "minutes": self.budget.minutes,
            "flops": self.budget.flops,
            "header": list(self.header),
            "rows": [row.values() for row in self.rows if row.results],
            "failures": {self.describe(row.label): row.failures for row in self.rows if row.failures},
        }
        data = json.dumps(content, ensure_ascii=False, indent=1).encode("utf-8")
        write_atomically(folder / "compare.json", lambda file: file.write(data))
        write_atomically(folder / "compare.md", lambda file: file.write(self.markdown().encode("utf-8")))
        if any(row.results for row in self.rows):
            self.draw(folder / "compare.png")

    def draw(self, path: Path) -> None:
        """验证损失随训练时间或浮点运算的变化，一种配置一种颜色，一个种子一条线；第 0 步太高，不画。"""
        from matplotlib import colormaps
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        figure = Figure(figsize=(8, 5), dpi=90, layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.subplots()
        finished = [row for row in self.rows if row.results]
        unit, x_label = ("seconds", "training time (s)") if self.budget.minutes else ("flops", "training FLOPs")
        font = find_chinese_font()
        for index, row in enumerate(finished):
            color = colormaps["viridis"](0.85 * index / max(1, len(finished) - 1))
            name = " ".join(row.label)
            name = name if font or name.isascii() else f"#{index + 1}"
            for number, result in enumerate(row.results):
                points = result["curve"][1:]
                x, y = ([point[key] for point in points] for key in (unit, "nats_per_char"))
                style = {"color": color, "marker": "o", "markersize": 3, "alpha": 1.0 if number == 0 else 0.45}
                label = f"{name}  ({row.mean:.3f})" if number == 0 else None
                axes.plot(x, y, label=label, **style)
        axes.set(xlabel=x_label, ylabel="validation loss (nats/char)", title="Equal budget")
        axes.grid(alpha=0.3)
        title = " ".join(self.header)
        style = {"family": font} if font else None
        title = title if font or title.isascii() else None
        axes.legend(title=title, title_fontproperties=style, prop=style)
        write_atomically(path, lambda file: figure.savefig(file, format="png"))


def stack(header: list[str]) -> list[list[str]]:
    """num_layers:emb_dim 这样的名字从冒号处分成几行，靠下对齐。"""
    parts = [cell.replace(":", "\n:").split("\n") for cell in header]
    height = max(map(len, parts))
    columns = [[""] * (height - len(part)) + part for part in parts]
    return [list(line) for line in zip(*columns, strict=True)]


def align(lines: list[list[str]], num_left: int) -> str:
    """各列对齐：前 num_left 列靠左，其余靠右。"""
    widths = [max(map(display_width, column)) for column in zip(*lines, strict=True)]
    texts = []
    for line in lines:
        cells = []
        for index, (cell, width) in enumerate(zip(line, widths, strict=True)):
            is_left = index < num_left
            cells.append(pad(cell, width) if is_left else " " * (width - display_width(cell)) + cell)
        texts.append("  ".join(cells).rstrip())
    return "\n".join(texts)
