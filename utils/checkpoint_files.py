"""检查点文件叫什么、在哪里：<model_path>.ckpt/step-00000123.ckpt。不引用 torch，没有检查点可续时立刻就说。"""

import argparse
import os
import re
import shutil
from pathlib import Path

import psutil

from utils import processes
from utils.errors import UserError
from utils.files import TEMPORARY_SUFFIX

NAME = re.compile(r"step-(\d{8,})\.ckpt")
REMOVED = "removed_"  # 正在删的文件夹，与正在写的一样是八个字符
FROM_SCRATCH = "去掉 --resume 从头训练。"


def checkpoint_folder(model_path: Path) -> Path:
    return model_path.parent / f"{model_path.name}.ckpt"  # with_name 不认“.”这样没有名字的路径


def step_of(path: Path) -> int:
    """检查点是第几步存的。"""
    return int(NAME.fullmatch(path.name)[1])


def size_of(path: Path) -> int:
    """一个检查点的字节数；FSDP 的是文件夹。"""
    return sum(file.stat().st_size for file in (path.rglob("*") if path.is_dir() else (path,)))


def list_checkpoints(folder: Path) -> list[Path]:
    """文件夹里的全部检查点，由旧到新；别的文件不算。"""
    names = folder.iterdir() if folder.is_dir() else ()
    return sorted((path for path in names if NAME.fullmatch(path.name)), key=step_of)


def remove_checkpoint(path: Path) -> None:
    """删去一个检查点；文件夹先改名，删到一半断电也不会被当作检查点。"""
    if path.is_dir():
        hidden = path.with_name(f".{path.name}.{REMOVED}{TEMPORARY_SUFFIX}")
        os.replace(path, hidden)
        shutil.rmtree(hidden)
    else:
        path.unlink()


def resume_after_restart(args: argparse.Namespace, model_path: Path) -> None:
    """torchrun 重新启动了全部进程，而这次运行已经存过检查点：接着它训练，不必有人来加 --resume。

    看检查点是不是 torchrun 启动之后存的；它数的重启次数靠不住，别的机器上出的事不算在内。
    """
    if processes.is_under_torchrun() and not args.resume:
        launched_at = psutil.Process(os.getppid()).create_time()
        args.resume = any(
            path.stat().st_mtime > launched_at for path in list_checkpoints(checkpoint_folder(model_path))
        )


def check_resume_flags(args: argparse.Namespace, model_path: Path) -> None:
    """--resume 时至少要有一个检查点，--allow_data_change 要与它同用，否则抛出 UserError。"""
    folder = checkpoint_folder(model_path)
    for name in ("allow_data_change", "allow_process_change"):
        if getattr(args, name) and not args.resume:
            raise UserError(f"--{name}", "只与 --resume 同用", "加上 --resume，或去掉它。")
    if args.resume and not list_checkpoints(folder):
        raise UserError(folder, "没有检查点可以继续", FROM_SCRATCH)
