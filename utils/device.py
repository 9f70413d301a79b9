"""设备和精度：在哪里算、用几位浮点数算。"""

import contextlib
import platform
from pathlib import Path

import psutil
import torch

from utils import processes
from utils.errors import RunError, UserError

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def choose_device(name: str) -> torch.device:
    """auto 依次挑 CUDA、MPS、CPU；点名要的设备不存在时抛出 UserError。"""
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        name = next(kind for kind, is_available in available.items() if is_available)
    if not available[name]:
        raise UserError("--device", f"未检测到可用的 {name.upper()}", "用 --device cpu 或 --device auto。")
    if name == "cuda":
        torch.set_float32_matmul_precision("high")  # 要求 float32 时允许 TF32
        return _own_gpu()
    return torch.device(name)


def _own_gpu() -> torch.device:
    """几个进程一起训练时，每个用一块显卡；不够分就抛出 UserError。"""
    if not processes.is_launched():
        return torch.device("cuda")
    count, needed = torch.cuda.device_count(), processes.num_on_this_machine()
    if needed > count:
        reason = f"这台机器有 {count} 块显卡，却启动了 {needed} 个进程"
        raise UserError("--nproc_per_node", reason, f"改成 {count}，或用 --device cpu。")
    device = torch.device("cuda", processes.local_rank())
    torch.cuda.set_device(device)
    return device


def choose_dtype(name: str, device: torch.device) -> torch.dtype:
    """auto 在硬件原生支持 bfloat16 的地方用 bfloat16，其余用 float32。"""
    if name != "auto":
        return DTYPES[name]
    return torch.bfloat16 if _has_fast_bfloat16(device) else torch.float32


def _has_fast_bfloat16(device: torch.device) -> bool:
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return device.type == "cpu" and torch.cpu._is_avx512_bf16_supported()


def autocast(device: torch.device, dtype: torch.dtype) -> contextlib.AbstractContextManager:
    """矩阵乘法用 dtype，权重和优化器状态仍是 float32。"""
    if dtype == torch.float32:
        return contextlib.nullcontext()
    return torch.autocast(device.type, dtype=dtype)


def describe_device(device: torch.device) -> str:
    """给人看的设备名。"""
    if device.type == "cuda":
        return f"cuda（{torch.cuda.get_device_name(device)}）"
    return f"cpu（{torch.get_num_threads()} 线程）" if device.type == "cpu" else device.type


def processor_name() -> str:
    """处理器型号；Linux 之外取系统报告的名字。"""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def available_memory(device: torch.device) -> int:
    """设备上还有多少内存（字节）。"""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return psutil.virtual_memory().available // processes.num_on_this_machine()  # 一台机器上的各个进程平分


def check_memory(num_bytes: int, device: torch.device, advice: str) -> None:
    """估计要用的内存超过现有的，就在开始之前抛出 RunError。"""
    available = available_memory(device)
    if num_bytes > available:
        need, have = (f"{size / 1e9:.1f} GB" for size in (num_bytes, available))
        raise RunError("内存", f"预计需要 {need}，可用 {have}", advice)
