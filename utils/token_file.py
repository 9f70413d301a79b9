"""token 文件：用全部的核分词，边分边写进一个文件；读时映射进内存，用到哪里读哪里。

布局：各部分的 token | JSON 说明 | 说明的字节数（8 字节）| 以上全部的 sha256（32 字节）
"""

import hashlib
import json
import mmap
import os
import tempfile
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor

from utils.console import hint
from utils.errors import RunError
from utils.files import READ_BYTES, write_atomically
from utils.sure_break import SURE_BREAK
from utils.text_utils import Tokenizer, split_chunks

LENGTH_BYTES, DIGEST_BYTES = 8, hashlib.sha256().digest_size


@dataclass(frozen=True)
class TokenFile:
    """映射进内存的 token 文件。"""

    parts: list[Tensor]  # 每个是 (token 数,)，uint16 或 int32
    info: dict  # 写文件时附上的说明
    view: mmap.mmap

    def release(self) -> None:
        """归还读过的页，再用到时会从文件重新读；没有 madvise 的系统（Windows）自己会收回。"""
        if hasattr(self.view, "madvise"):
            self.view.madvise(mmap.MADV_DONTNEED)


def encode_on_all_cores(tokenizer: Tokenizer, pieces: Iterable[str]) -> Iterator[np.ndarray]:
    """逐块交出 token id，合起来与整篇分词相同；在途的块有限，再长的文字也不占内存。"""
    return map_on_all_cores(tokenizer.encode_to_numpy, split_chunks(pieces, SURE_BREAK))


def map_on_all_cores(function: Callable[[Any], np.ndarray], items: Iterable[Any]) -> Iterator[np.ndarray]:
    """像 map 那样按次序交出结果，用全部的核；在途的有限。"""
    workers = _count_cores()
    pool = ThreadPoolExecutor(workers)  # tiktoken 计算时放开 GIL，线程就够了
    pending = deque()
    try:
        for item in items:
            pending.append(pool.submit(function, item))
            if len(pending) > 2 * workers:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)  # Ctrl-C 时不再等排着队的块


def _count_cores() -> int:
    """这个进程可以用几个核。"""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def write_tokens(file: BinaryIO, tokenizer: Tokenizer, parts: Iterable[Iterable[str]], info: dict) -> None:
    """各部分的文字分别分词，写成一个 token 文件；info 是能写成 JSON 的说明。"""
    encoded = (encode_on_all_cores(tokenizer, pieces) for pieces in parts)
    write_token_ids(file, tokenizer.vocab_size, encoded, info)


def write_token_ids(file: BinaryIO, vocab_size: int, parts: Iterable[Iterable[np.ndarray]], info: dict) -> None:
    """同上，各部分已经是一块一块的 token id。"""
    dtype = np.uint16 if vocab_size <= 1 << 16 else np.int32
    digest = hashlib.sha256()

    def write(data: bytes | np.ndarray) -> None:
        digest.update(data)
        file.write(data)

    counts = []
    for part in parts:
        counts.append(0)
        for token_ids in part:
            write(token_ids.astype(dtype))
            counts[-1] += len(token_ids)
    description = json.dumps({"counts": counts, "dtype": np.dtype(dtype).name, "info": info}).encode("ascii")
    write(description)
    write(len(description).to_bytes(LENGTH_BYTES, "little"))
    file.write(digest.digest())


def map_tokens(file: BinaryIO) -> TokenFile:
    """映射 write_tokens 写出的文件；有一位不对就抛出 ValueError。"""
    end = file.seek(0, os.SEEK_END) - DIGEST_BYTES
    if end < LENGTH_BYTES or _digest_of(file, end) != file.read():
        raise ValueError("校验失败")
    file.seek(end - LENGTH_BYTES)
    length = int.from_bytes(file.read(LENGTH_BYTES), "little")
    file.seek(end - LENGTH_BYTES - length)
    description = json.loads(file.read(length))
    # ACCESS_COPY 只是为了 torch 要求可写；没有人写，就没有一页真的被复制
    view = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
    counts = description["counts"]
    token_ids = torch.frombuffer(view, dtype=getattr(torch, description["dtype"]), count=sum(counts))
    return TokenFile(list(token_ids.split(counts)), description["info"], view)


def _digest_of(file: BinaryIO, num_bytes: int) -> bytes:
    """文件前 num_bytes 字节的 sha256；经过读而不是映射，常驻内存不会涨。"""
    digest = hashlib.sha256()
    file.seek(0)
    while num_bytes and (data := file.read(min(READ_BYTES, num_bytes))):
        digest.update(data)
        num_bytes -= len(data)
    return digest.digest()


def open_tokens(path: Path) -> TokenFile | None:
    """打开已有的 token 文件；没有、打不开或者坏了，都是 None。"""
    try:
        with path.open("rb") as file:
            return map_tokens(file)
    except OSError:
        return None
    except (ValueError, KeyError):
        hint(f"{path} 已损坏，重新分词。")
        return None


def create_tokens(path: Path, write: Callable[[BinaryIO], None]) -> TokenFile:
    """用 write(文件) 写出 path 并打开；写不进去就用临时文件，程序结束时自动消失。"""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, write)
        with path.open("rb") as file:
            return map_tokens(file)
    except (OSError, RunError):
        hint(f"分词的结果存不进 {path.parent}，这次用临时文件，下次还要重新分词。")
    with tempfile.TemporaryFile() as file:
        write(file)
        return map_tokens(file)
