"""由文档组成的文件：一个 .txt 是一篇，.jsonl 的每行 {"text": …} 是一篇。检查一遍，记下可以从哪里读起。不引用 torch。"""

import json
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import astuple, dataclass
from pathlib import Path

from utils.errors import UserError
from utils.json_errors import json_error
from utils.sure_break import SURE_BREAK
from utils.text_file import Block, TextFile, TextScanner

STRETCH_CHARACTERS = 1_000_000  # 一段大约这么长
NOT_JSONL = '每行应是一个 JSON 对象，文字在 "text" 里。'


@dataclass(frozen=True)
class Stretch:
    """文件里的一段，两端是文档之间，或分词一定会断开的地方，所以可以单独分词。"""

    start: int  # 从文件的第几个字符
    stop: int  # 到第几个字符
    characters: int  # 其中属于文档的字符
    documents: int  # 有几篇文档在这一段里结束


@dataclass(frozen=True)
class DocumentFile:
    """检查过的文件，和它分成的各段。"""

    name: str  # 给人看的，也记在检查点里；不含所在的文件夹，挪了地方也还是它
    source: TextFile
    stretches: tuple[Stretch, ...]

    @classmethod
    def scan(cls, path: Path, name: str, encoding: str, on_read: Callable[[int], object]) -> "DocumentFile":
        """从头到尾读一遍；编码、压缩、JSON 有错，或者没有内容，抛出 UserError。"""
        scanner = TextScanner(path, encoding, on_read)
        stretches = tuple(_mark_lines(path, scanner) if is_jsonl(path) else _mark_text(scanner))
        source = scanner.result()
        if not any(stretch.characters for stretch in stretches):
            raise UserError(path, "没有内容", "换一份语料。")
        return cls(name, source, stretches)

    @property
    def path(self) -> Path:
        return self.source.path

    @property
    def num_characters(self) -> int:
        return sum(stretch.characters for stretch in self.stretches)

    @property
    def num_documents(self) -> int:
        return sum(stretch.documents for stretch in self.stretches)

    def cut(self, stretch: Stretch, characters: int) -> tuple[Stretch, Stretch]:
        """把一段在 characters 个字符处切成两段；JSONL 切在最近的两行之间，只有一篇时其中一段是空的。"""
        if not is_jsonl(self.path):
            middle = stretch.start + characters
            return Stretch(stretch.start, middle, characters, 0), Stretch(
                middle, stretch.stop, stretch.characters - characters, stretch.documents
            )
        borders, position, so_far, documents = [(stretch.start, 0, 0)], stretch.start, 0, 0
        for line in _lines(self.source.pieces(stretch.start, stretch.stop)):
            position, text = position + len(line) + 1, _text_of(self.path, 0, line)
            so_far, documents = so_far + len(text), documents + bool(text)
            borders.append((position, so_far, documents))
        inside = [border for border in borders if 0 < border[1] < stretch.characters]
        middle, before, count = min(inside or borders, key=lambda border: abs(border[1] - characters))
        rest = stretch.characters - before, stretch.documents - count
        return Stretch(stretch.start, middle, before, count), Stretch(middle, stretch.stop, *rest)

    def to_record(self) -> dict:
        """能写成 JSON 的样子。"""
        blocks = [
            [block.start, block.decoder_state[0].hex(), block.decoder_state[1], block.digest.hex()]
            for block in self.source.blocks
        ]
        stretches = [astuple(stretch) for stretch in self.stretches]
        return {"characters": self.source.num_characters, "blocks": blocks, "stretches": stretches}

    @classmethod
    def from_record(cls, path: Path, name: str, encoding: str, record: dict) -> "DocumentFile":
        blocks = tuple(
            Block(start, (bytes.fromhex(pending), flag), bytes.fromhex(digest))
            for start, pending, flag, digest in record["blocks"]
        )
        source = TextFile(path, encoding, record["characters"], blocks)
        return cls(name, source, tuple(Stretch(*values) for values in record["stretches"]))


class DocumentReader:
    """读各个文件的各段。记着打开的文件，从前到后读时每个压缩的文件只解压一遍。用完 close()。"""

    def __init__(self):
        self._opened, self._file, self._pieces = ExitStack(), None, None

    def documents(self, file: DocumentFile, stretch: Stretch) -> Iterator[tuple[Iterable[str], bool]]:
        """逐篇交出（文字，文档是不是到此结束）；文字是若干块，要在取下一篇之前读完。"""
        if file is not self._file:
            self.close()
            self._file, self._pieces = file, self._opened.enter_context(file.source.reading())
        pieces = self._pieces(stretch.start, stretch.stop)
        if not is_jsonl(file.path):
            yield pieces, stretch.documents == 1
            return
        for line in _lines(pieces):
            if text := _text_of(file.path, 0, line):
                yield [text], True

    def close(self) -> None:
        self._opened.close()
        self._file = None


def is_jsonl(path: Path) -> bool:
    return path.name.lower().endswith((".jsonl", ".jsonl.gz"))


def _mark_text(pieces: Iterable[str]) -> Iterator[Stretch]:
    """整个文件是一篇，切成若干段；只有最后一段里有文档结束。"""
    start = position = 0
    tail = ""  # 上一块的最后一个字符：能不能下刀要看它
    for piece in pieces:
        view, base = tail + piece, position - len(tail)
        while match := SURE_BREAK.search(view, max(0, start + STRETCH_CHARACTERS - base)):
            cut = base + match.start()
            yield Stretch(start, cut, cut - start, 0)
            start = cut
        position += len(piece)
        tail = view[-1:]
    yield Stretch(start, position, position - start, 1)


def _mark_lines(path: Path, pieces: Iterable[str]) -> Iterator[Stretch]:
    """若干行成为一段。"""
    start = position = characters = documents = 0
    for number, line in enumerate(_lines(pieces), 1):
        position, text = position + len(line) + 1, _text_of(path, number, line)
        characters, documents = characters + len(text), documents + bool(text)
        if position - start >= STRETCH_CHARACTERS:
            yield Stretch(start, position, characters, documents)
            start, characters, documents = position, 0, 0
    if position > start:
        yield Stretch(start, position, characters, documents)


def _lines(pieces: Iterable[str]) -> Iterator[str]:
    """逐行交出，不带换行；一块一块的文字里一行可能跨几块。"""
    pending = []
    for piece in pieces:
        first, *others = piece.split("\n")
        pending.append(first)
        for other in others:
            yield "".join(pending)
            pending = [other]
    if last := "".join(pending):
        yield last


def _text_of(path: Path, number: int, line: str) -> str:
    """第 number 行的文档；空行和全是空白的文档为空。"""
    if not line.strip():
        return ""
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise json_error(path, error, NOT_JSONL, line=number) from None
    if not isinstance(record, dict) or "text" not in record:
        raise UserError(path, f'第 {number} 行缺少 "text"', NOT_JSONL)
    text = record["text"]
    if not isinstance(text, str):
        raise UserError(path, f'第 {number} 行的 "text" 不是文字', NOT_JSONL)
    if "\\u" in line and not _is_encodable(text):
        raise UserError(path, f'第 {number} 行的 "text" 里有不成对的代理字符', "改掉或删去这一行。")
    if "\r" in text:
        text = text.replace("\r\n", "\n").replace("\r", "\n")
    return text if text.strip() else ""


def _is_encodable(text: str) -> bool:
    """JSON 的 \\ud83d 之类能造出孤立的代理字符，分词器不认。"""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True
