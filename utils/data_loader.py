"""数据：一长串 token 切成窗口，输入和目标错开一位，组成一批一批。"""

from collections.abc import Callable, Iterable, Iterator

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import DataLoader, Dataset, Sampler

from utils.cross_entropy import IGNORE_INDEX
from utils.keyed_order import KeyedOrder
from utils.token_sequence import TokenSequence

TRAIN_FRACTION = 0.9  # 前 90 % 训练，后 10 % 验证
RELEASE_WINDOWS = 100  # 内存映射的语料每取这么多个窗口，就把读过的页还给系统一次：随机取一处，系统会映射周围多达 1 MB
ORDER_BLOCK = 65_536  # 打乱的顺序一次取出这么多个，几百万个窗口也不必变成 Python 列表
STORED_ORDER = 1 << 23  # 至多这么多个样本时，打乱的顺序整个存下来（64 MB）；1 GB 的语料还在它之内


def split_point(num_characters: int) -> int:
    """前多少个字符用于训练，其余用于验证；要在训练词表之前分，验证部分才真的没见过。"""
    return int(num_characters * TRAIN_FRACTION)


class WindowDataset(Dataset):
    """第 i 个样本是从 i × stride 开始的窗口；目标比输入晚一位：看到前面的，猜下一个。

    token_ids 映射着文件时，release() 归还它读过的页。
    """

    def __init__(
        self,
        token_ids: Tensor | TokenSequence,
        context_length: int,
        stride: int,
        release: Callable[[], None] = lambda: None,
    ):
        self.token_ids, self.context_length, self.stride = token_ids, context_length, stride
        self._release, self._num_read = release, 0

    def __len__(self) -> int:
        """完整窗口的个数；窗口还要多一个 token 作最后的目标，末尾不足一窗的不用。"""
        return max(0, (len(self.token_ids) - 1 - self.context_length) // self.stride + 1)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        """-> 输入 (context_length,)，目标 (context_length,)，int64"""
        self._num_read += 1
        if self._num_read % RELEASE_WINDOWS == 0:
            self._release()
        start = index * self.stride
        window = self.token_ids[start : start + self.context_length + 1].long()
        return window[:-1], window[1:]

    def place_of(self, index: int) -> str:
        """第 index 个样本在语料的什么地方，给人看的。"""
        return f"第 {index * self.stride:,} 个 token "

    def target_ids(self) -> Tensor | TokenSequence:
        """全部窗口的目标依次相连，即评估覆盖到的 token；stride 等于 context_length 时才有意义。"""
        return self.token_ids[1 : 1 + len(self) * self.context_length]


class EpochSampler(Sampler[int]):
    """每轮换一个起点再打乱；顺序只取决于 (seed, epoch)，与之前发生过什么无关。

    从 num_starts 个可能的开头里，每隔 stride 取一个。起点每轮不同，同一段文字便不会总在同样的地方切断。
    """

    def __init__(self, num_starts: int, seed: int, stride: int = 1):
        self.num_starts, self.seed, self.stride = num_starts, seed, stride
        self.epoch, self.done = 0, 0  # 第几轮；这一轮里前 done 个已经用过，从下一个继续

    def __len__(self) -> int:
        """每轮的样本数；起点错开时末尾可能少一个，所以一律不算它。"""
        return max(min(1, self.num_starts), self.num_starts // self.stride)

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed((self.seed + 0x9E3779B97F4A7C15 * self.epoch) % 2**63)
        blocks = self._order(generator)
        slack = self.num_starts - (len(self) - 1) * self.stride  # 最后一个样本后面还空着几个开头
        phase = torch.randint(min(self.stride, slack), (), generator=generator).item() if len(self) else 0
        return (phase + self.stride * index for block in blocks for index in block.tolist())

    def _order(self, generator: torch.Generator) -> Iterable[Tensor | np.ndarray]:
        """打乱的顺序，从第 done 个起，一块一块的。太长就不存下来，现算；两种顺序不同，但同样多的样本总是同一种。"""
        if len(self) > STORED_ORDER:
            return KeyedOrder(len(self), f"{self.seed} {self.epoch}").blocks_from(self.done)
        return torch.randperm(len(self), generator=generator)[self.done :].split(ORDER_BLOCK)


def pad_batch(samples: list[tuple[Tensor, Tensor]], pad_id: int) -> tuple[Tensor, Tensor]:
    """长短不一的样本在右边补齐到这一批里最长的：输入补 pad_id，目标补 IGNORE_INDEX，不计损失。

    注意力只看前面，右边补什么都影响不到真正的 token。-> (batch, seq) 两个
    """
    inputs, targets = zip(*samples, strict=True)
    return (
        pad_sequence(inputs, batch_first=True, padding_value=pad_id),
        pad_sequence(targets, batch_first=True, padding_value=IGNORE_INDEX),
    )


def create_dataloader(
    dataset: Dataset, batch_size: int, sampler: EpochSampler | None = None, collate: Callable | None = None
) -> DataLoader:
    """一批是 (batch, seq) 的输入和目标。不给 sampler 时按原来的顺序；最后不满的一批也不丢。

    collate 把若干样本合成一批，样本一样长时不用给。
    """
    # DataLoader 每轮要抽一个随机数；给它自己的发生器，才不会动到训练的随机状态
    generator = torch.Generator()
    # 数据取自内存映射，一批只要几十微秒，不用另开进程；锁页的内存才能边算边复制到显卡
    pin_memory = torch.cuda.is_available()
    options = {"generator": generator, "pin_memory": pin_memory, "collate_fn": collate}
    return DataLoader(dataset, batch_size, sampler=sampler, **options)


def batches_at(loader: DataLoader, numbers: Iterable[int]) -> DataLoader:
    """loader 的第 numbers 批（从 0 数起），只读这几批的样本；loader 要按原来的次序。"""
    indices = list(loader.batch_sampler)
    return with_batches(loader, [indices[number] for number in numbers])


def with_batches(loader: DataLoader, batches: Iterable[list[int]], collate: Callable | None = None) -> DataLoader:
    """与 loader 一样，但每批取 batches 说的那些样本。"""
    options = {"generator": loader.generator, "pin_memory": loader.pin_memory}
    return DataLoader(loader.dataset, batch_sampler=batches, collate_fn=collate or loader.collate_fn, **options)
