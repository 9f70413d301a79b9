"""训练一步要多久、用多少内存：前向、反向、梯度裁剪、AdamW 全部在内。"""

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median

import torch
from torch.utils.data import DataLoader

from benchmarks import peer
from benchmarks.measure import ROOT, alternate, in_new_process, pooled
from benchmarks.tables import gigabytes, number, ratio, spread, table
from model.config import ModelConfig
from model.language_model import LanguageModel
from utils.config_file import read_config
from utils.data_loader import WindowDataset, create_dataloader
from utils.device import DTYPES, autocast, choose_dtype
from utils.memory import keep_freed_memory
from utils.optimizers import build_optimizers
from utils.settings import TrainingSettings
from utils.train_utils import Trainer

CPU = torch.device("cpu")
SEED = 123
OURS, THEIRS = "PocketLLM", "transformers"


@dataclass(frozen=True)
class Plan:
    config: Path
    shapes: tuple[tuple[int, int], ...]  # 几种 (batch, seq)
    warmup: int  # 每轮先走几步不计时
    steps: int  # 每轮计时几步


FULL = Plan(ROOT / "configs/gpt2_config_124M.json", ((4, 256), (2, 1024)), warmup=2, steps=3)
QUICK = Plan(ROOT / "benchmarks/tiny_config.json", ((2, 32),), warmup=1, steps=2)


def run(args: argparse.Namespace) -> str:
    plan = QUICK if args.quick else FULL
    variants = {}
    common = {"config": str(plan.config), "warmup": plan.warmup, "steps": plan.steps}
    for shape in plan.shapes:
        for who in STEPS:
            for dtype in DTYPES:
                options = {"who": who, "dtype": dtype, "shape": shape, **common}
                variants[label(who, dtype, shape)] = partial(in_new_process, measure, **options)
    results = alternate(variants, args.rounds)
    return "\n\n".join(
        [
            f"`{plan.config.name}`，随机权重，每个对象 {args.rounds} 轮，轮流进行，每轮一个新的进程，"
            f"预热 {plan.warmup} 步，计时 {plan.steps} 步。秒数是中位数（最小–最大），内存是进程的最高点。",
            step_table(plan, results),
            "同一次运行里，transformers 每步的秒数除以 PocketLLM 的：",
            ratio_table(plan, results),
        ]
    )


def label(who: str, dtype: str, shape: tuple[int, int]) -> str:
    return f"{who} {dtype}，{shape[0]} × {shape[1]}"


def step_table(plan: Plan, results: dict[str, list[dict]]) -> str:
    rows = []
    for shape in plan.shapes:
        for who in STEPS:
            for dtype in DTYPES:
                measured = results[label(who, dtype, shape)]
                seconds = pooled(measured, "seconds")
                peer_seconds = pooled(results[label(THEIRS, dtype, shape)], "seconds")
                speed = number(shape[0] * shape[1] / median(seconds))
                memory = gigabytes(max(pooled(measured, "peak_bytes")))
                cells = [f"{shape[0]} × {shape[1]}", who, dtype, spread(seconds), speed]
                rows.append([*cells, ratio(peer_seconds, seconds), memory])
    header = ["batch × seq", "程序", "精度", "秒/步", "token/s", "与同精度的 transformers 之比", "内存（GB）"]
    return table(header, rows)


def ratio_table(plan: Plan, results: dict[str, list[dict]]) -> str:
    default = str(choose_dtype("auto", CPU)).removeprefix("torch.")
    pairs = [(default, "float32"), (default, "bfloat16"), ("float32", "float32")]
    rows = []
    for shape in plan.shapes:
        cells = [f"{shape[0]} × {shape[1]}"]
        for ours, theirs in pairs:
            slow, fast = (results[label(*pair, shape)] for pair in ((THEIRS, theirs), (OURS, ours)))
            cells.append(ratio(pooled(slow, "seconds"), pooled(fast, "seconds")))
        rows.append(cells)
    names = [f"默认精度（{default}）对 float32", f"默认精度（{default}）对 bfloat16", "float32 对 float32"]
    return table(["batch × seq", *names], rows)


def measure(who: str, config: str, dtype: str, shape: list[int], warmup: int, steps: int) -> dict:
    """在自己的进程里走几步。-> {"seconds": 各步的秒数}"""
    file = read_config(Path(config), ModelConfig.from_dict)
    step = STEPS[who](file.model, TrainingSettings(batch_size=shape[0]), DTYPES[dtype], shape[1])
    return {"seconds": time_steps(step, warmup, steps)}


def time_steps(step: Callable[[], object], warmup: int, steps: int) -> list[float]:
    """先走 warmup 步，再给 steps 步逐步计时。"""
    for _ in range(warmup):
        step()
    seconds = []
    for _ in range(steps):
        begin = time.perf_counter()
        step()
        seconds.append(time.perf_counter() - begin)
    return seconds


def random_loader(vocab_size: int, batch_size: int, seq: int) -> DataLoader:
    """只有一批的数据；内容随机，但每个进程都一样。"""
    generator = torch.Generator().manual_seed(SEED)
    token_ids = torch.randint(vocab_size, (batch_size * seq + 1,), generator=generator, dtype=torch.int32)
    return create_dataloader(WindowDataset(token_ids, seq, seq), batch_size)


def our_step(cfg: ModelConfig, settings: TrainingSettings, dtype: torch.dtype, seq: int) -> Callable[[], object]:
    """pretrain.py 的一步。"""
    loader = random_loader(cfg.vocab_size, settings.batch_size, seq)
    trainer = build_trainer(cfg, settings, dtype, loader, loader)
    batches = list(loader)
    return lambda: trainer._train_step(batches, progress=0.0)


def build_trainer(
    cfg: ModelConfig, settings: TrainingSettings, dtype: torch.dtype, train: DataLoader, validate: DataLoader
) -> Trainer:
    """像 pretrain.py 那样准备好训练。"""
    keep_freed_memory()
    torch.manual_seed(SEED)
    model = LanguageModel(cfg).train()
    return Trainer(model, build_optimizers(model, settings), train, validate, settings, autocast(CPU, dtype))


def their_step(cfg: ModelConfig, settings: TrainingSettings, dtype: torch.dtype, seq: int) -> Callable[[], object]:
    """照 transformers 和 PyTorch 的文档写出的一步。"""
    (inputs, _), *_ = random_loader(cfg.vocab_size, settings.batch_size, seq)
    torch.manual_seed(SEED)
    model = peer.build(cfg).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=settings.learning_rate)

    def step() -> float:
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype == torch.bfloat16):
            loss = model(input_ids=inputs, labels=inputs).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), settings.grad_clip)
        optimizer.step()
        optimizer.zero_grad()
        return loss.item()

    return step


STEPS = {OURS: our_step, THEIRS: their_step}
