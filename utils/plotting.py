"""画图。图上的文字用英文：很多电脑上的 matplotlib 没有中文字体。"""

from pathlib import Path

from utils.files import write_atomically


def plot_losses(tokens: list[int], train_losses: list[float], validate_losses: list[float], path: Path) -> None:
    """训练和验证损失随见过的 token 数的变化，写成 PNG。"""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    axes.plot(tokens, train_losses, marker="o", markersize=3, label="train")
    axes.plot(tokens, validate_losses, marker="o", markersize=3, label="validate")
    best = min(range(len(tokens)), key=lambda index: validate_losses[index])
    axes.axvline(tokens[best], color="gray", linestyle=":", label=f"best validate {validate_losses[best]:.3f}")
    axes.set(xlabel="tokens seen", ylabel="loss (nats per token)", title="Training loss")
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.grid(alpha=0.3)
    axes.legend()
    write_atomically(path, lambda file: figure.savefig(file, format="png"))
