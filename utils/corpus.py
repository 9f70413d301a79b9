"""语料：一篇文本怎样变成训练和验证两串 token，以及各有多少字。"""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from utils.data_loader import EpochSampler, WindowDataset, create_dataloader, split_text
from utils.errors import UserError
from utils.settings import TrainingSettings
from utils.text_utils import Tokenizer, build_tokenizer


@dataclass(frozen=True)
class Corpus:
    """两部分各自分词，验证部分的任何一个字都没有参与训练词表。"""

    path: Path
    tokenizer: Tokenizer
    train_text: str
    validate_text: str
    train_ids: Tensor  # (训练 token 数,) int32
    validate_ids: Tensor  # (验证 token 数,) int32

    @classmethod
    def from_text(cls, text: str, tokenizer_spec: dict, path: Path) -> "Corpus":
        if not text.strip():
            raise UserError(path, "没有内容", "换一份语料。")
        train_text, validate_text = split_text(text)
        tokenizer = build_tokenizer(tokenizer_spec, train_text)
        ids = [torch.tensor(tokenizer.encode(part), dtype=torch.int32) for part in (train_text, validate_text)]
        return cls(path, tokenizer, train_text, validate_text, *ids)

    @property
    def characters_per_token(self) -> float:
        """每个 token 平均几个字：越大，同样长的上下文看得越远。"""
        return (len(self.train_text) + len(self.validate_text)) / (len(self.train_ids) + len(self.validate_ids))

    def create_loaders(self, context_length: int, settings: TrainingSettings) -> tuple[DataLoader, DataLoader]:
        """-> (训练, 验证)；训练每轮打乱，验证按原文顺序、窗口不重叠、一个不丢。"""
        train = WindowDataset(self.train_ids, context_length, settings.stride or context_length)
        validate = WindowDataset(self.validate_ids, context_length, context_length)
        for name, part, ids in (("训练", train, self.train_ids), ("验证", validate, self.validate_ids)):
            if not len(part):
                reason = f"{name}部分只有 {len(ids)} 个 token，至少需要 {context_length + 1} 个"
                raise UserError(self.path, reason, "减小配置里的 context_length，或换更长的语料。")
        sampler = EpochSampler(len(train), settings.seed)
        train_loader = create_dataloader(train, settings.batch_size, sampler)
        return train_loader, create_dataloader(validate, settings.batch_size)
