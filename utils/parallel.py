"""一个进程或几个进程怎样一起训练同一个模型：样本怎样分，梯度怎样合。Trainer 不知道用的是哪一种。

一次更新用 batch_size × accumulation_steps 个样本，不论几个进程；各进程各算一份，梯度相加，便等于一个进程算全部。
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from itertools import islice

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader

from utils import processes
from utils.cross_entropy import IGNORE_INDEX
from utils.data_loader import EpochSampler, with_batches
from utils.settings import TrainingSettings
from utils.training_memory import TrainingMemory


class OneProcess:
    """一个进程：样本全部自己算，梯度不必交换。"""

    mode = "one"

    def create(self, make_model: Callable[[], nn.Module], device: torch.device) -> nn.Module:
        """make_model 建立的、随机初始化的模型，在 device 上。"""
        return make_model().to(device)

    def place(self, model: nn.Module, device: torch.device) -> nn.Module:
        """把现成的模型放到 device 上。"""
        return model.to(device)

    def own_memory(self, memory: TrainingMemory) -> TrainingMemory:
        """memory 是一个进程做全部时的；改成每个进程自己要的。"""
        return memory

    def wrap(self, model: nn.Module) -> None:
        """训练之前：要训练的参数已经选好，优化器还没有建立。之后 self.forward 是训练时的前向。"""
        self.forward = model

    def own_batches(self, loader: DataLoader, accumulation_steps: int) -> tuple[DataLoader, int]:
        """-> (这个进程要算的各批, 几批更新一次参数)"""
        return loader, accumulation_steps

    def exchanging(self, is_last: bool) -> AbstractContextManager:
        """里面的前向和反向算的是这一次更新的最后一批时，才与别的进程交换梯度。"""
        return nullcontext()

    def whole_norms(self, norms: list[Tensor]) -> list[Tensor]:
        """由各个进程那一份的范数，得到整个的。"""
        return norms

    def writing_together(self, model: nn.Module) -> AbstractContextManager:
        """里面用 model 写同一段文字。"""
        return nullcontext()


class Replicated(OneProcess):
    """DistributedDataParallel：每个进程有完整的模型，梯度在反向的同时相加。"""

    mode = "ddp"

    def own_memory(self, memory: TrainingMemory) -> TrainingMemory:
        return replace(memory, batch_size=min(memory.settings.batch_size, self._own_samples(memory.settings)))

    def _own_samples(self, settings: TrainingSettings) -> int:
        """一次更新里，一个进程至多算几个样本。"""
        return -(-settings.batch_size * settings.accumulation_steps // processes.world_size())

    def wrap(self, model: nn.Module) -> None:
        device = next(model.parameters()).device
        device_ids = [device.index] if device.type == "cuda" else None
        self.forward = DistributedDataParallel(
            model, device_ids=device_ids, forward_sync_buffers=False, gradient_as_bucket_view=True
        )
        self.forward.register_comm_hook(None, _add_gradients)

    def own_batches(self, loader: DataLoader, accumulation_steps: int) -> tuple[DataLoader, int]:
        shares = OwnShares(loader.sampler, loader.batch_size, accumulation_steps)
        collate = CollateOrEmpty(loader.collate_fn)
        return with_batches(loader, shares, collate), shares.num_batches(loader.batch_size * accumulation_steps)

    def exchanging(self, is_last: bool) -> AbstractContextManager:
        return nullcontext() if is_last else self.forward.no_sync()


MODES = ("ddp", "fsdp")


def _add_gradients(state: object, bucket: dist.GradBucket) -> torch.futures.Future[Tensor]:
    """梯度相加而不是平均：各进程的损失已经按整批的 token 数加权。"""
    work = dist.all_reduce(bucket.buffer(), async_op=True)
    return work.get_future().then(lambda future: future.value()[0])


class OwnShares:
    """一批一批的样本编号，只有这个进程的那一份：每次更新的样本依次序分成 world_size 段，第 rank 段再切成几批。

    批数在各个进程上相同，每批不超过 batch_size；样本不够分时，有的批是空的。
    """

    def __init__(self, sampler: EpochSampler, batch_size: int, accumulation_steps: int):
        self.sampler, self.batch_size, self.update_size = sampler, batch_size, batch_size * accumulation_steps
        self.rank, self.world_size = processes.rank(), processes.world_size()

    def num_batches(self, num_samples: int) -> int:
        """num_samples 个样本分给各个进程，每个要算几批。"""
        largest_share = -(-num_samples // self.world_size)
        return -(-largest_share // self.batch_size)

    def __iter__(self) -> Iterator[list[int]]:
        indices = iter(self.sampler)
        while update := list(islice(indices, self.update_size)):
            (share,) = _cut(update, self.world_size, [self.rank])
            count = self.num_batches(len(update))
            yield from _cut(share, count, range(count))


def _cut(items: list[int], count: int, numbers: Iterable[int]) -> Iterator[list[int]]:
    """items 依次序分成 count 段，长短至多差一，交出其中第 numbers 段。"""
    ends = [len(items) * number // count for number in range(count + 1)]
    return (items[ends[number] : ends[number + 1]] for number in numbers)


class CollateOrEmpty:
    """与 collate 相同；一个样本也没有时是一个不计损失的 token：照样前向和反向，梯度是 0。"""

    def __init__(self, collate: Callable[[list], tuple[Tensor, Tensor]]):
        self.collate = collate

    def __call__(self, samples: list) -> tuple[Tensor, Tensor]:
        if samples:
            return self.collate(samples)
        return torch.zeros(1, 1, dtype=torch.long), torch.full((1, 1), IGNORE_INDEX)
