"""训练要用多少内存：开始之前就算出来，装不下的不必试；实际用了多少，看进程的最高点。"""

import contextlib
import ctypes
from pathlib import Path
from typing import Any

import psutil

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # glibc 的 malloc.h 里的编号
ACTIVATIONS_PER_LAYER = 16  # 每层为反向传播留下的激活，以 (batch, seq, emb_dim) 为单位，4 倍宽的前馈占一半
ATTENTION_BLOCK = 128  # 同 model/attention.py 的 BLOCK：一块查询只算它们看得见的那一截
SCORES_COPIES = 3  # 注意力表的 softmax、dropout 的结果和掩码、反向的梯度；融合内核不写出这张表
LOGITS_COPIES = 3  # 分数、就地变成梯度的 log-softmax、乘上比例的梯度


def keep_freed_memory() -> None:
    """让 glibc 留着释放的大块内存：训练每步都要同样大的张量，还给系统再要回来，时间就花在缺页上。

    应在建立第一个大张量之前调用；别的系统没有 mallopt，什么也不做。
    """
    with contextlib.suppress(OSError, AttributeError, TypeError):
        mallopt = ctypes.CDLL(None).mallopt
        _ = mallopt(M_MMAP_THRESHOLD, 1 << 30) or mallopt(M_MMAP_THRESHOLD, 32 << 20)  # 旧的 glibc 最多到 32 MB
        mallopt(M_TRIM_THRESHOLD, -1)  # 一点也不还


def return_freed_memory() -> None:
    """与 keep_freed_memory 相反：释放的大块立刻还给系统，慢一些。FSDP 的各组凑齐又放掉，留着的碎片会有几倍大。"""
    with contextlib.suppress(OSError, AttributeError, TypeError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(M_MMAP_THRESHOLD, 1 << 20)
        mallopt(M_TRIM_THRESHOLD, 1 << 20)


def estimate_generation_bytes(cfg: Any, num_parameters: int, bytes_per_weight: int = 4) -> int:
    """生成时的内存（字节）：权重，以及 float32 的 KV 缓存、RoPE 的正弦和余弦。"""
    rope = 4 * 2 * cfg.head_dim
    return bytes_per_weight * num_parameters + cfg.context_length * (cache_bytes_per_token(cfg) + rope)


def cache_bytes_per_token(cfg: Any) -> int:
    """KV 缓存里一个 token 占的字节：每层一个键、一个值，float32。"""
    return 4 * 2 * cfg.num_layers * cfg.num_kv_heads * cfg.head_dim


def estimate_training_bytes(
    cfg: Any, num_parameters: int, batch_size: int, device_type: str = "cuda", num_trained: int | None = None
) -> int:
    """一步训练的内存峰值（字节），只取大头，误差约三成；参数见 split_training_bytes。"""
    return sum(split_training_bytes(cfg, num_parameters, batch_size, device_type, num_trained).values())


def split_training_bytes(
    cfg: Any, num_parameters: int, batch_size: int, device_type: str, num_trained: int | None = None
) -> dict[str, int]:
    """{用途: 字节数}；num_trained 是要训练的参数个数，默认全部，冻结的没有梯度和动量。

    CPU 上有 dropout 时注意力照定义分块计算 (model/attention.py)，要留下每一层 (batch, num_heads, seq, seq) 的表的大半。
    """
    tokens = batch_size * cfg.context_length
    num_trained = num_parameters if num_trained is None else num_trained
    keeps_scores = device_type == "cpu" and cfg.drop_rate > 0 and cfg.num_kv_heads == cfg.num_heads
    visible = (cfg.context_length + min(ATTENTION_BLOCK, cfg.context_length)) / 2  # 一行平均算这么多个
    scores = round(tokens * visible) * cfg.num_heads * cfg.num_layers * SCORES_COPIES * 4 * keeps_scores
    return {
        "权重": num_parameters * 4,
        "梯度": num_trained * 4,
        "优化器": num_trained * 8,
        "激活": tokens * cfg.emb_dim * cfg.num_layers * ACTIVATIONS_PER_LAYER * 4 + scores,
        "分数": tokens * cfg.vocab_size * LOGITS_COPIES * 4,
    }


def largest_batch_size(
    cfg: Any, num_parameters: int, device_type: str, available: int, num_trained: int | None = None
) -> int:
    """available 字节装得下的最大的一批有几个样本；一个也装不下则为 0。"""
    fixed = estimate_training_bytes(cfg, num_parameters, 0, device_type, num_trained)
    per_sample = estimate_training_bytes(cfg, num_parameters, 1, device_type, num_trained) - fixed
    return max(0, (available - fixed) // per_sample)


def peak_bytes(pid: int) -> int:
    """进程至今占用内存的最高点；进程已经结束则为 0。macOS 不记别的进程的最高点，得到的是此刻的，要多看几次。"""
    status = Path(f"/proc/{pid}/status")
    try:
        if status.exists():  # Linux 的 ru_maxrss 从父进程的峰值算起，VmHWM 只算自己的
            return int(status.read_text(encoding="utf-8", errors="replace").split("VmHWM:")[1].split()[0]) * 1024
        info = psutil.Process(pid).memory_info()
        return getattr(info, "peak_wset", info.rss)  # 前一个只有 Windows 有
    except (OSError, IndexError, psutil.Error):
        return 0
