"""各个训练程序共用的几步：挑设备，看内存够不够，组成训练器，试跑或训练到文件。模型和数据由程序自己建立。"""

import argparse
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import torch
from torch import nn
from torch.utils.data import DataLoader

from utils import distributed, dry_run, process_group, processes, report
from utils.budget import plan_budget
from utils.console import say
from utils.device import autocast, available_memory, choose_device, choose_dtype
from utils.errors import UserError
from utils.files import fingerprints_of_code
from utils.memory import keep_freed_memory
from utils.optimizers import build_optimizers
from utils.parallel import OneProcess
from utils.random_state import seed_process
from utils.run_files import RunFiles
from utils.run_identity import RunIdentity
from utils.run_report import RunStory
from utils.settings import TrainingSettings
from utils.strategies import build_parallel
from utils.train_utils import Trainer
from utils.training_memory import TrainingMemory
from utils.training_run import TrainingRun


def build_trainer(
    model: nn.Module,
    loaders: tuple[DataLoader, DataLoader],
    settings: TrainingSettings,
    dtype: torch.dtype,
    parallel: OneProcess | None = None,
) -> Trainer:
    """loaders 是（训练, 验证）；model 已在要用的设备上，要训练的参数已经选好。"""
    parallel = parallel or OneProcess()
    parallel.wrap(model)
    precision = autocast(next(model.parameters()).device, dtype)  # FSDP 的模型到这时才真的在设备上
    trainer = Trainer(model, build_optimizers(model, settings), *loaders, settings, precision)
    trainer.parallel = parallel
    return trainer


OWN_ARGUMENTS = {"data_path", "model_path", "output_path", "init_from", "config"}  # 各台机器可以不同
SHARDED_BYTES = 16  # 一个参数的权重、梯度和 AdamW 的两份动量；再加激活还要有余地
ROOM = 0.5  # 这些至多占可用内存的一半，才值得每个进程都放一整份


class TrainingProgram:
    """一个训练程序的一次运行，依次用：check_memory、build_trainer、train_to_file。

    args 里有 --resume 等共用的开关（utils/settings.py），started 是程序开始的时刻 (time.monotonic)。
    """

    def __init__(self, args: argparse.Namespace, settings: TrainingSettings, started: float):
        if missing := processes.missing_variables():
            raise UserError("启动器", f"没有设环境变量 {'、'.join(missing)}", "用 torchrun 启动，或自己设好。")
        keep_freed_memory()
        self.args, self.settings, self.started = args, settings, started
        self.device = choose_device(settings.device)
        self.dtype = choose_dtype(settings.dtype, self.device)
        self._parallel: OneProcess | None = None
        if not processes.is_launched() and args.parallel != "auto":
            reason = "要几个进程才用得上"
            raise UserError("--parallel", reason, f"用 torchrun --nproc_per_node 2 {Path(sys.argv[0]).name} 启动。")
        if processes.world_size() > 1:
            process_group.start(self.device, args.patience)
            args.resume = distributed.from_main(args.resume)  # 重新启动时由进程 0 决定，见 training_output.py

    def agree_on(self, **facts: object) -> None:
        """几个进程一起训练时，各自的命令、配置、数据要相同；不同就抛出 UserError，说出差别。"""
        own = {name: value for name, value in vars(self.args).items() if name not in OWN_ARGUMENTS}
        chosen = {"device": self.device.type, "dtype": str(self.dtype).removeprefix("torch.")}  # auto 选了什么
        versions = {**fingerprints_of_code(Path(sys.argv[0])), "torch": str(torch.__version__)}
        distributed.check_same({**own, **asdict(self.settings), **chosen, **facts, **versions})

    def parallel_for(self, num_parameters: int) -> OneProcess:
        """照 --parallel 挑一种做法；auto 在每个进程放得下整个模型时用 ddp。"""
        if self._parallel is None:
            mode, is_lora = self.args.parallel, getattr(self.args, "trainable", None) == "lora"
            if mode == "fsdp" and is_lora:
                raise UserError("--parallel", "fsdp 不能与 --trainable lora 同用", "用 --parallel ddp。")
            if mode == "auto":
                is_large = not is_lora and SHARDED_BYTES * num_parameters > ROOM * available_memory(self.device)
                mode = distributed.from_main("fsdp" if is_large else "ddp")
            self._parallel = build_parallel(mode, self.dtype)
            if processes.world_size() > 1:
                say(f"并行：{processes.world_size()} 个进程（{mode}），文件由 {processes.name()} 写")
        return self._parallel

    def create(self, make_model: Callable[[], nn.Module], num_parameters: int) -> nn.Module:
        """make_model 建立的、随机初始化的模型，在要用的设备上。"""
        return self.parallel_for(num_parameters).create(make_model, self.device)

    def place(self, model: nn.Module) -> nn.Module:
        """把读出来的模型放到要用的设备上。"""
        num_parameters = sum(parameter.numel() for parameter in model.parameters())
        return self.parallel_for(num_parameters).place(model, self.device)

    def check_memory(self, memory: TrainingMemory) -> None:
        """装不下就抛出 RunError；--dry_run 时先列出内存用在哪里，装不下也看得到为什么。"""
        self.memory = memory = self.parallel_for(memory.num_parameters).own_memory(memory)
        if self.args.dry_run:
            dry_run.print_memory(memory)
        memory.check()

    def build_trainer(self, model: nn.Module, loaders: tuple[DataLoader, DataLoader]) -> Trainer:
        """loaders 是（训练, 验证）；model 来自 create 或 place，要训练的参数已经选好。"""
        if self.args.compile:
            model.compile()
        trainer = build_trainer(model, loaders, self.settings, self.dtype, self.parallel_for(0))
        seed_process(self.settings.seed)
        return trainer

    def train_to_file(
        self, trainer: Trainer, output_path: Path, data_digest: str, story: RunStory, details: dict
    ) -> RunFiles | None:
        """训练并写出 output_path 等文件；--dry_run 时只说要多久，返回 None。details 见 RunIdentity.of。"""
        identity = RunIdentity.of(trainer.model, data_digest, self.settings, self.dtype, details)
        with self.memory.explain_lack():
            budget = plan_budget(trainer, self.started)
            if self.args.dry_run:
                report.print_plan(trainer, budget)
                return None
            run = TrainingRun(trainer, budget, output_path, identity, story)
            run.prepare(self.args.resume, self.args.allow_data_change, self.args.allow_process_change)
            report.print_plan(trainer, budget)
            run.run()
        return run.files
