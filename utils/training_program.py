"""各个训练程序共用的几步：挑设备，看内存够不够，组成训练器，试跑或训练到文件。模型和数据由程序自己建立。"""

import argparse
from pathlib import Path

import torch
from torch import nn
from torch.utils.data import DataLoader

from utils import dry_run, report
from utils.budget import plan_budget
from utils.device import autocast, choose_device, choose_dtype
from utils.memory import keep_freed_memory
from utils.optimizers import build_optimizers
from utils.run_files import RunFiles
from utils.run_identity import RunIdentity
from utils.run_report import RunStory
from utils.settings import TrainingSettings
from utils.train_utils import Trainer
from utils.training_memory import TrainingMemory
from utils.training_run import TrainingRun


def build_trainer(
    model: nn.Module, loaders: tuple[DataLoader, DataLoader], settings: TrainingSettings, dtype: torch.dtype
) -> Trainer:
    """loaders 是（训练, 验证）；model 已在要用的设备上。"""
    device = next(model.parameters()).device
    return Trainer(model, build_optimizers(model, settings), *loaders, settings, autocast(device, dtype))


class TrainingProgram:
    """一个训练程序的一次运行，依次用：check_memory、build_trainer、train_to_file。

    args 里有 --resume 等共用的开关（utils/settings.py），started 是程序开始的时刻 (time.monotonic)。
    """

    def __init__(self, args: argparse.Namespace, settings: TrainingSettings, started: float):
        keep_freed_memory()
        self.args, self.settings, self.started = args, settings, started
        self.device = choose_device(settings.device)
        self.dtype = choose_dtype(settings.dtype, self.device)

    def check_memory(self, memory: TrainingMemory) -> None:
        """装不下就抛出 RunError；--dry_run 时先列出内存用在哪里，装不下也看得到为什么。"""
        self.memory = memory
        if self.args.dry_run:
            dry_run.print_memory(memory)
        memory.check()

    def build_trainer(self, model: nn.Module, loaders: tuple[DataLoader, DataLoader]) -> Trainer:
        """loaders 是（训练, 验证）；model 已在 self.device 上。"""
        if self.args.compile:
            model.compile()
        return build_trainer(model, loaders, self.settings, self.dtype)

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
            run.prepare(self.args.resume, self.args.allow_data_change)
            report.print_plan(trainer, budget)
            run.run()
        return run.files
