"""文件锁 (filelock)：由内核管着，进程一结束（哪怕是 kill -9）锁就没有了。"""

import contextlib
import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from filelock import FileLock, Timeout, lock_descriptor

from utils.errors import UserError

UNSUPPORTED = (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK)  # 有的网络盘没有锁


def try_lock(file: BinaryIO) -> bool:
    """锁住打开的文件，直到它关闭；别的进程锁着时返回 False。不支持锁的网络盘当作锁上了。"""
    try:
        return lock_descriptor(file.fileno(), blocking=False)
    except OSError:
        return True


@contextmanager
def output_lock(path: Path) -> Iterator[None]:
    """同一时刻只让一个进程写 path 和由它得名的文件；已经有一个在写就抛出 UserError。"""
    name = path.with_name(f".{path.name}.lock")
    lock = FileLock(name, blocking=False, on_acquired=_write_pid)
    try:
        lock.acquire()
    except Timeout:
        raise UserError(path, f"另一个进程（PID {_read_pid(name)}）正在写入", "等它结束，或换一个输出路径。") from None
    except OSError as error:
        if error.errno not in UNSUPPORTED:
            raise
    try:
        yield
    finally:
        if os.name == "nt":  # Windows 上打开的文件删不掉
            lock.release()
        with contextlib.suppress(OSError):  # 留着也无害，锁不在文件的有无上
            name.unlink()
        lock.release()


def _write_pid(descriptor: int) -> None:
    """Windows 上锁住的是第 0 个字节，别人读不了，所以从第 1 个写起。"""
    os.ftruncate(descriptor, 0)
    os.write(descriptor, f" {os.getpid()}".encode())


def _read_pid(name: Path) -> str:
    with name.open("rb") as file:
        file.seek(1)
        return file.read(20).decode("ascii", "replace")
