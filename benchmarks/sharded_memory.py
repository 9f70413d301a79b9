"""FSDP 下每个进程占多少内存：建立模型之后、前向和反向之后、更新参数之后，各量一次最高点。

torchrun --standalone --nproc_per_node 4 benchmarks/sharded_memory.py --config configs/gpt2_config_1558M.json

一批一个样本，上下文缩短到 --context_length：要看的是权重、梯度和动量，不是激活。
"""

import argparse
import dataclasses
import os
import sys
from collections.abc import Iterator
from pathlib import Path

# 直接运行本脚本时，Python 只在 benchmarks/ 里找模块；加上项目根目录才能用别的包
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch

from model.config import ModelConfig
from model.language_model import LanguageModel
from utils import cli, distributed, process_group, processes, sharded_tensor
from utils.config_file import read_config
from utils.console import say
from utils.errors import UserError, run_program
from utils.fsdp import Sharded
from utils.gradient_norms import clip_gradients
from utils.memory import keep_freed_memory, peak_bytes
from utils.optimizers import build_optimizers
from utils.settings import TrainingSettings
from utils.train_utils import calc_loss_batch, evaluating

CPU = torch.device("cpu")


def parse_args() -> argparse.Namespace:
    parser = cli.ArgumentParser("量 FSDP 下每个进程的内存；用 torchrun 启动。")
    add = parser.add_argument
    add("--config", type=cli.file_path, default=Path("configs/gpt2_config_1558M.json"), help="模型（默认 %(default)s）")
    add("--context_length", type=cli.positive_int, default=64, help="上下文缩短到几个 token（默认 %(default)s）")
    add("--accumulation_steps", type=cli.positive_int, default=1, help="累积几批才更新（默认 %(default)s）")
    help_until = "量到哪里：init 建立和评估，gradients 反向，adamw 和 muon 用它更新两次（默认 %(default)s）"
    add("--until", type=cli.one_of("init", "gradients", "adamw", "muon"), default="gradients", help=help_until)
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    if processes.world_size() == 1:
        raise UserError("sharded_memory.py", "只有一个进程", "用 torchrun --nproc_per_node 2 启动。")
    cfg = read_config(args.config, ModelConfig.from_dict).model
    cfg = dataclasses.replace(cfg, context_length=args.context_length, drop_rate=0.0)
    measure(cfg, args.until, args.accumulation_steps)


def measure(cfg: ModelConfig, until: str, accumulation_steps: int) -> None:
    keep_freed_memory()
    process_group.start(CPU, patience=1800)
    weights, size = 4 * cfg.num_parameters, processes.world_size()
    say(f"{cfg.num_parameters:,} 个参数，权重共 {gigabytes(weights)}，{size} 个进程")
    report("开始之前（torch 等）", 0)
    torch.manual_seed(0)
    parallel = Sharded(torch.float32)
    model = parallel.create(lambda: LanguageModel(cfg), CPU)
    parallel.wrap(model)
    report("建立模型之后：权重", weights / size)
    token_ids = torch.randint(0, cfg.vocab_size, (1, cfg.context_length + 1))
    inputs, targets = token_ids[:, :-1], token_ids[:, 1:]
    with evaluating(model):
        calc_loss_batch(model, inputs, targets)
    report("评估一批之后：权重", weights / size)
    for name, optimizers in steps(model, until):
        for number in range(1, accumulation_steps + 1):
            with parallel.exchanging(is_last=number == accumulation_steps):
                calc_loss_batch(model, inputs, targets).backward()
        clip_gradients(model, 1.0, parallel)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        states = [value for optimizer in optimizers for values in optimizer.state.values() for value in values.values()]
        moments = sum(4 * sharded_tensor.local(value).numel() for value in states)
        report(f"{name}之后：权重、梯度、动量", 2 * weights / size + moments)


def steps(model: torch.nn.Module, until: str) -> Iterator[tuple[str, list[torch.optim.Optimizer]]]:
    """(名字, 用哪些优化器)：先只反向，再更新两次，第二次时动量都在了。"""
    if until != "init":
        yield "反向", []
    if until in ("adamw", "muon"):
        optimizers = build_optimizers(model, TrainingSettings(optimizer=until))
        yield from ((f"第 {number} 次更新", optimizers) for number in (1, 2))


def report(name: str, share: float) -> None:
    """各进程至今的最高点；share 是应有的 1/N。"""
    peaks = distributed.gather(peak_bytes(os.getpid()))
    texts = "、".join(gigabytes(peak) for peak in peaks)
    say(f"{name}：每个进程应有 {gigabytes(share)}，最高 {texts}")


def gigabytes(num_bytes: float) -> str:
    return f"{num_bytes / 1e9:.2f} GB"


if __name__ == "__main__":
    run_program(main)
