"""分类：带标签的文字怎样变成训练数据，怎样算准确率、精确率、召回率和 F1。"""

from collections.abc import Iterable
from contextlib import AbstractContextManager
from copy import copy
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from utils.cross_entropy import IGNORE_INDEX
from utils.data_loader import EpochSampler, create_dataloader, pad_batch
from utils.distributed import map_batches
from utils.fine_tuning import quote
from utils.labeled_text import LabeledText, Split
from utils.settings import TrainingSettings
from utils.text_utils import Tokenizer
from utils.train_utils import FULL_PRECISION, Batch, copy_to, evaluating


class ClassificationDataset(Dataset):
    """第 i 个样本的目标只在最后一个 token 上：它的标签；其余位置是 IGNORE_INDEX。"""

    def __init__(self, records: list[LabeledText], labels: list[str], tokenizer: Tokenizer, context_length: int):
        self.texts = [record.text for record in records]
        self.label_ids = [labels.index(record.label) for record in records]
        whole = [tokenizer.encode(record.text) for record in records]
        self.token_ids = [ids[:context_length] for ids in whole]
        self.num_truncated = sum(len(ids) > context_length for ids in whole)

    def __len__(self) -> int:
        return len(self.token_ids)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        """-> 输入 (seq,)，目标 (seq,)，int64"""
        inputs = torch.tensor(self.token_ids[index])
        targets = torch.full_like(inputs, IGNORE_INDEX)
        targets[-1] = self.label_ids[index]
        return inputs, targets

    def repeated(self, indices: list[int]) -> "ClassificationDataset":
        """依 indices 取出（可以重复）的样本组成的数据集。"""
        other = copy(self)
        for name in ("texts", "label_ids", "token_ids"):
            setattr(other, name, [getattr(self, name)[index] for index in indices])
        return other

    def place_of(self, index: int) -> str:
        """分成三部分时打乱过，编号在数据文件里找不到，所以用开头的文字指认。"""
        return quote(self.texts[index])


def balanced_indices(label_ids: list[int]) -> list[int]:
    """少的标签重复取，使各个标签的样本一样多。"""
    groups = [[i for i, label in enumerate(label_ids) if label == wanted] for wanted in sorted(set(label_ids))]
    largest = max(map(len, groups))
    return [group[position % len(group)] for group in groups for position in range(largest)]


def build_datasets(split: Split, labels: list[str], tokenizer: Tokenizer, context_length: int) -> list[Dataset]:
    """-> [训练, 验证, 测试]"""
    parts = (split.train, split.validate, split.test)
    return [ClassificationDataset(part, labels, tokenizer, context_length) for part in parts]


def create_loaders(
    datasets: list[ClassificationDataset], settings: TrainingSettings, pad_id: int, is_balanced: bool
) -> list[DataLoader]:
    """-> [训练, 验证, 测试]；训练的每轮打乱，is_balanced 时各个标签一样多。"""
    train, validate, test = datasets
    if is_balanced:
        train = train.repeated(balanced_indices(train.label_ids))
    collate = partial(pad_batch, pad_id=pad_id)
    sampler = EpochSampler(len(train), settings.seed)
    loaders = [create_dataloader(train, settings.batch_size, sampler, collate)]
    return loaders + [create_dataloader(part, settings.batch_size, collate=collate) for part in (validate, test)]


@dataclass(frozen=True)
class Metrics:
    """混淆矩阵和由它算出的各项。"""

    labels: list[str]
    confusion: Tensor  # (标签数, 标签数)：第 i 行第 j 列是真实为 i、判为 j 的条数

    @property
    def accuracy(self) -> float:
        return (self.confusion.diagonal().sum() / self.confusion.sum()).item()

    def of(self, index: int) -> tuple[float, float, float]:
        """第 index 个标签的（精确率, 召回率, F1）；一条也没有判成它时精确率记为 0。"""
        hits = self.confusion[index, index].item()
        predicted, actual = self.confusion[:, index].sum().item(), self.confusion[index].sum().item()
        precision, recall = hits / max(1, predicted), hits / max(1, actual)
        return precision, recall, 2 * hits / max(1, predicted + actual)

    def by_label(self) -> dict[str, dict[str, float]]:
        """{标签: 各项}，给程序读的。"""
        names = ("precision", "recall", "f1")
        return {label: dict(zip(names, self.of(index), strict=True)) for index, label in enumerate(self.labels)}

    def table(self) -> str:
        """给人看的表：每个标签一行。"""
        lines = ["标签  精确率  召回率  F1  条数"]
        for index, label in enumerate(self.labels):
            precision, recall, f1 = self.of(index)
            lines.append(f"{label}  {precision:.1%}  {recall:.1%}  {f1:.3f}  {self.confusion[index].sum().item():,}")
        return "\n".join(lines)


def measure(
    model: nn.Module,
    batches: Iterable[Batch],
    labels: list[str],
    precision: AbstractContextManager = FULL_PRECISION,
) -> Metrics:
    """在若干批上统计；只看目标不是 IGNORE_INDEX 的位置。"""
    count = len(labels)
    device = next(model.parameters()).device

    def count_batch(batch: Batch) -> Tensor:
        inputs, targets = copy_to(device, batch)
        is_labeled = targets != IGNORE_INDEX
        guesses, actual = model(inputs)[is_labeled].argmax(dim=-1).cpu(), targets[is_labeled].cpu()
        return torch.bincount(actual * count + guesses, minlength=count**2).view(count, count)

    with evaluating(model), precision:
        confusion = torch.stack(map_batches(count_batch, batches)).sum(dim=0)
    return Metrics(labels, confusion)


def classify(model: nn.Module, tokenizer: Tokenizer, text: str) -> tuple[str, float]:
    """-> (标签, 概率)；太长时与训练时一样只用开头。"""
    token_ids = tokenizer.encode(text)[: model.cfg.context_length]
    device = next(model.parameters()).device
    probabilities = model.next_logits(torch.tensor([token_ids], device=device)).softmax(dim=-1)[0]
    best = probabilities.argmax().item()
    return model.labels[best], probabilities[best].item()
