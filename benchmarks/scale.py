"""规模：自带的各种配置在这台机器上每步多久，换成显卡大约多久。"""

import argparse
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median

import psutil

from benchmarks.measure import ROOT, alternate, in_new_process, pooled
from benchmarks.tables import gigabytes, number, spread, table
from benchmarks.train_step import CPU, our_step, time_steps
from model.config import ModelConfig, count_training_flops
from utils.config_file import read_config
from utils.console import hint
from utils.device import choose_dtype
from utils.memory import estimate_training_bytes
from utils.settings import TrainingSettings

MAX_STEP_SECONDS = 60.0  # 估计一步比这还慢的只推算
WARMUP, STEPS = 1, 3
UTILIZATION = 0.4  # 显卡实际用上的算力占标称的几成
# 标称的稠密 bfloat16 算力（TFLOP/s，累加用 float32）和显存（GB），出自 NVIDIA 的白皮书；RTX 3060 由张量核心数和频率算出
GPUS = {"RTX 3060": (25.5, 12), "RTX 4090": (165, 24), "A100 80GB": (312, 80), "H100 SXM": (989, 80)}
FORMULA = (
    "一步的运算量 = 6·N·T + 12·层数·emb_dim·seq·T，T 是一步的 token 数，N 是参加矩阵乘法的参数"
    "（不算位置嵌入；输出层与 token 嵌入共用时算一次），后一项是注意力 (Chowdhery et al. 2022, 附录 B)。"
)


@dataclass(frozen=True)
class Workload:
    """一种配置用自己推荐的批量训练一步。"""

    path: Path
    cfg: ModelConfig
    settings: TrainingSettings

    @classmethod
    def read(cls, path: Path) -> "Workload":
        file = read_config(path, ModelConfig.from_dict)
        return cls(path, file.model, TrainingSettings.from_sources(file.training, argparse.Namespace(), path))

    @property
    def tokens(self) -> int:
        return self.settings.batch_size * self.cfg.context_length

    @property
    def num_parameters(self) -> int:
        return self.cfg.num_parameters

    @property
    def flops(self) -> int:
        """见 FORMULA。"""
        return count_training_flops(self.cfg) * self.tokens

    def memory(self, device_type: str) -> int:
        """估计的内存，字节。"""
        return estimate_training_bytes(self.cfg, self.num_parameters, self.settings.batch_size, device_type)


def run(args: argparse.Namespace) -> str:
    paths = [ROOT / "benchmarks/tiny_config.json"] if args.quick else (ROOT / "configs").glob("*.json")
    workloads = sorted(map(Workload.read, paths), key=lambda workload: workload.flops)
    measured = measure_what_fits(workloads, args.rounds)
    dtype = str(choose_dtype("auto", CPU)).removeprefix("torch.")
    introduction = (
        f"各配置推荐的批量和优化器，默认精度（{dtype}），由小到大逐个量，每种 {args.rounds} 个进程，"
        f"各预热 {WARMUP} 步、计时 {STEPS} 步，中位数（最小–最大）。"
        f"装不下或一步超过 {MAX_STEP_SECONDS:.0f} 秒的标“推算”：时间 = 运算量 ÷ 量过的最大配置的 FLOP/s，"
        "内存按 `utils/memory.py` 估计。"
    )
    on_gpus = (
        f"在显卡上（全部是推算，没有量过）：秒数 = 运算量 ÷（标称的稠密 bfloat16 算力 × {100 * UTILIZATION:.0f} %），"
        "批量不变；小模型填不满显卡，达不到这个比例。内存的估计超过显存的写“装不下”。"
    )
    parts = [introduction, FORMULA, cpu_table(workloads, measured), on_gpus, gpu_table(workloads)]
    return "\n\n".join(parts)


def measure_what_fits(workloads: list[Workload], rounds: int) -> dict[Path, list[dict]]:
    """-> {配置: 各轮的结果}；装不下或太慢的不在其中。"""
    measured = {}
    speed = float("inf")  # 上一个配置的 FLOP/s
    for workload in workloads:
        name = workload.path.name
        fits = workload.memory("cpu") < psutil.virtual_memory().available
        if not fits or workload.flops / speed > MAX_STEP_SECONDS:
            hint(f"{name}：只推算")
            continue
        results = alternate({name: partial(in_new_process, measure, path=str(workload.path))}, rounds)[name]
        measured[workload.path] = results
        speed = workload.flops / median(pooled(results, "seconds"))
    return measured


def cpu_table(workloads: list[Workload], measured: dict[Path, list[dict]]) -> str:
    rows, speed = [], float("nan")
    for workload in workloads:
        if results := measured.get(workload.path):
            seconds = pooled(results, "seconds")
            speed = workload.flops / median(seconds)
            cells = [spread(seconds), gigabytes(max(pooled(results, "peak_bytes")))]
        else:
            seconds = [workload.flops / speed]
            cells = [f"{number(seconds[0])}（推算）", f"{gigabytes(workload.memory('cpu'))}（推算）"]
        shape = f"{workload.settings.batch_size} × {workload.cfg.context_length}"
        rates = [number(workload.tokens / median(seconds)), number(workload.flops / median(seconds) / 1e9)]
        rows.append([f"`{workload.path.name}`", f"{workload.num_parameters / 1e6:.1f}", shape, *cells, *rates])
    header = ["配置", "参数（百万）", "batch × seq", "秒/步", "内存（GB）", "token/s", "GFLOP/s"]
    return table(header, rows)


def gpu_table(workloads: list[Workload]) -> str:
    rows = []
    for workload in workloads:
        cells = [f"`{workload.path.name}`", gigabytes(workload.memory("cuda"))]
        for tera_flops, gigabytes_available in GPUS.values():
            seconds = workload.flops / (tera_flops * 1e12 * UTILIZATION)
            fits = workload.memory("cuda") < gigabytes_available * 1e9
            cells.append(f"{number(1000 * seconds)}" if fits else "装不下")
        rows.append(cells)
    names = [f"{name}（{speed} TFLOP/s，{memory} GB）毫秒/步" for name, (speed, memory) in GPUS.items()]
    return table(["配置", "显存估计（GB）", *names], rows)


def measure(path: str) -> dict:
    """在自己的进程里走几步。-> {"seconds": 各步的秒数}"""
    workload = Workload.read(Path(path))
    dtype = choose_dtype("auto", CPU)
    step = our_step(workload.cfg, workload.settings, dtype, workload.cfg.context_length)
    return {"seconds": time_steps(step, WARMUP, STEPS)}
