"""几个进程时用哪种做法：样本和梯度怎样分，检查点怎样存。FSDP 载入要半秒，用到才载入。"""

from pathlib import Path

import torch

from utils import processes
from utils.checkpoint import Checkpoints
from utils.parallel import OneProcess, Replicated
from utils.parallel_checkpoint import ReplicatedCheckpoints


def build_parallel(mode: str, dtype: torch.dtype) -> OneProcess:
    """mode 是 MODES 之一，dtype 是矩阵乘法的精度；只有一个进程时都一样。"""
    if processes.world_size() == 1:
        return OneProcess()
    if mode == "ddp":
        return Replicated()
    from utils.fsdp import Sharded

    return Sharded(dtype)


def build_checkpoints(mode: str, folder: Path) -> Checkpoints:
    """mode 是 OneProcess 等的 mode。"""
    if mode == "fsdp":
        from utils.fsdp_checkpoint import ShardedCheckpoints

        return ShardedCheckpoints(folder)
    return ReplicatedCheckpoints(folder) if mode == "ddp" else Checkpoints(folder)
