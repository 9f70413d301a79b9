"""指令微调开始前和结束后对用户说的话。"""

import argparse

import torch

from utils.checkpoint import load_weights, read_model_file
from utils.console import say
from utils.instruction_tuning import InstructionDataset, measure_exact_match
from utils.report_finetuning import print_model, print_use
from utils.run_files import RunFiles
from utils.train_utils import Trainer

Counts = dict[str | None, tuple[int, int]]  # {任务: (答对, 一共)}


def print_start(
    trainer: Trainer, parts: tuple[InstructionDataset, InstructionDataset], args: argparse.Namespace, dtype: torch.dtype
) -> None:
    """训练之前：设备、训练哪些参数、数据怎样分。"""
    model = trainer.model
    print_model(trainer, args, dtype)
    say(f"数据：{args.data_path}，模板 {model.template}，训练 {len(parts[0]):,} 条，留出 {len(parts[1]):,} 条")
    length = model.cfg.context_length
    if truncated := sum(part.num_truncated for part in parts):
        say(f"有 {truncated:,} 条超过上下文长度 {length}，截去了末尾")
    if dropped := sum(part.num_dropped for part in parts):
        say(f"另有 {dropped:,} 条的回答在 {length} 个 token 之外，没有用上；换上下文更长的模型才学得到")


def print_result(trainer: Trainer, before: Counts, files: RunFiles, args: argparse.Namespace) -> None:
    """训练之后：所保存的权重在留出部分上完全答对的比例，逐类与训练之前相比。"""
    if files.kept.step != trainer.step:  # 内存里是最后的权重，文件里是最好的
        load_weights(trainer.model, read_model_file(files.model), files.model)
    after = measure_exact_match(trainer.model, trainer.validate_loader, trainer.precision)
    say("留出部分完全答对：训练之前 → 之后（条数）")
    for task, (right, total) in after.items():
        if task is not None:
            say(f"  {task}  {before[task][0] / total:.0%} → {right / total:.0%}（{total}）")
    (old, total), (new, _) = (tuple(map(sum, zip(*counts.values(), strict=True))) for counts in (before, after))
    say(f"合计 {old / total:.1%} → {new / total:.1%}（{total:,}），第 {files.kept.step} 步的权重")
    say(f"会答话的模型：{files.model}；曲线：{files.curve}；日志：{files.log}")
    print_use(files, args, "chat.py")
