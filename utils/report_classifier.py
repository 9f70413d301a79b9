"""分类微调开始前和结束后对用户说的话，和混淆矩阵的图。"""

import argparse
from pathlib import Path

import torch
from torch.utils.data import DataLoader

from utils.checkpoint import load_weights, read_model_file
from utils.classification import ClassificationDataset, Metrics, measure
from utils.console import say
from utils.files import write_atomically
from utils.labeled_text import Split
from utils.plotting import find_chinese_font
from utils.report_finetuning import print_model, print_use
from utils.run_files import RunFiles
from utils.train_utils import Trainer


def print_start(
    trainer: Trainer, split: Split, datasets: list[ClassificationDataset], args: argparse.Namespace, dtype: torch.dtype
) -> None:
    """训练之前：设备、训练哪些参数、数据怎样分。"""
    model = trainer.model
    print_model(trainer, args, dtype)
    say(f"数据：{args.data_path}，训练 {len(split.train):,}、验证 {len(split.validate):,}、测试 {len(split.test):,} 条")
    counts = [f"{label} {sum(record.label == label for record in split.train):,}" for label in model.labels]
    say(f"标签：{'、'.join(counts)}（训练部分）")
    if truncated := sum(dataset.num_truncated for dataset in datasets):
        say(f"有 {truncated:,} 条超过上下文长度 {model.cfg.context_length}，只用开头")


def print_result(trainer: Trainer, test_loader: DataLoader, files: RunFiles, args: argparse.Namespace) -> None:
    """训练之后：所保存的权重在测试部分上的各项，混淆矩阵另画成图。"""
    model = trainer.model
    if files.kept.step != trainer.step:  # 内存里是最后的权重，文件里是最好的
        load_weights(model, read_model_file(files.model), files.model)
    metrics = measure(model, test_loader, model.labels, trainer.precision)
    say(f"测试准确率 {metrics.accuracy:.2%}（第 {files.kept.step} 步的权重）")
    say(metrics.table())
    picture = files.model.with_name(f"{files.model.name}.confusion.png")
    backup = draw_confusion(metrics, picture)
    if backup:
        say(f"已有的 {picture} 保留为 {backup.name}")
    names = picture_names(metrics.labels)
    if names != metrics.labels:
        numbered = "、".join(f"{name} 是 {label}" for name, label in zip(names, metrics.labels, strict=True))
        say(f"图上没有中文字体可用：{numbered}")
    say(f"分类模型：{files.model}；曲线：{files.curve}；混淆矩阵：{picture}；日志：{files.log}")
    print_use(files, args, "classify.py")


def picture_names(labels: list[str]) -> list[str]:
    """标签在图上的名字：没有中文字体时，不是 ASCII 的写成编号。"""
    has_font = find_chinese_font() is not None
    return [label if has_font or label.isascii() else f"#{index}" for index, label in enumerate(labels)]


def draw_confusion(metrics: Metrics, path: Path) -> Path | None:
    """混淆矩阵画成 PNG，名字见 picture_names。返回旧图的备份。"""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    count = len(metrics.labels)
    size = max(3.0, 0.6 * count + 2)
    figure = Figure(figsize=(size, size), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    shares = metrics.confusion / metrics.confusion.sum(dim=1, keepdim=True).clamp(min=1)
    axes.imshow(shares.numpy(), cmap="Blues", vmin=0, vmax=1)
    names, font = picture_names(metrics.labels), find_chinese_font()
    axes.set(xlabel="predicted", ylabel="actual", title=f"accuracy {metrics.accuracy:.1%}")
    axes.set_xticks(range(count), names, fontfamily=font)
    axes.set_yticks(range(count), names, fontfamily=font)
    for row in range(count):
        for column in range(count):
            color = "white" if shares[row, column] > 0.5 else "black"
            axes.text(column, row, f"{metrics.confusion[row, column].item():,}", ha="center", va="center", color=color)
    return write_atomically(path, lambda file: figure.savefig(file, format="png"), keep_old=True)
