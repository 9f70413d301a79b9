"""训练程序占用输出路径：写得进去，没有别的进程在写，要接的检查点也在。不引用 torch，有错立刻就说。"""

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from utils.checkpoint_files import check_resume_flags, resume_after_restart
from utils.file_lock import output_lock
from utils.files import check_output_path
from utils.processes import is_main


@contextmanager
def claim_output(args: argparse.Namespace, path: Path, inputs: tuple[Path, ...]) -> Iterator[None]:
    """检查之后锁住 path，直到离开；inputs 是不能被覆盖的输入文件。--dry_run 什么也不写，也就不必占用。"""
    if not is_main():  # 只有进程 0 写文件
        yield
        return
    resume_after_restart(args, path)
    check_resume_flags(args, path)
    if args.dry_run:
        yield
        return
    check_output_path(path, inputs)
    with output_lock(path):
        yield
