"""画图。图上的文字用英文：很多电脑上的 matplotlib 没有中文字体。"""

from pathlib import Path

from utils.files import write_atomically
from utils.train_utils import Evaluation


def plot_losses(records: list[Evaluation], path: Path, keep_old: bool = False) -> Path | None:
    """训练和验证损失随见过的 token 数的变化，写成 PNG；keep_old 同 write_atomically。"""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    tokens = [record.tokens for record in records]
    axes.plot(tokens, [record.train_loss for record in records], marker="o", markersize=3, label="train")
    axes.plot(tokens, [record.validate_loss for record in records], marker="o", markersize=3, label="validate")
    best = min(records, key=lambda record: record.validate_loss)
    axes.axvline(best.tokens, color="gray", linestyle=":", label=f"best validate {best.validate_loss:.3f}")
    axes.set(xlabel="tokens seen", ylabel="loss (nats per token)", title="Training loss")
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.grid(alpha=0.3)
    axes.legend()
    return write_atomically(path, lambda file: figure.savefig(file, format="png"), keep_old)
