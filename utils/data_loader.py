"""数据：一长串 token 切成窗口，输入和目标错开一位，组成一批一批。"""

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

TRAIN_FRACTION = 0.9  # 前 90 % 训练，后 10 % 验证


def split_text(text: str) -> tuple[str, str]:
    """按位置分成（训练部分, 验证部分）；要在训练词表之前分，验证部分才真的没见过。"""
    boundary = int(len(text) * TRAIN_FRACTION)
    return text[:boundary], text[boundary:]


class WindowDataset(Dataset):
    """第 i 个样本是从 i × stride 开始的窗口；目标比输入晚一位：看到前面的，猜下一个。"""

    def __init__(self, token_ids: Tensor, context_length: int, stride: int):
        self.token_ids, self.context_length, self.stride = token_ids, context_length, stride

    def __len__(self) -> int:
        """完整窗口的个数；窗口还要多一个 token 作最后的目标，末尾不足一窗的不用。"""
        return max(0, (len(self.token_ids) - 1 - self.context_length) // self.stride + 1)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        """-> 输入 (context_length,)，目标 (context_length,)，int64"""
        start = index * self.stride
        window = self.token_ids[start : start + self.context_length + 1].long()
        return window[:-1], window[1:]

    def target_ids(self) -> Tensor:
        """全部窗口的目标依次相连，即评估覆盖到的 token；stride 等于 context_length 时才有意义。"""
        return self.token_ids[1 : 1 + len(self) * self.context_length]


class EpochSampler(Sampler[int]):
    """每轮重新打乱；顺序只取决于 (seed, epoch)，与之前发生过什么无关。"""

    def __init__(self, num_samples: int, seed: int):
        self.num_samples, self.seed, self.epoch = num_samples, seed, 0

    def __len__(self) -> int:
        return self.num_samples

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed((self.seed + 0x9E3779B97F4A7C15 * self.epoch) % 2**63)
        return iter(torch.randperm(self.num_samples, generator=generator).tolist())


def create_dataloader(dataset: Dataset, batch_size: int, sampler: EpochSampler | None = None) -> DataLoader:
    """一批是 (batch, seq) 的输入和目标。不给 sampler 时按原来的顺序；最后不满的一批也不丢。"""
    # DataLoader 每轮要抽一个随机数；给它自己的发生器，才不会动到训练的随机状态
    return DataLoader(dataset, batch_size=batch_size, sampler=sampler, generator=torch.Generator())
