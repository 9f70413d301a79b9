"""文件：读用户给的文件之前先看清它是什么；写文件要么全成，要么不动。"""

import contextlib
import errno
import hashlib
import io
import itertools
import os
import re
import shutil
import stat
import sys
import tempfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

from utils.errors import SYSTEM_REASONS, RunError, UserError, describe_os_error
from utils.file_lock import try_lock

CACHE_DIR = Path(__file__).resolve().parent.parent / ".cache"  # 随时可以删掉，用到时再算一遍
READ_BYTES = 1 << 20
TEMPORARY_SUFFIX = ".tmp"
CHECK_PATH = "检查路径和权限。"


def fingerprint_of_code(names: tuple[str, ...]) -> str:
    """utils/ 里几个文件的指纹：代码改了，用它算出来的缓存就不再算数。"""
    folder = Path(__file__).parent
    return hashlib.sha256(b"".join((folder / name).read_bytes() for name in names)).hexdigest()


def fingerprints_of_code(program: Path) -> dict[str, str]:
    """{文件: 指纹}：program 和它用到的 model/、utils/；换行是哪一种都一样。"""
    root = Path(__file__).parent.parent
    paths = [root / program.name, *root.glob("model/*.py"), *root.glob("utils/*.py")]
    lines = {path.relative_to(root).as_posix(): path.read_bytes().splitlines() for path in paths if path.is_file()}
    return {name: hashlib.sha256(b"\n".join(text)).hexdigest()[:12] for name, text in lines.items()}


def check_input_file(path: Path, kind: str, advice: str = CHECK_PATH) -> None:
    """path 必须是可读的普通文件；kind 是它在消息里的称呼，如“数据文件”，advice 是找不到它时怎么办。"""
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        raise UserError(path, f"找不到{kind}", advice) from None
    except (OSError, ValueError) as error:
        raise UserError(path, f"打不开{kind}（{describe_os_error(error)}）", CHECK_PATH) from None
    if not stat.S_ISREG(mode):
        raise UserError(path, "不是普通文件", f"这里需要一个{kind}。")
    if not os.access(path, os.R_OK):
        raise UserError(path, "没有读取权限", "改它的权限，或复制一份能读的。")


def read_input_file(path: Path, kind: str, advice: str = CHECK_PATH) -> bytes:
    """检查之后读出整个文件。"""
    check_input_file(path, kind, advice)
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError(path, f"读不出{kind}（{describe_os_error(error)}）", "检查磁盘和权限。") from None


def check_output_path(path: Path, inputs: tuple[Path, ...] = ()) -> None:
    """开始计算之前确认 path 写得进去：不是输入文件，建好所在文件夹，并真的写一个临时文件试试。"""
    try:
        if path.is_dir():
            raise UserError(path, "是一个文件夹", "请给出文件名。")
        if path.exists() and not path.is_file():
            raise UserError(path, "不是普通文件", "请给出普通的文件名。")
        if path.exists() and any(path.samefile(item) for item in inputs):
            advice = "给 --output_path（或 --model_path、--output）换一个名字。"
            raise UserError(path, "同时是输入文件，输出会覆盖它", advice)
        path.parent.mkdir(parents=True, exist_ok=True)
        # 名字取将来最长的那个（报告的临时文件），太长现在就知道
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.report.html.", suffix=TEMPORARY_SUFFIX):
            pass
    except (OSError, ValueError) as error:
        is_file = isinstance(error, FileExistsError)
        reason = SYSTEM_REASONS[errno.ENOTDIR] if is_file else describe_os_error(error)
        raise UserError(path, f"无法写入文件夹 {path.parent}（{reason}）", "换一个位置，或检查权限。") from None


def keep_backup(path: Path) -> Path | None:
    """已有的 path 改名为 <name>.bak（已被占用则 .bak2、.bak3 …）并返回新名字；没有则返回 None。"""
    if not path.exists():
        return None
    backup = _backup_name(path)
    os.replace(path, backup)
    return backup


def link_backup(path: Path) -> Path | None:
    """给已有的 path 添一个备份的名字：在新文件顶替它之前，旧文件一刻也没有消失（没有硬链接的 U 盘除外）。"""
    if not path.exists():
        return None
    backup = _backup_name(path)
    try:
        os.link(path, backup)
    except OSError:  # 如 FAT 格式的 U 盘没有硬链接
        os.replace(path, backup)
    return backup


def _backup_name(path: Path) -> Path:
    """第一个没有被占用的备份名字。"""
    return _numbered_backup(path, len(list_backups(path)) + 1)


def list_backups(path: Path) -> list[Path]:
    """path 已有的备份：<name>.bak、<name>.bak2 … 直到第一个不存在的。"""
    names = (_numbered_backup(path, number) for number in itertools.count(1))
    return list(itertools.takewhile(Path.exists, names))


def _numbered_backup(path: Path, number: int) -> Path:
    return path.with_name(f"{path.name}.bak{'' if number == 1 else number}")


