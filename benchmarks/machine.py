"""在什么机器上量的，用了多少内存。"""

import os
import sys
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import psutil

from utils.device import processor_name

PACKAGES = ("torch", "transformers")
STATUS = Path("/proc/self/status")


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
    if sys.platform == "win32":
        return psutil.Process().memory_info().peak_wset
    if STATUS.exists():  # Linux 的 ru_maxrss 从父进程的峰值算起，VmHWM 只算自己的
        return int(STATUS.read_text(encoding="ascii").split("VmHWM:")[1].split()[0]) * 1024
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # macOS 以字节计


def resident_bytes() -> int:
    """本进程此刻的常驻内存。"""
    return psutil.Process().memory_info().rss
