"""两种微调共有的话：设备、训练哪些参数，和写出的适配器。"""

import argparse

import torch

from utils.console import say
from utils.device import describe_device
from utils.files import megabytes
from utils.processes import on_main
from utils.run_files import RunFiles
from utils.train_utils import Trainer


def print_model(trainer: Trainer, args: argparse.Namespace, dtype: torch.dtype) -> None:
    """训练之前：设备、从哪个模型开始、训练其中哪些参数。"""
    sizes = [(parameter.numel(), parameter.requires_grad) for parameter in trainer.model.parameters()]
    total, trained = sum(size for size, _ in sizes), sum(size for size, is_trained in sizes if is_trained)
    say(f"设备：{describe_device(trainer.device)}，精度 {str(dtype).removeprefix('torch.')}")
    say(f"模型：{args.model_path}，{total:,} 个参数，训练其中 {trained:,} 个（{args.trainable}）")


@on_main
def print_use(files: RunFiles, args: argparse.Namespace, program: str) -> None:
    """训练之后：怎样用它；用 LoRA 时，怎样只带走适配器。"""
    say(f"现在可以问它：python {program} --model_path {files.model}")
    if args.trainable == "lora":
        size = megabytes(files.adapter.stat().st_size)
        flags = f"--model_path {args.model_path} --adapter_path {files.adapter}"
        say(f"适配器：{files.adapter}（{size}），与原来的模型同用：{flags}")
