"""模型文件的外壳：不载入 torch 就能做的检查，和让任何一位的改动都看得出来的封印。

torch.save 写的是不压缩的 zip，每项有 crc32，但文件头、填充和目录没有。封印是 zip 的注释：之前全部字节的 sha256。
"""

import hashlib
import io
import pickletools
import re
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

from utils.errors import UserError
from utils.files import check_input_file

NOT_A_MODEL = "已损坏或不是模型文件"
RESTORE = "重新训练，或换回完好的备份。"
SEAL_START = b"PocketLLM sha256 "
SEAL_BYTES = len(SEAL_START) + 2 * hashlib.sha256().digest_size
LENGTH_BYTES = 2  # zip 的最后一个字段：注释的长度
END_OF_DIRECTORY = b"PK\x05\x06"
END_BYTES = 22  # 没有注释时，目录结尾占这么多
READ_BYTES = 1 << 20
# state_dict 里只该有这些：张量、字典和基本类型；torch.load 允许的还有能占去大块内存的
ALLOWED_GLOBALS = {"collections OrderedDict", "torch._utils _rebuild_tensor_v2", "torch._utils _rebuild_parameter"}
STORAGE = re.compile(r"torch [A-Za-z0-9]+Storage")
PICKLE_PROTOCOL = 2  # torch.save 总用这一种


def check_archive(path: Path, kind: str = "模型文件", advice: str = "") -> None:
    """拒绝不是普通 zip 的、校验不符的、解开后比文件还大的、含有张量以外的东西的；有任何不对都抛出 UserError。"""
    check_input_file(path, kind, advice or "请先运行 pretrain.py，或用 --model_path 指出它在哪里。")
    try:
        with path.open("rb") as file, zipfile.ZipFile(file) as archive:
            entries = archive.infolist()
            is_plain = all(entry.compress_type == zipfile.ZIP_STORED for entry in entries)
            if not is_plain or sum(entry.file_size for entry in entries) > path.stat().st_size:
                raise UserError(path, NOT_A_MODEL)
            damaged = _check_seal(file) or archive.testzip()
            if not damaged:
                _check_pickles(path, archive)
    except (zipfile.BadZipFile, OSError, EOFError, ValueError, NotImplementedError, RuntimeError):
        raise UserError(path, NOT_A_MODEL, RESTORE) from None
    if damaged:
        raise UserError(path, f"校验失败（{damaged}）", RESTORE)


def write_sealed(file: BinaryIO, write_zip: Callable[[BinaryIO], object]) -> None:
    """write_zip 写出的 zip 原样写进 file，末尾加上封印；读 zip 的程序不受影响。"""
    sealing = _SealingWriter(file)
    write_zip(sealing)
    sealing.finish()


class _SealingWriter(io.RawIOBase):
    """边写边算 sha256；总留着最后两个字节，那是注释的长度，等写完再改。"""

    def __init__(self, file: BinaryIO):
        self._file, self._digest, self._held = file, hashlib.sha256(), b""

    def writable(self) -> bool:
        return True

    def write(self, data) -> int:
        data = memoryview(data).cast("B")
        parts = [self._held, data] if len(data) >= LENGTH_BYTES else [self._held + bytes(data)]
        for part in [*parts[:-1], parts[-1][:-LENGTH_BYTES]]:
            self._digest.update(part)
            self._file.write(part)
        self._held = bytes(parts[-1][-LENGTH_BYTES:])
        return len(data)

    def finish(self) -> None:
        if self._held != bytes(LENGTH_BYTES):
            raise ValueError("zip 已经有注释")
        seal = SEAL_START + self._digest.hexdigest().encode()
        self._file.write(SEAL_BYTES.to_bytes(LENGTH_BYTES, "little") + seal)


def _check_seal(file: BinaryIO) -> str:
    """封印不符时返回哪里不对，相符或没有封印（别的程序写的）则返回空；没有封印的文件不能有别的注释。"""
    size = file.seek(0, io.SEEK_END)
    file.seek(max(0, size - SEAL_BYTES - LENGTH_BYTES))
    end = file.read()
    length, seal = end[:LENGTH_BYTES], end[LENGTH_BYTES:]
    if not seal.startswith(SEAL_START):
        if not (end[-END_BYTES:].startswith(END_OF_DIRECTORY) and end.endswith(bytes(LENGTH_BYTES))):
            raise zipfile.BadZipFile("末尾不完整")
        return ""
    digest, rest = hashlib.sha256(), size - SEAL_BYTES - LENGTH_BYTES
    file.seek(0)
    while rest and (data := file.read(min(READ_BYTES, rest))):
        digest.update(data)
        rest -= len(data)
    is_right = seal[len(SEAL_START) :] == digest.hexdigest().encode()
    return "" if is_right and length == SEAL_BYTES.to_bytes(LENGTH_BYTES, "little") else "内容"


def _check_pickles(path: Path, archive: zipfile.ZipFile) -> None:
    """描述张量的 pickle 只许提到张量和字典：提到别的，读都不读。"""
    for entry in archive.infolist():
        if entry.filename.endswith(".pkl"):
            for opcode, argument, _ in pickletools.genops(archive.read(entry)):
                if not _is_allowed(opcode.name, argument):
                    raise UserError(path, f"{NOT_A_MODEL}（含有权重以外的内容，已拒绝读取）")


def _is_allowed(opcode: str, argument: object) -> bool:
    if opcode == "PROTO":
        return argument == PICKLE_PROTOCOL
    if not opcode.endswith("GLOBAL"):
        return True
    return argument in ALLOWED_GLOBALS or bool(STORAGE.fullmatch(str(argument)))
