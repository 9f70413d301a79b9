"""在什么机器上量的，用了多少内存。"""

import os
import platform
import sys
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import psutil

PACKAGES = ("torch", "transformers")


def describe_machine() -> str:
    """一行：处理器、核数、库的版本、日期。"""
    libraries = "，".join(f"{name} {found}" for name in PACKAGES if (found := _version(name)))
    return f"{_processor()}，{_num_cores()} 核，{libraries}，{date.today()}。"


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _processor() -> str:
    """处理器型号；Linux 之外取系统报告的名字。"""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _num_cores() -> int:
    """本进程用得上的核数。"""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def peak_bytes() -> int:
    """本进程至今占用内存的最高点。"""
    if sys.platform == "win32":
        return psutil.Process().memory_info().peak_wset
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # macOS 以字节计，Linux 以 KB 计


def resident_bytes() -> int:
    """本进程此刻的常驻内存。"""
    return psutil.Process().memory_info().rss
