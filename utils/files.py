"""文件：读用户给的文件之前先看清它是什么；写文件要么全成，要么不动。"""

import os
import shutil
import stat
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

from utils.errors import RunError, UserError

CACHE_DIR = Path(__file__).resolve().parent.parent / ".cache"  # 随时可以删掉，用到时再算一遍


def check_input_file(path: Path, kind: str, advice: str = "") -> None:
    """path 必须是可读的普通文件；kind 是它在消息里的称呼，如“数据文件”。"""
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        raise UserError(path, f"找不到{kind}", advice) from None
    except (OSError, ValueError) as error:
        raise UserError(path, f"打不开{kind}（{error}）") from None
    if not stat.S_ISREG(mode):
        raise UserError(path, "不是普通文件", f"这里需要一个{kind}。")
    if not os.access(path, os.R_OK):
        raise UserError(path, "没有读取权限")


def read_input_file(path: Path, kind: str, advice: str = "") -> bytes:
    """检查之后读出整个文件。"""
    check_input_file(path, kind, advice)
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError(path, f"读不出{kind}（{error.strerror}）") from None


def check_output_path(path: Path, inputs: tuple[Path, ...] = ()) -> None:
    """开始计算之前确认 path 写得进去：不是输入文件，建好所在文件夹，并真的写一个临时文件试试。"""
    try:
        if path.is_dir():
            raise UserError(path, "是一个文件夹", "请给出文件名。")
        if path.exists() and not path.is_file():
            raise UserError(path, "不是普通文件", "请给出普通的文件名。")
        if path.exists() and any(path.samefile(item) for item in inputs):
            raise UserError(path, "同时是输入文件", "换一个文件名。")
        path.parent.mkdir(parents=True, exist_ok=True)
        # 名字取将来最长的那个（日志的临时文件），太长现在就知道
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.log.jsonl.", suffix=".tmp"):
            pass
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(path, f"无法写入文件夹 {path.parent}（{reason}）", "换一个位置，或检查权限。") from None


def keep_backup(path: Path) -> Path | None:
    """已有的 path 改名为 <name>.bak（已被占用则 .bak2、.bak3 …）并返回新名字；没有则返回 None。"""
    if not path.exists():
        return None
    backup = _backup_name(path)
    os.replace(path, backup)
    return backup


def _link_backup(path: Path) -> Path | None:
    """给已有的 path 添一个备份的名字：在新文件顶替它之前，旧文件一刻也没有消失。"""
    if not path.exists():
        return None
    backup = _backup_name(path)
    try:
        os.link(path, backup)
    except OSError:  # 如 FAT 格式的 U 盘没有硬链接
        os.replace(path, backup)
    return backup


def _backup_name(path: Path) -> Path:
    number = 1
    while (backup := path.with_name(f"{path.name}.bak{'' if number == 1 else number}")).exists():
        number += 1
    return backup


def write_atomically(path: Path, write: Callable[[BinaryIO], object], keep_old: bool = False) -> Path | None:
    """用 write(文件) 写出 path：先写同一文件夹里的临时文件并落盘，再改名顶替，任何时刻断电都不会留下半个文件。

    keep_old 时原有的文件留作备份，返回备份的名字。磁盘出错时抛出 RunError，path 保持原样。
    """
    try:
        return _write_and_replace(path, write, keep_old)
    except RuntimeError as error:  # torch.save 把磁盘错误包在 RuntimeError 里
        if not isinstance(error.__context__, OSError):
            raise
        cause = error.__context__
    except OSError as error:
        cause = error
    free = shutil.disk_usage(path.parent).free
    reason = f"写不进去（{cause.strerror or cause}），所在磁盘还有 {free / 1e6:,.0f} MB"
    raise RunError(path, reason, "原有的文件没有改动；腾出空间后再试。")


def _write_and_replace(path: Path, write: Callable[[BinaryIO], object], keep_old: bool) -> Path | None:
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    temporary = Path(name)
    try:
        with os.fdopen(descriptor, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        temporary.chmod(0o666 & ~_current_umask())  # mkstemp 只给自己读写权限
        backup = _link_backup(path) if keep_old else None
        os.replace(temporary, path)
        return backup
    finally:
        temporary.unlink(missing_ok=True)


def _current_umask() -> int:
    umask = os.umask(0)
    os.umask(umask)
    return umask
