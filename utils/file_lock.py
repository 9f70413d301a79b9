"""文件锁：由内核管着，进程一结束（哪怕是 kill -9）锁就没有了。"""

import contextlib
import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from utils.errors import UserError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None
    import msvcrt

LOCKED_BYTE = 1 << 30  # Windows 上锁住的字节别人读不了，所以锁在内容之外
HELD_BY_ANOTHER = (errno.EAGAIN, errno.EACCES, errno.EDEADLK)


def try_lock(file: BinaryIO) -> bool:
    """锁住打开的文件，直到它关闭；别的进程锁着时返回 False。不支持锁的网络盘当作锁上了。"""
    try:
        if fcntl:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        else:
            file.seek(LOCKED_BYTE)
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
            file.seek(0)
    except OSError as error:
        return error.errno not in HELD_BY_ANOTHER
    return True


@contextmanager
def output_lock(path: Path) -> Iterator[None]:
    """同一时刻只让一个进程写 path 和由它得名的文件；已经有一个在写就抛出 UserError。"""
    name = path.with_name(f".{path.name}.lock")
    file = _open_locked(name, path)
    try:
        file.write(str(os.getpid()).encode())
        file.flush()
        yield
    finally:
        if os.name == "nt":  # Windows 上打开的文件删不掉
            file.close()
        with contextlib.suppress(OSError):  # 留着也无害，锁不在文件的有无上
            name.unlink()
        file.close()


def _open_locked(name: Path, path: Path) -> BinaryIO:
    """打开并锁住 name。上一个进程可能恰好在我们打开之后删掉了它，那就重来。"""
    while True:
        file = name.open("a+b")
        if not try_lock(file):
            with file:
                file.seek(0)
                pid = file.read(20).decode("ascii", "replace")
            raise UserError(path, f"另一个进程（PID {pid}）正在写入", "等它结束，或换一个输出路径。")
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(file.fileno()), name.stat()):
                file.truncate(0)
                return file
        file.close()
