"""权重文件的外壳：找到它，并做不载入 torch 就能做的检查。

有三种：自己的 model.pth，Hugging Face 的 pytorch_model.bin（都是 zip，见 archive.py）和 model.safetensors。
safetensors 依次是 8 字节的长度、这么长的 JSON（{名字: 类型、形状、起止位置}）、各张量的字节。
"""

import codecs
import hashlib
import json
import math
from pathlib import Path

from utils.archive import NOT_A_MODEL, check_archive
from utils.errors import UserError, describe_os_error
from utils.files import CHECK_PATH, READ_BYTES, check_input_file, read_input_file

SAFETENSORS_NAME = "model.safetensors"
CONFIG_NAME = "config.json"
TOKENIZER_NAME, VOCABULARY_NAME = "tokenizer.json", "vocab.json"
ADDED_TOKENS_NAME, TOKENIZER_SETTINGS_NAME = "added_tokens.json", "tokenizer_config.json"
# 权重旁边的这些也要读，见 hugging_face_config.py 和 hugging_face_tokenizer.py
COMPANIONS = (CONFIG_NAME, TOKENIZER_NAME, VOCABULARY_NAME, ADDED_TOKENS_NAME, TOKENIZER_SETTINGS_NAME)
HUGGING_FACE_NAMES = (SAFETENSORS_NAME, "pytorch_model.bin")  # 文件夹里两个都有时用前一个
INDEX_NAMES = tuple(f"{name}.index.json" for name in HUGGING_FACE_NAMES)  # 分成几个文件时的目录
DOWNLOAD_AGAIN = "重新下载或导出，或换回完好的备份。"
LENGTH_BYTES = 8
DTYPE_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "BOOL": 1, "U8": 1}
MAX_DIMENSIONS = 4
MAX_HEADER_BYTES = 10_000_000  # GPT-2 最大的一个是六万字节
MAX_JSON_BYTES = 100_000_000
LEGACY_START = bytes.fromhex("80028a0a6cfc9c46f9206aa85019")  # torch 1.6 以前的 torch.save 总这样开头
LFS_START = b"version https://git-lfs"


def check_weights_file(path: Path, advice: str = "") -> Path:
    """path 是一个权重文件，或装着它的文件夹；返回检查过的文件，有任何不对都抛出 UserError。"""
    path = find_weights_file(path)
    check_input_file(path, "模型文件", advice or "请先运行 pretrain.py，或用 --model_path 指出它在哪里。")
    _explain_unreadable(path)
    if is_safetensors(path):
        read_shapes(path)
    else:
        check_archive(path)
    return path


def with_companions(path: Path) -> tuple[Path, ...]:
    """权重文件 path 和旁边同它一起读的文件：都是输入，不能被输出覆盖。自己的 model.pth 只有它自己。"""
    names = COMPANIONS if is_safetensors(path) or path.name in HUGGING_FACE_NAMES else ()
    return path, *(other for name in names if (other := path.with_name(name)).exists())


def find_weights_file(path: Path) -> Path:
    """文件夹里的权重文件；path 不是文件夹就是它自己。"""
    try:
        if not path.is_dir():
            return path
        found = [path / name for name in HUGGING_FACE_NAMES if (path / name).exists()]
    except (OSError, ValueError) as error:
        raise UserError(path, f"打不开模型文件（{describe_os_error(error)}）", CHECK_PATH) from None
    if path.suffix == ".ckpt":
        folder = path.parent if path.parent.suffix == ".ckpt" else path
        advice = f"模型在旁边的 {folder.with_suffix('')}；接着训练用 pretrain.py --resume。"
        raise UserError(path, "是检查点的文件夹", advice)
    sharded = [name for name in INDEX_NAMES if (path / name).exists()]
    if not found and sharded:
        raise UserError(path, f"权重分成了几个文件（{sharded[0]}），读不了", "用 transformers 存成一个文件。")
    if not found:
        raise UserError(path, f"文件夹里没有 {' 或 '.join(HUGGING_FACE_NAMES)}", "请给出模型文件。")
    return found[0]


