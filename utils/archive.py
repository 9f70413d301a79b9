"""模型文件的外壳：不载入 torch 就能做的检查，和让任何一位的改动都看得出来的封印。

torch.save 写的是不压缩的 zip，每项有 crc32，但文件头、填充和目录没有。封印是 zip 的注释：之前全部字节的 sha256。
"""

import hashlib
import io
import pickletools
import re
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

from utils.errors import UserError, describe_os_error
from utils.files import READ_BYTES, check_input_file

NOT_A_MODEL = "已损坏或不是模型文件"
RESTORE = "重新训练，或换回完好的备份。"
ONLY_OURS = "只能读取这个项目的程序写出的，Hugging Face 的 GPT-2，和《从零构建大模型》的 GPTModel。"
SEAL_START = b"PocketLLM sha256 "
SEAL_BYTES = len(SEAL_START) + 2 * hashlib.sha256().digest_size
LENGTH_BYTES = 2  # zip 的最后一个字段：注释的长度
END_OF_DIRECTORY = b"PK\x05\x06"
END_BYTES = 22  # 没有注释时，目录结尾占这么多
# state_dict 里只该有这些：张量、字典和基本类型；torch.load 允许的还有能占去大块内存的
ALLOWED_GLOBALS = {"collections OrderedDict", "torch._utils _rebuild_tensor_v2", "torch._utils _rebuild_parameter"}
STORAGE = re.compile(r"torch [A-Za-z0-9]+Storage")
PICKLE_PROTOCOL = 2  # torch.save 总用这一种
# torch.save 写出的各项；torch 找它们时不分大小写，所以多一项都不行
ENTRY = re.compile(
    r"([^/]+)/(data\.pkl|data/\d+|version|byteorder|\.format_version|\.storage_alignment|\.data/serialization_id)"
)
OPCODE_BYTES = 64  # 执行一个操作码约要这么多内存
SMALL_PICKLE_BYTES = 64_000_000  # 执行 pickle 所占的内存在这以内，就不管文件多大


def check_archive(path: Path, kind: str = "模型文件", advice: str = "") -> None:
    """拒绝不是 torch.save 写的 zip、校验不符、解开后比文件还大、含有张量以外的东西；有任何不对都抛出 UserError。"""
    check_input_file(path, kind, advice or "请先运行 pretrain.py，或用 --model_path 指出它在哪里。")
    damaged = f"已损坏或不是{kind}"
    try:
        with path.open("rb") as file, zipfile.ZipFile(file) as archive:
            if not _is_plain(file, archive):
                raise UserError(path, damaged, RESTORE)
            if place := _check_seal(file) or archive.testzip():
                raise UserError(path, f"校验失败（{place}）", RESTORE)
            if not _has_only_tensors(archive, path.stat().st_size):
                raise UserError(path, f"{damaged}（含有权重以外的内容，已拒绝读取）", ONLY_OURS)
    except OSError as error:
        raise UserError(path, f"读不出{kind}（{describe_os_error(error)}）", "检查磁盘和权限。") from None
    except (zipfile.BadZipFile, EOFError, ValueError, NotImplementedError, RuntimeError, struct.error):
        raise UserError(path, damaged, RESTORE) from None


def _is_plain(file: BinaryIO, archive: zipfile.ZipFile) -> bool:
    """不压缩、各项合起来不超过文件、只有 torch.save 会写的那些项、目录只有一份。"""
    entries = archive.infolist()
    names = [ENTRY.fullmatch(entry.filename) for entry in entries]
    return (
        all(entry.compress_type == zipfile.ZIP_STORED for entry in entries)
        and sum(entry.file_size for entry in entries) <= file.seek(0, io.SEEK_END)
        and all(names)
        and len({name[1] for name in names}) == 1
        and len({entry.filename.lower() for entry in entries}) == len(entries)
        and _directory_offset(file, len(archive.comment)) == archive.start_dir
    )


def _directory_offset(file: BinaryIO, comment_bytes: int) -> int:
    """目录结尾写着的目录位置。前面垫了东西时 Python 会自己挪动它，torch 却照原样读，两边读到的就不同。"""
    end = file.seek(-END_BYTES - comment_bytes, io.SEEK_END)
    offset = struct.unpack("<L", file.read(END_BYTES)[16:20])[0]
    if offset == 0xFFFFFFFF:  # 4 GB 以上的 zip64：结尾之前 20 字节的定位记录指向另一个结尾
        file.seek(end - 20 + 8)
        file.seek(struct.unpack("<Q", file.read(8))[0] + 48)
        offset = struct.unpack("<Q", file.read(8))[0]
    return offset


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


def _has_only_tensors(archive: zipfile.ZipFile, size: int) -> bool:
    """不执行地看一遍描述张量的 pickle：只提到张量和字典，执行起来也占不了多少内存。"""
    limit = (size + SMALL_PICKLE_BYTES) // OPCODE_BYTES
    (pickle,) = [entry for entry in archive.infolist() if entry.filename.endswith("/data.pkl")]
    for count, (opcode, argument, _) in enumerate(pickletools.genops(archive.read(pickle))):
        if count > limit or not _is_allowed(opcode.name, argument):
            return False
    return True


def _is_allowed(opcode: str, argument: object) -> bool:
    if opcode == "PROTO":
        return argument == PICKLE_PROTOCOL
    if not opcode.endswith("GLOBAL"):
        return True
    return argument in ALLOWED_GLOBALS or bool(STORAGE.fullmatch(str(argument)))
