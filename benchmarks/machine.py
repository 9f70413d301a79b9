"""在什么机器上量的，用了多少内存。"""

import os
import sys
from datetime import date
from importlib.metadata import PackageNotFoundError, version

import psutil

from utils import memory
from utils.device import processor_name

PACKAGES = ("torch", "transformers")


def describe_machine() -> str:
    """一行：处理器、核数、库的版本、日期。"""
    libraries = "，".join(f"{name} {found}" for name in PACKAGES if (found := _version(name)))
    return f"{processor_name()}，{_num_cores()} 核，{libraries}，{date.today()}。"


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _num_cores() -> int:
    """本进程用得上的核数。"""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def peak_bytes() -> int:
    """本进程至今占用内存的最高点。"""
    if sys.platform == "darwin":
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # macOS 以字节计
    return memory.peak_bytes(os.getpid())


def resident_bytes() -> int:
    """本进程此刻的常驻内存。"""
    return psutil.Process().memory_info().rss
