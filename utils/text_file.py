"""文本文件：一块一块地读和检查，整篇文字从不同时在内存里；.gz 边读边解压。不引用 torch，写错的语料立刻有回应。"""

import codecs
import gzip
import hashlib
import io
import zlib
from bisect import bisect_right
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import BinaryIO

from utils.console import progress_bar
from utils.errors import UserError, describe_os_error
from utils.files import check_input_file

FIND_DATA = "检查路径；随项目附带的语料和数据在 data/ 下。"
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
        check_input_file(path, "数据文件", FIND_DATA)
        with progress_bar("检查语料", path.stat().st_size, "B") as bar:
            scanner = TextScanner(path, encoding, bar.update)
            for _ in scanner:
                pass
        return scanner.result()

    @cached_property
    def digest(self) -> str:
        """内容的指纹：各块的 sha256 合起来再取 sha256；压缩的文件按解压之后算。"""
        return hashlib.sha256(b"".join(block.digest for block in self.blocks)).hexdigest()

    @property
    def fingerprint(self) -> str:
        """检查点里记下的，看数据变了没有。"""
        return f"{self.digest} {self.encoding}"

    @property
    def paths(self) -> tuple[Path, ...]:
        """用到的文件。"""
        return (self.path,)

    def pieces(self, start: int, stop: int) -> Iterator[str]:
        """第 start 到 stop 个字符，一次交出一块；文件在检查之后改动过，抛出 UserError。"""
        with self.reading() as pieces:
            yield from pieces(start, stop)

    @contextmanager
    def reading(self) -> Iterator[Callable[[int, int], Iterator[str]]]:
        """同 pieces，但文件一直开着：从前到后取许多段时，压缩的文件也只解压一遍。"""
        with _open(self.path) as file:
            read_block = _BlockReader(self.path, file)

            def pieces(start: int, stop: int) -> Iterator[str]:
                first = bisect_right(self.blocks, start, key=lambda block: block.start) - 1
                decoder = _create_decoder(self.encoding)
                decoder.setstate(self.blocks[first].decoder_state)
                for index, block in enumerate(self.blocks[first:], first):
                    if block.start >= stop:
                        return
                    data = read_block(index)
                    if hashlib.sha256(data).digest() != block.digest:
                        raise UserError(self.path, "检查之后又被改动了", "等它不再变化时重新运行。")
                    text = _without_mark(decoder.decode(data, final=not data), block.start)
                    yield text[max(0, start - block.start) : stop - block.start]

            yield pieces


class TextScanner:
    """从头到尾读一遍文件，逐块交出文字；读完之后 result() 是 TextFile。on_read(字节数) 在每块之后调用。"""

    def __init__(self, path: Path, encoding: str, on_read: Callable[[int], object]):
        self.path, self.encoding, self._on_read = path, encoding, on_read
        self._blocks, self._num_characters, self._is_blank = [], 0, True

    def __iter__(self) -> Iterator[str]:
        with _open(self.path) as file:
            compressed, position = getattr(file, "fileobj", file), 0
            try:
                for state, data, text in _decode(file, self.encoding):
                    self._blocks.append(Block(self._num_characters, state, hashlib.sha256(data).digest()))
                    text = _without_mark(text, self._num_characters)
                    self._num_characters += len(text)
                    self._is_blank = self._is_blank and not text.strip()
                    yield text
                    self._on_read(compressed.tell() - position)
                    position = compressed.tell()
            except UnicodeError as error:
                raise _encoding_error(error, self.path, self.encoding, file.tell()) from None

    def result(self) -> TextFile:
        if self._is_blank:
            raise UserError(self.path, "没有内容", "换一份语料。")
        return TextFile(self.path, self.encoding, self._num_characters, tuple(self._blocks))


class _BlockReader:
    """按编号读块。记着上一块，所以从前到后读时从不回头，压缩的文件便不必从头解压。"""

    def __init__(self, path: Path, file: BinaryIO):
        self._path, self._file, self._index, self._data = path, file, -1, b""

    def __call__(self, index: int) -> bytes:
        if index != self._index:
            with _explained(self._path):
                if index != self._index + 1:
                    self._file.seek(index * BLOCK_BYTES)
                self._index, self._data = index, self._file.read(BLOCK_BYTES)
        return self._data


def read_text(path: Path, encoding: str = "utf-8") -> str:
    """读出整个文件，用于不大的文件。"""
    source = TextFile.scan(path, encoding)
    return "".join(source.pieces(0, source.num_characters))


@contextmanager
def _open(path: Path) -> Iterator[BinaryIO]:
    """按原样读，或边读边解压。"""
    with _explained(path), path.open("rb") as file:
        if path.suffix.lower() == ".gz":
            with gzip.GzipFile(fileobj=file) as decompressed:
                yield decompressed
        else:
            yield file


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    """读文件时的各种错误都变成 UserError。"""
    try:
        yield
    except EOFError:
        raise UserError(path, "压缩的数据不完整", "重新下载，或解压出来再用。") from None
    except (zlib.error, gzip.BadGzipFile):
        raise UserError(path, "不是完好的 gzip 文件", "重新下载，或解压出来再用。") from None
    except OSError as error:
        raise UserError(path, f"读不出数据文件（{describe_os_error(error)}）", "检查磁盘和权限。") from None


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
    with _open(path) as file:
        if file.read(2) in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE):
            return "utf-16"
    return next((encoding for encoding in ("utf-8", "gb18030", "big5") if _can_decode(path, encoding)), None)


def _can_decode(path: Path, encoding: str) -> bool:
    try:
        with _open(path) as file:
            for _ in _decode(file, encoding):
                pass
    except UnicodeError:
        return False
    return True
