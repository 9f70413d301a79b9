"""内存够不够训练：开始之前估计，训练中真的不够时说出改哪些参数能行。"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from utils.device import available_memory, check_memory
from utils.errors import RunError, is_out_of_memory
from utils.memory import estimate_training_bytes, largest_batch_size
from utils.settings import TrainingSettings


@dataclass(frozen=True)
class TrainingMemory:
    """一次训练的模型、设置和设备。"""

    cfg: Any
    num_parameters: int
    settings: TrainingSettings
    device: torch.device

    def check(self) -> None:
        """估计要用的内存超过现有的，就抛出 RunError。"""
        settings, kind = self.settings, self.device.type
        needed = estimate_training_bytes(self.cfg, self.num_parameters, settings.batch_size, kind)
        fitting = largest_batch_size(self.cfg, self.num_parameters, kind, available_memory(self.device))
        example = f"，如 {self._smaller_batch(fitting)}" if fitting else "；现在一批一个样本也装不下"
        check_memory(needed, self.device, f"减小 emb_dim / num_layers / --batch_size{example}。")

    def _smaller_batch(self, batch_size: int) -> str:
        """换成小批，多累积几次，一次更新用的样本数不变。"""
        samples = self.settings.batch_size * self.settings.accumulation_steps
        return f"--batch_size {batch_size} --accumulation_steps {math.ceil(samples / batch_size)}"

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
        """估计会偏小，所以至多建议到现在的一半。"""
        half = self.settings.batch_size // 2
        if not half:
            smaller = f"减小配置里的 context_length（现在是 {self.cfg.context_length}），或换更小的配置"
        else:
            fitting = largest_batch_size(self.cfg, self.num_parameters, self.device.type, available_memory(self.device))
            smaller = f"改用 {self._smaller_batch(max(1, min(half, fitting)))}，参数的更新不变"
        return f"{smaller}；已有的检查点都还在，加 --resume 就能接着训练。"
