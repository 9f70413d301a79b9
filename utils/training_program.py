"""各个训练程序共用的后半段：有了模型和数据之后，试跑、计划、训练。"""

import argparse
from pathlib import Path

import torch
from torch import nn
from torch.utils.data import DataLoader

from utils import report
from utils.budget import plan_budget
from utils.device import autocast
from utils.optimizers import build_optimizers
from utils.run_files import RunFiles
from utils.run_identity import RunIdentity
from utils.run_report import RunStory
from utils.settings import TrainingSettings
from utils.train_utils import Trainer
from utils.training_run import TrainingRun


def build_trainer(
    model: nn.Module, loaders: tuple[DataLoader, DataLoader], settings: TrainingSettings, dtype: torch.dtype
) -> Trainer:
    """loaders 是（训练, 验证）；model 已在要用的设备上。"""
    device = next(model.parameters()).device
    return Trainer(model, build_optimizers(model, settings), *loaders, settings, autocast(device, dtype))


def train_to_file(
    trainer: Trainer,
    output_path: Path,
    identity: RunIdentity,
    story: RunStory,
    args: argparse.Namespace,
    started: float,
) -> RunFiles | None:
    """训练并写出 output_path 等文件；args 里有 --resume 等共用的开关。--dry_run 时只说要多久，返回 None。"""
    budget = plan_budget(trainer, started)
    if args.dry_run:
        report.print_plan(trainer, budget)
        return None
    run = TrainingRun(trainer, budget, output_path, identity, story)
    run.prepare(args.resume, args.allow_data_change)
    report.print_plan(trainer, budget)
    run.run()
    return run.files
