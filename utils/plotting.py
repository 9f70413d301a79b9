"""画图。图上的文字用英文：不是每台电脑都有 matplotlib 找得到的中文字体。"""

from pathlib import Path
from typing import Any

from utils.evaluation_set import best_of
from utils.files import write_atomically
from utils.train_utils import Evaluation

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


def plot_losses(records: list[Evaluation], path: Path, keep_old: bool = False) -> Path | None:
    """训练和验证损失随见过的 token 数的变化，写成 PNG；记有准确率的另画一格。keep_old 同 write_atomically。"""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    has_accuracy = records[0].validate_accuracy is not None
    figure = Figure(figsize=(8, 9 if has_accuracy else 5), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(2 if has_accuracy else 1, squeeze=False)[:, 0]
    _draw(panels[0], records, "loss")
    best = best_of(records)
    panels[0].axvline(best.tokens, color="gray", linestyle=":", label=f"best validate {best.validate_loss:.3f}")
    panels[0].set(ylabel="loss (nats per token)", title="Training loss")
    panels[0].legend()
    if has_accuracy:
        _draw(panels[1], records, "accuracy")
        panels[1].set(ylabel="accuracy", title="Accuracy")
        panels[1].yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
        panels[1].legend()
    return write_atomically(path, lambda file: figure.savefig(file, format="png"), keep_old)


def _draw(axes: Any, records: list[Evaluation], name: str) -> None:
    """train 和 validate 两条线。"""
    tokens = [record.tokens for record in records]
    for part in ("train", "validate"):
        values = [getattr(record, f"{part}_{name}") for record in records]
        axes.plot(tokens, values, marker="o", markersize=3, label=part)
    axes.set(xlabel="tokens seen")
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.grid(alpha=0.3)
