"""文本文件：一块一块地读和检查，整篇文字从不同时在内存里。不引用 torch，写错的语料立刻有回应。"""

import codecs
import hashlib
import io
from bisect import bisect_right
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from utils.console import progress_bar
from utils.errors import UserError
from utils.files import check_input_file

BLOCK_BYTES = 1 << 20
BYTE_ORDER_MARK = "\ufeff"


@dataclass(frozen=True)
class Block:
    """文件里的一块，可以直接从这里读起。"""

    start: int  # 之前有多少个字符
    decoder_state: tuple[bytes, int]  # 解码器读到这里的状态：上一块末尾可能留着半个字
    digest: bytes  # 这一块字节的 sha256


@dataclass(frozen=True)
class TextFile:
    """检查过编码的文本文件。字符从去掉字节顺序标记、换行都变成 \\n 之后数起。"""

    path: Path
    encoding: str
    num_characters: int
    blocks: tuple[Block, ...]

    @classmethod
    def scan(cls, path: Path, encoding: str = "utf-8") -> "TextFile":
        """从头到尾读一遍；不合编码、没有内容、读不出都抛出 UserError。"""
        check_input_file(path, "数据文件")
        blocks, start, is_blank = [], 0, True
        with _open(path) as file, progress_bar("检查语料", path.stat().st_size, "B") as bar:
            try:
                for state, data, text in _decode(file, encoding):
                    blocks.append(Block(start, state, hashlib.sha256(data).digest()))
                    text = _without_mark(text, start)
                    start += len(text)
                    is_blank = is_blank and not text.strip()
                    bar.update(len(data))
            except UnicodeError as error:
                raise _encoding_error(error, path, encoding, file.tell()) from None
        if is_blank:
            raise UserError(path, "没有内容", "换一份语料。")
        return cls(path, encoding, start, tuple(blocks))

    @property
    def digest(self) -> str:
        """内容的指纹：各块的 sha256 合起来再取 sha256。"""
        return hashlib.sha256(b"".join(block.digest for block in self.blocks)).hexdigest()

    def pieces(self, start: int, stop: int) -> Iterator[str]:
        """第 start 到 stop 个字符，一次交出一块；文件在检查之后改动过，抛出 UserError。"""
        first = bisect_right(self.blocks, start, key=lambda block: block.start) - 1
        decoder = _create_decoder(self.encoding)
        decoder.setstate(self.blocks[first].decoder_state)
        with _open(self.path) as file:
            file.seek(first * BLOCK_BYTES)
            for block in self.blocks[first:]:
                if block.start >= stop:
                    return
                data = file.read(BLOCK_BYTES)
                if hashlib.sha256(data).digest() != block.digest:
                    raise UserError(self.path, "检查之后又被改动了", "等它不再变化时重新运行。")
                text = _without_mark(decoder.decode(data, final=not data), block.start)
                yield text[max(0, start - block.start) : stop - block.start]


def read_text(path: Path, encoding: str = "utf-8") -> str:
    """读出整个文件，用于不大的文件。"""
    source = TextFile.scan(path, encoding)
    return "".join(source.pieces(0, source.num_characters))


@contextmanager
def _open(path: Path) -> Iterator[BinaryIO]:
    try:
        with path.open("rb") as file:
            yield file
    except OSError as error:
        raise UserError(path, f"读不出数据文件（{error.strerror}）") from None


def _create_decoder(encoding: str) -> io.IncrementalNewlineDecoder:
    """逐块解码，并把 \\r\\n 和 \\r 变成 \\n。"""
    return io.IncrementalNewlineDecoder(codecs.getincrementaldecoder(encoding)(), translate=True)


def _decode(file: BinaryIO, encoding: str) -> Iterator[tuple[tuple[bytes, int], bytes, str]]:
    """逐块交出（解码器读这一块之前的状态，字节，文字）；最后一块没有字节，只收尾。"""
    decoder = _create_decoder(encoding)
    data = None
    while data != b"":
        state = decoder.getstate()
        data = file.read(BLOCK_BYTES)
        text = decoder.decode(data, final=not data)
        if encoding != "utf-8":  # unicode_escape 之类的编码能造出孤立的代理字符，分词器不认
            text.encode("utf-8")
        yield state, data, text


def _without_mark(text: str, start: int) -> str:
    return text if start else text.removeprefix(BYTE_ORDER_MARK)


def _encoding_error(error: UnicodeError, path: Path, encoding: str, bytes_read: int) -> UserError:
    """写明第几个字节、像哪种编码；bytes_read 是出错时已经读了多少字节。"""
    name = encoding.upper()
    if not isinstance(error, UnicodeDecodeError):  # 如 utf-16 缺少字节顺序标记
        return UserError(path, f"不是 {name}（{error}）", "用 --encoding 指出它的编码，如 utf-16-le。")
    position = bytes_read - len(error.object) + error.start + 1  # error.object 是留下的半个字和刚读的一块
    guess = _guess_encoding(path)
    like = f"（像 {guess.upper()}）" if guess else ""
    advice = f"加 --encoding {guess}。" if guess else "用 --encoding 指出它的编码，或另存为 UTF-8。"
    return UserError(path, f"第 {position} 字节不是 {name}{like}", advice)


def _guess_encoding(path: Path) -> str | None:
    with path.open("rb") as file:
        if file.read(2) in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE):
            return "utf-16"
    return next((encoding for encoding in ("utf-8", "gb18030", "big5") if _can_decode(path, encoding)), None)


def _can_decode(path: Path, encoding: str) -> bool:
    try:
        with path.open("rb") as file:
            for _ in _decode(file, encoding):
                pass
    except UnicodeError:
        return False
    return True
