"""画图。图上的文字用英文：不是每台电脑都有 matplotlib 找得到的中文字体。"""

from pathlib import Path
from typing import Any

from utils.evaluation_set import best_of
from utils.files import write_atomically
from utils.step_history import StepHistory, smooth
from utils.train_utils import Evaluation

TRAIN_COLOR, VALIDATE_COLOR = "tab:blue", "tab:orange"
# 各系统自带的中文字体，前面的优先
CHINESE_FONTS = (
    "PingFang SC",
    "Hiragino Sans GB",
    "Heiti SC",
    "Microsoft YaHei",
    "SimHei",
    "Noto Sans CJK SC",
    "Source Han Sans SC",
    "WenQuanYi Zen Hei",
    "WenQuanYi Micro Hei",
)


def find_chinese_font() -> str | None:
    """这台电脑上 matplotlib 能用的中文字体；没有就是 None。"""
    from matplotlib.font_manager import fontManager

    installed = {font.name for font in fontManager.ttflist}
    return next((name for name in CHINESE_FONTS if name in installed), None)


def drawable_characters(font: str | None) -> set[str]:
    """名叫 font 的字体画得出的字；None 是 matplotlib 自带的字体。"""
    from matplotlib.font_manager import findfont, get_font

    return set(map(chr, get_font(findfont(font or "DejaVu Sans")).get_charmap()))


def plot_losses(records: list[Evaluation], steps: StepHistory, path: Path) -> None:
    """损失随见过的 token 数的变化，写成 PNG：每一步的训练损失、它平滑之后的，和各次评估的验证损失。

    记有准确率的另画一格。
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    has_accuracy = records[0].validate_accuracy is not None
    figure = Figure(figsize=(8, 9 if has_accuracy else 5), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(2 if has_accuracy else 1, squeeze=False)[:, 0]
    _draw_steps(panels[0], steps)
    _draw_evaluations(panels[0], records, "validate_loss", VALIDATE_COLOR)
    best = best_of(records)
    panels[0].axvline(best.tokens, color="gray", linestyle=":", label=f"lowest validate (step {best.step:,})")
    panels[0].set(ylabel="loss (nats per token)", title="Training loss")
    if has_accuracy:
        panels[0].set(ylabel="loss (nats per text)")
        _draw_evaluations(panels[1], records, "train_accuracy", TRAIN_COLOR)
        _draw_evaluations(panels[1], records, "validate_accuracy", VALIDATE_COLOR)
        panels[1].set(ylabel="accuracy", title="Accuracy")
        panels[1].yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    for axes in panels:
        axes.set(xlabel="tokens seen")
        axes.xaxis.set_major_formatter("{x:,.0f}")
        axes.grid(alpha=0.3)
        axes.legend()
    write_atomically(path, lambda file: figure.savefig(file, format="png"))


def _draw_steps(axes: Any, steps: StepHistory) -> None:
    """每一步的训练损失，细而淡；平滑之后的盖在上面。"""
    tokens, losses = steps.column("tokens"), steps.column("loss")
    raw = "train, every step" if steps.width == 1 else f"train, mean of {steps.width} steps"
    axes.plot(tokens, losses, color=TRAIN_COLOR, alpha=0.3, linewidth=0.7, label=raw)
    axes.plot(tokens, smooth(losses), color=TRAIN_COLOR, label="train, smoothed")


def _draw_evaluations(axes: Any, records: list[Evaluation], name: str, color: str) -> None:
    """各次评估的一项。"""
    tokens, values = ([getattr(record, key) for record in records] for key in ("tokens", name))
    axes.plot(tokens, values, color=color, marker="o", markersize=3, label=name.split("_")[0])