def write_atomically(
    path: Path, write: Callable[[BinaryIO], object], keep_old: bool = False, num_bytes: int = 0
) -> Path | None:
    """用 write(文件) 写出 path：先写同一文件夹里的临时文件，落盘、读回核对，再改名顶替。

    任何时刻断电，path 要么是原来的，要么是新的，都是完整的。num_bytes 是大约要写多少字节，磁盘不够就不动手。
    keep_old 时原有的文件留作备份，返回备份的名字。磁盘出错时抛出 RunError，path 保持原样，临时文件已经删去。
    """
    written = _CheckedWriter()
    try:
        check_free_space(path, num_bytes)
        return _write_and_replace(path, write, keep_old, written)
    except RuntimeError as error:  # torch.save 把磁盘错误包在 RuntimeError 里
        if not isinstance(error.__context__, OSError):
            raise
        cause = error.__context__
    except OSError as error:
        cause = error
    need = max(num_bytes, written.num_bytes)
    room = f"需要 {megabytes(need)}，所在磁盘还有 {megabytes(_free_bytes(path))}"
    reason = f"写不进去（{describe_os_error(cause)}），{room}"
    advice = "腾出空间后再试" if cause.errno in (errno.ENOSPC, errno.EDQUOT) else "检查磁盘和权限"
    raise RunError(path, reason, f"原有的文件没有改动；{advice}。")


def check_free_space(path: Path, num_bytes: int) -> None:
    """path 所在的磁盘放不下 num_bytes 字节就抛出 RunError。"""
    free = _free_bytes(path)
    if num_bytes > free:
        reason = f"磁盘空间不够，需要 {megabytes(num_bytes)}，所在磁盘还有 {megabytes(free)}"
        raise RunError(path, reason, "腾出空间，或把输出写到别的磁盘。")


def _free_bytes(path: Path) -> int:
    """path 所在磁盘的剩余空间；文件夹不在了就看上一级的。"""
    return shutil.disk_usage(next(folder for folder in path.absolute().parents if folder.exists())).free


def megabytes(num_bytes: int) -> str:
    """给人看的大小；不到 1 MB 的以 KB 计。"""
    return f"{num_bytes / 1e6:,.1f} MB" if num_bytes >= 1e6 else f"{num_bytes / 1e3:,.0f} KB"


class _CheckedWriter(io.RawIOBase):
    """写进 file 的同时记下字节数和 crc32，好与读回的比较。"""

    file: BinaryIO
    num_bytes, crc = 0, 0

    def writable(self) -> bool:
        return True

    def write(self, data) -> int:
        count = self.file.write(data)
        self.num_bytes, self.crc = self.num_bytes + count, zlib.crc32(data, self.crc)
        return count

    def matches_disk(self) -> bool:
        """落盘之后重新读一遍，看是不是原样。能的话先丢掉内存里的缓存页，读到的才是磁盘上的。"""
        descriptor = self.file.fileno()
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        num_bytes, crc = self.file.seek(0), 0
        while data := self.file.read(READ_BYTES):
            num_bytes, crc = num_bytes + len(data), zlib.crc32(data, crc)
        return (num_bytes, crc) == (self.num_bytes, self.crc)


def _write_and_replace(
    path: Path, write: Callable[[BinaryIO], object], keep_old: bool, written: _CheckedWriter
) -> Path | None:
    temporary = None
    try:
        with _create_temporary(path) as file:
            temporary, written.file = Path(file.name), file
            write(written)
            file.flush()
            _sync_file(file.fileno())
            if not written.matches_disk():
                raise OSError("读回来的与写进去的不同")
        temporary.chmod(0o666 & ~current_umask())  # mkstemp 只给自己读写权限
        backup = link_backup(path) if keep_old else None
        os.replace(temporary, path)
        sync_folder(path.parent)
        return backup
    finally:
        if temporary:
            temporary.unlink(missing_ok=True)


def _create_temporary(path: Path) -> BinaryIO:
    """path 旁边的临时文件，锁着：锁在，就是有进程正在写；锁不在，就是上次没来得及删的。"""
    file = tempfile.NamedTemporaryFile(  # noqa: SIM115  交给调用者关闭
        "w+b", dir=path.parent, prefix=f".{path.name}.", suffix=TEMPORARY_SUFFIX, delete=False
    )
    try_lock(file)
    return file


def remove_leftovers(folder: Path, names: str) -> None:
    """删去上次被杀死时留下的临时文件；names 是正则式，只认 write_atomically 起的名字，且没有进程正在写。"""
    pattern = re.compile(rf"\.(?:{names})\.[a-z0-9_]{{8}}{re.escape(TEMPORARY_SUFFIX)}")
    for path in folder.iterdir() if folder.is_dir() else ():
        if pattern.fullmatch(path.name) and path.is_file() and not path.is_symlink():
            with contextlib.suppress(OSError):  # 别的进程刚好也在删，或没有权限：留着也无害
                with path.open("r+b") as file:
                    is_leftover = try_lock(file)
                if is_leftover:
                    path.unlink()


def _sync_file(descriptor: int) -> None:
    """让数据到磁盘上；macOS 的 fsync 只到磁盘的缓存，要用 F_FULLFSYNC。"""
    if sys.platform == "darwin":
        import fcntl

        fcntl.fcntl(descriptor, fcntl.F_FULLFSYNC)
    else:
        os.fsync(descriptor)


def sync_folder(folder: Path) -> None:
    """让改名也落盘；Windows 和个别文件系统不能对文件夹这样做。"""
    if os.name != "nt":
        with contextlib.suppress(OSError):
            descriptor = os.open(folder, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)


def current_umask() -> int:
    """新文件不给哪些权限。"""
    umask = os.umask(0)
    os.umask(umask)
    return umask
