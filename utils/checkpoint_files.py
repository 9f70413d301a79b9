"""检查点文件叫什么、在哪里：<model_path>.ckpt/step-00000123.ckpt。不引用 torch，没有检查点可续时立刻就说。"""

import re
from pathlib import Path

from utils.errors import UserError

NAME = re.compile(r"step-(\d{8,})\.ckpt")
FROM_SCRATCH = "去掉 --resume 从头训练。"


def checkpoint_folder(model_path: Path) -> Path:
    return model_path.with_name(f"{model_path.name}.ckpt")


def step_of(path: Path) -> int:
    """检查点是第几步存的。"""
    return int(NAME.fullmatch(path.name)[1])


def list_checkpoints(folder: Path) -> list[Path]:
    """文件夹里的全部检查点，由旧到新；别的文件不算。"""
    names = folder.iterdir() if folder.is_dir() else ()
    return sorted((path for path in names if NAME.fullmatch(path.name)), key=step_of)


def require_checkpoints(model_path: Path) -> None:
    """一个检查点都没有就抛出 UserError。"""
    folder = checkpoint_folder(model_path)
    if not list_checkpoints(folder):
        raise UserError(folder, "没有检查点可以继续", FROM_SCRATCH)
