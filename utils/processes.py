"""这个进程是一次训练里的第几个：torchrun 用环境变量告诉每个进程。不引用 torch。道理见 docs/多机训练.md。"""

import functools
import os
import socket
from collections.abc import Callable
from typing import Any

NEEDED = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
OF_THIS_MACHINE = ("LOCAL_RANK", "LOCAL_WORLD_SIZE")  # 有的启动器不设


def _number(name: str, default: int) -> int:
    """环境变量的值；不是由 torchrun 启动的就是 default。"""
    return int(os.environ.get(name, default)) if is_launched() else default


def is_launched() -> bool:
    """是不是由 torchrun（或别的设好这些环境变量的启动器）启动的。"""
    return all(os.environ.get(name) for name in NEEDED)


def missing_variables() -> list[str]:
    """几个进程时还要知道的、启动器却没有设的环境变量。"""
    return [name for name in OF_THIS_MACHINE if not os.environ.get(name)] if world_size() > 1 else []


def world_size() -> int:
    """一共几个进程；直接用 python 启动的是 1。"""
    return _number("WORLD_SIZE", 1)


def rank() -> int:
    """这是第几个进程，从 0 数起。"""
    return _number("RANK", 0)


def local_rank() -> int:
    """这是这台机器上的第几个进程。"""
    return _number("LOCAL_RANK", 0)


def num_on_this_machine() -> int:
    """这台机器上有几个进程。"""
    return _number("LOCAL_WORLD_SIZE", 1)


def is_under_torchrun() -> bool:
    """父进程是 torchrun，出了事它会重新启动全部进程 (--max_restarts)。"""
    return is_launched() and "TORCHELASTIC_RESTART_COUNT" in os.environ


def is_main() -> bool:
    """只有进程 0 说话、写文件；只有一个进程时就是它自己。"""
    return rank() == 0


def spans_machines() -> bool:
    return num_on_this_machine() < world_size()


def name() -> str:
    """给人看的，哪个进程。"""
    return f"进程 {rank()}（{socket.gethostname()}，PID {os.getpid()}）"


def on_main(function: Callable) -> Callable:
    """只在进程 0 上做；别的进程什么也不做，返回 None。"""

    @functools.wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        return function(*args, **kwargs) if is_main() else None

    return wrapper