def fingerprint(path: Path | None) -> str:
    """权重文件的大小和首尾各一段的 sha256，看是不是同一个；没有就是空的。不读全文，几十 GB 也只要一瞬间。"""
    if path is None:
        return ""
    path = find_weights_file(path)
    size = path.stat().st_size
    with path.open("rb") as file:
        digest = hashlib.sha256(file.read(READ_BYTES))
        file.seek(max(0, size - READ_BYTES))
        digest.update(file.read())
    return f"{size:,} 字节，{digest.hexdigest()[:16]}"


def is_safetensors(path: Path) -> bool:
    """按后缀区分。"""
    return path.suffix == ".safetensors"


def _explain_unreadable(path: Path) -> None:
    """下载来的文件常见的两种情形，说清楚该怎么办。"""
    try:
        with path.open("rb") as file:
            start = file.read(len(LFS_START))
    except OSError as error:
        raise UserError(path, f"读不出模型文件（{describe_os_error(error)}）", "检查磁盘和权限。") from None
    if start == LFS_START:
        raise UserError(path, "只是 Git LFS 的指针，不是权重", "在它的文件夹里运行 git lfs pull，或另外下载。")
    if path.suffix == ".bin" and start.startswith(LEGACY_START):
        reason = "是 torch 1.6 以前的格式，没有校验，已拒绝读取"
        raise UserError(path, reason, f"改用一同发布的 {SAFETENSORS_NAME}。")


def read_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """检查 safetensors 的文件头，返回 {名字: 形状}；张量的字节必须首尾相接，恰好到文件结束。"""
    header, data_bytes = _read_header(path)
    header.pop("__metadata__", None)
    try:
        shapes, end = _read_entries(header)
    except (ValueError, TypeError, KeyError):
        raise UserError(path, f"{NOT_A_MODEL}（文件头不对）", DOWNLOAD_AGAIN) from None
    if end != data_bytes:
        reason = f"{NOT_A_MODEL}（张量应有 {end:,} 字节，文件里有 {data_bytes:,} 字节）"
        raise UserError(path, reason, DOWNLOAD_AGAIN)
    return shapes


def _read_header(path: Path) -> tuple[dict, int]:
    """-> (文件头, 后面还有几个字节)"""
    check_input_file(path, "模型文件")
    data_bytes = path.stat().st_size - LENGTH_BYTES
    with path.open("rb") as file:
        length = int.from_bytes(file.read(LENGTH_BYTES), "little")
        if not 0 < length <= min(data_bytes, MAX_HEADER_BYTES):
            raise UserError(path, f"{NOT_A_MODEL}（文件头不对）", DOWNLOAD_AGAIN)
        return _parse_json(path, file.read(length)), data_bytes - length


def _read_entries(header: dict) -> tuple[dict[str, tuple[int, ...]], int]:
    """-> ({名字: 形状}, 最后一个张量到哪里结束)；有任何不对都抛出异常。"""
    shapes, end = {}, 0
    for name, entry in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
        shape, (start, stop) = entry["shape"], entry["data_offsets"]
        if len(shape) > MAX_DIMENSIONS or any(type(number) is not int or number < 0 for number in (*shape, stop)):
            raise ValueError(name)
        if start != end or stop - start != math.prod(shape) * DTYPE_BYTES[entry["dtype"]]:
            raise ValueError(name)
        shapes[name], end = tuple(shape), stop
    return shapes, end


def read_json(path: Path, kind: str) -> dict:
    """权重旁边的 JSON 文件，最外层是对象；kind 是它在消息里的称呼。"""
    check_input_file(path, kind)
    if path.stat().st_size > MAX_JSON_BYTES:
        raise UserError(path, f"太大，不是{kind}", DOWNLOAD_AGAIN)
    return _parse_json(path, read_input_file(path, kind).removeprefix(codecs.BOM_UTF8), kind)


def _parse_json(path: Path, data: bytes, kind: str = "模型文件") -> dict:
    try:
        values = json.loads(data.decode("utf-8"))
    except (ValueError, RecursionError):
        values = None
    if not isinstance(values, dict):
        raise UserError(path, f"已损坏或不是{kind}（里面不是合法的 JSON）", DOWNLOAD_AGAIN)
    return values
