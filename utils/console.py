"""训练程序对用户说话：不弄乱进度条，也不因为没人听了就停下训练；几个进程一起训练时，只有进程 0 说。"""

import contextlib
import errno
import sys

from tqdm import tqdm

from utils.errors import discard_stdout
from utils.processes import is_main

# 读的一方走了：管道关闭（Windows 上是 EINVAL），终端关闭
READER_GONE = (errno.EPIPE, errno.EIO, errno.EINVAL)


def say(text: str) -> None:
    """在 stdout 上打印一行；读的一方（如 head -1）走了、终端关了就不再打印，训练照常继续。"""
    if sys.stdout is None or not is_main():  # 以 >&- 启动时没有标准输出
        return
    try:
        tqdm.write(text, file=sys.stdout)
        sys.stdout.flush()
    except OSError as error:
        if error.errno not in READER_GONE:
            raise
        discard_stdout()


def hint(text: str) -> None:
    """在 stderr 上打印一行提示；打不出来（如终端已经关闭）也不要紧。"""
    if is_main():
        with contextlib.suppress(OSError):
            tqdm.write(text, file=sys.stderr)


def progress_bar(name: str, total: int, unit: str) -> tqdm:
    """stderr 上的进度条，一秒内做完的事不必画；stderr 不是终端时什么也不画。"""
    options = {"unit_scale": True, "delay": 1, "leave": False, "disable": None if is_main() else True}
    return tqdm(desc=name, total=total, unit=unit, file=sys.stderr, **options)
