"""分类微调开始前和结束后对用户说的话，混淆矩阵的图，和报告里分类特有的部分。"""

import argparse
from collections import Counter
from pathlib import Path

import torch
from torch.utils.data import DataLoader

from utils.classification import ClassificationDataset, Metrics, classify, measure
from utils.console import say
from utils.files import write_atomically
from utils.labeled_text import LabeledText, Split
from utils.plotting import drawable_characters, find_chinese_font
from utils.processes import on_main
from utils.report_finetuning import print_model, print_use
from utils.run_files import RunFiles
from utils.run_history import Sample
from utils.run_report import RunStory
from utils.text_utils import Tokenizer
from utils.train_utils import Trainer, evaluating

PER_LABEL = 2  # 报告里反复判断的验证部分的文字，每个标签几条
MAX_NAME = 20  # 名字再长，图上就没有地方了
MAX_WRITTEN = 30  # 标签再多，图上就写不下名字和条数了
NUM_TEXTS = 6  # 一共不超过几条


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
    files.load_kept(trainer)
    metrics = measure(model, test_loader, model.labels, trainer.precision)
    files.write_result(test_accuracy=metrics.accuracy, labels=metrics.by_label())
    say(f"测试准确率 {metrics.accuracy:.2%}（第 {files.kept.step} 步的权重）")
    say(metrics.table())
    picture = files.model.with_name(f"{files.model.name}.confusion.png")
    backup = draw_confusion(metrics, picture)
    if backup:
        say(f"已有的 {picture} 保留为 {backup.name}")
    names = picture_names(metrics.labels)
    if names != metrics.labels:
        pairs = zip(names, metrics.labels, strict=True)
        numbered = "、".join(f"{name} 是 {label}" for name, label in pairs if name != label)
        say(f"图上写不出的标签用编号：{numbered}")
    say(f"分类模型：{files.model}；曲线：{files.curve}；混淆矩阵：{picture}；报告：{files.report}；日志：{files.log}")
    print_use(files, args, "classify.py")


def picture_names(labels: list[str]) -> list[str]:
    """标签在图上的名字：太长的，和字体里没有的字（如没有中文字体时的汉字），写成编号。"""
    can_draw = drawable_characters(find_chinese_font())
    return [
        label if len(label) <= MAX_NAME and can_draw.issuperset(label) else f"#{index}"
        for index, label in enumerate(labels)
    ]


@on_main
def draw_confusion(metrics: Metrics, path: Path) -> Path | None:
    """混淆矩阵画成 PNG，名字见 picture_names；标签太多时只画颜色。返回旧图的备份。"""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    count = len(metrics.labels)
    is_small = count <= MAX_WRITTEN
    size = max(3.0, 0.6 * min(count, MAX_WRITTEN) + 2)
    figure = Figure(figsize=(size, size), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    shares = metrics.confusion / metrics.confusion.sum(dim=1, keepdim=True).clamp(min=1)
    axes.imshow(shares.numpy(), cmap="Blues", vmin=0, vmax=1)
    names, font = picture_names(metrics.labels), find_chinese_font()
    axes.set(xlabel="predicted", ylabel="actual", title=f"accuracy {metrics.accuracy:.1%}")
    for set_ticks in (axes.set_xticks, axes.set_yticks):  # 标签里的 $ 不是公式
        set_ticks(range(count) if is_small else (), names if is_small else (), fontfamily=font, parse_math=False)
    for row in range(count if is_small else 0):
        for column in range(count):
            color = "white" if shares[row, column] > 0.5 else "black"
            axes.text(column, row, f"{metrics.confusion[row, column].item():,}", ha="center", va="center", color=color)
    return write_atomically(path, lambda file: figure.savefig(file, format="png"), keep_old=True)


def tell_story(trainer: Trainer, split: Split, tokenizer: Tokenizer, args: argparse.Namespace) -> RunStory:
    """报告里的数据，和途中反复判断的几条验证部分的文字。"""
    labels = trainer.model.labels
    counts = Counter(record.label for record in split.train)
    facts = {
        "起点": str(args.model_path),
        "数据": f"{args.data_path}（{args.encoding}）",
        "训练、验证、测试": f"{len(split.train):,}、{len(split.validate):,}、{len(split.test):,} 条",
        "标签": "、".join(f"{label} {counts[label]:,}" for label in labels) + "（训练部分）",
    }
    chosen = [record for label in labels for record in _of_label(split.validate, label)][:NUM_TEXTS]

    def judge() -> list[Sample]:
        with evaluating(trainer.model):
            guesses = [classify(trainer.model, tokenizer, record.text) for record in chosen]
        pairs = zip(chosen, guesses, strict=True)
        return [Sample(f"{record.text} → ", f"{label}（{p:.1%}）", record.label) for record, (label, p) in pairs]

    return RunStory("分类微调", facts, judge, NUM_TEXTS)


def _of_label(records: list[LabeledText], label: str) -> list[LabeledText]:
    return [record for record in records if record.label == label][:PER_LABEL]
