"""内存够不够训练：开始之前估计，训练中真的不够时说出改哪些参数能行。"""

import dataclasses
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils.data import Dataset

from utils.device import available_memory, check_memory
from utils.errors import RunError, is_out_of_memory
from utils.memory import estimate_training_bytes, largest_batch_size
from utils.settings import TrainingSettings


@dataclass(frozen=True)
class TrainingMemory:
    """一次训练的模型、设置和设备。cfg 的 context_length 是最长的样本，vocab_size 是输出几个分数。"""

    cfg: Any
    settings: TrainingSettings
    device: torch.device
    num_parameters: int
    num_trained: int  # 其中训练几个；冻结的没有梯度和动量
    batch_size: int = 0  # 一个进程一批算几个样本；0 表示设置里的 batch_size

    def __post_init__(self):
        object.__setattr__(self, "batch_size", self.batch_size or self.settings.batch_size)

    @classmethod
    def of_model(
        cls, model: nn.Module, datasets: Sequence[Dataset], settings: TrainingSettings, device: torch.device
    ) -> "TrainingMemory":
        """微调：一批只补齐到其中最长的样本，头可能只有几个分数，参数可能大半是冻结的。"""
        longest = max(len(dataset[index][0]) for dataset in datasets for index in range(len(dataset)))
        cfg = dataclasses.replace(model.cfg, context_length=longest, vocab_size=model.out_head.out_features)
        sizes = [(parameter.numel(), parameter.requires_grad) for parameter in model.parameters()]
        trained = sum(size for size, is_trained in sizes if is_trained)
        return cls(cfg, settings, device, sum(size for size, _ in sizes), trained)

    def check(self) -> None:
        """估计要用的内存超过现有的，就抛出 RunError。"""
        kind, sizes = self.device.type, (self.num_parameters, self.num_trained)
        needed = estimate_training_bytes(self.cfg, sizes[0], self.batch_size, kind, sizes[1])
        fitting = largest_batch_size(self.cfg, sizes[0], kind, available_memory(self.device), sizes[1])
        example = f"，如 {self._smaller_batch(fitting)}" if fitting else "；现在一批一个样本也装不下"
        check_memory(needed, self.device, f"减小 emb_dim / num_layers / --batch_size{example}。")

    def _smaller_batch(self, largest: int) -> str:
        """换成不超过 largest 的小批，多累积几次，一次更新用的样本数不变。"""
        samples = self.settings.batch_size * self.settings.accumulation_steps
        batch_size = next(size for size in range(min(largest, samples), 0, -1) if samples % size == 0)
        return f"--batch_size {batch_size} --accumulation_steps {samples // batch_size}"

    @contextmanager
    def explain_lack(self) -> Iterator[None]:
        """里面的计算内存不够时，换成说明怎么办的 RunError。"""
        try:
            yield
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            reason, advice = "训练一步时不够用", self._advice()
        else:
            return
        raise RunError("内存", reason, advice)  # 在 except 之外：出错的那一步占的内存已经放开

    def _advice(self) -> str:
        """实际用的比估计的多，所以只按现在的一半建议。"""
        if half := self.batch_size // 2:
            smaller = f"改用 {self._smaller_batch(half)}，参数的更新不变"
        else:
            smaller = f"减小配置里的 context_length（现在是 {self.cfg.context_length}），或换更小的配置"
        return f"{smaller}；存过检查点的话，再加 --resume 就能接着训练。"
