"""评估用的样本：取哪几个，指纹是什么。同一组样本上量出的损失才能比较。"""

import hashlib
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from torch.utils.data import DataLoader, Dataset, Subset

from utils.data_loader import create_dataloader

if TYPE_CHECKING:
    from utils.train_utils import Evaluation

EVAL_BATCH = 16  # --eval_iter 的一批是几个样本；与 --batch_size 无关，改了批量，量的还是同样的样本


def evaluation_loader(loader: DataLoader, num_samples: int) -> DataLoader:
    """评估用的固定样本：从整个数据集里均匀取 num_samples 个（不够就是全部），不打乱。"""
    total = len(loader.dataset)
    count = min(total, num_samples)
    indices = [position * total // count for position in range(count)]
    return create_dataloader(Subset(loader.dataset, indices), loader.batch_size, collate=loader.collate_fn)


def digest_of_samples(dataset: Dataset) -> str:
    """全部样本的指纹，16 个十六进制数字；样本是 (输入, 目标) 两个张量。"""
    digest = hashlib.sha256()
    for index in range(len(dataset)):
        for tensor in dataset[index]:
            digest.update(np.int64(len(tensor)).tobytes() + tensor.numpy().tobytes())
    return digest.hexdigest()[:16]


def comparable(records: Sequence["Evaluation"]) -> list["Evaluation"]:
    """与最后一次评估量的是同一组样本的各次，损失可以相比。"""
    return [record for record in records if record.measured_on == records[-1].measured_on]


def best_of(records: Sequence["Evaluation"]) -> "Evaluation":
    """可以相比的各次里，验证损失最低的；一样低就取最早的。"""
    return min(comparable(records), key=lambda record: record.validate_loss)
