"""只算不练：参数在哪里，内存用在哪里，装得下多大的一批。"""

from utils.console import pad, say
from utils.device import available_memory
from utils.memory import largest_batch_size, split_training_bytes
from utils.training_memory import TrainingMemory

NAME_WIDTH = 14


def print_parameters(parts: dict[str, int]) -> None:
    """parts 是 {部件: 参数个数}。"""
    total = sum(parts.values())
    say(f"参数：共 {total:,} 个")
    for name, count in parts.items():
        if count:
            say(f"  {pad(name, NAME_WIDTH)}{count:>15,}  {count / total:6.1%}")


def print_memory(memory: TrainingMemory) -> None:
    """一步训练的内存估计，和现有的内存装得下的最大一批。"""
    shape, kind, batch_size = (memory.cfg, memory.num_parameters), memory.device.type, memory.batch_size
    parts = split_training_bytes(*shape, batch_size, kind, memory.num_trained)
    total = sum(parts.values())
    available = available_memory(memory.device)
    say(f"内存：一批 {batch_size} 个样本约 {_gigabytes(total)}（误差约三成），可用 {_gigabytes(available)}")
    for name, num_bytes in parts.items():
        say(f"  {pad(name, NAME_WIDTH)}{_gigabytes(num_bytes):>15}  {num_bytes / total:6.1%}")
    say(f"装得下的最大一批：约 {largest_batch_size(*shape, kind, available, memory.num_trained):,} 个样本")


def _gigabytes(num_bytes: int) -> str:
    return f"{num_bytes / 1e9:.2f} GB"
