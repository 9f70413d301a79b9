"""--data_path 给出的文件和文件夹：找出并检查全部文档。结果记在缓存里，没有变的文件下次不必再读。不引用 torch。"""

import hashlib
import json
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from utils import files
from utils.cache_record import read_record, write_record
from utils.console import hint, progress_bar
from utils.document_file import DocumentFile, is_jsonl
from utils.errors import UserError, describe_os_error
from utils.files import CHECK_PATH, check_input_file, fingerprint_of_code
from utils.text_file import FIND_DATA, TextFile

SUFFIXES = (".txt", ".jsonl", ".txt.gz", ".jsonl.gz")
OWN_LOG = ".log.jsonl"  # 训练的日志，写在权重旁边
SCANNING_CODE = ("document_file.py", "documents.py", "sure_break.py", "text_file.py")
SURE_AFTER = 2 * 10**9  # 纳秒：文件系统的时间最粗是 2 秒，刚改完就检查的，大小和时间不变也可能又改了
NAMED_FILES = 1000  # 文件再多，检查点里就不记每个文件的指纹了
REPORTED_FILES = 20  # 报告里至多列出几个文件
SHOWN = 3  # 提示里至多列出几个名字


@dataclass(frozen=True)
class DocumentCollection:
    """若干文件里的文档，次序是命令行的次序，文件夹里按名字。"""

    files: tuple[DocumentFile, ...]
    encoding: str

    @classmethod
    def scan(cls, paths: list[Path], encoding: str) -> "DocumentCollection":
        """找出、检查全部文件；哪个有错就抛出写明它的 UserError。"""
        named = find_files(paths, say=hint)
        memory = ScanMemory(paths, encoding)
        scanned = []
        with progress_bar("检查语料", sum(path.stat().st_size for path, _ in named), "B") as bar:
            try:
                for path, name in named:
                    scanned.append(memory.recall(path, name) or memory.scan(path, name, bar.update))
            finally:  # 打断了，检查过的也记下来
                memory.save()
        _refuse_same_content(scanned)
        return cls(tuple(scanned), encoding)

    @property
    def paths(self) -> tuple[Path, ...]:
        return tuple(file.path for file in self.files)

    @property
    def name(self) -> str:
        """给人看的。"""
        count = len(self.files)
        return str(self.files[0].path) if count == 1 else f"{self.files[0].path} 等 {count:,} 个文件"

    @property
    def num_documents(self) -> int:
        return sum(file.num_documents for file in self.files)

    @property
    def facts(self) -> dict[str, str]:
        """报告里写的：一共几篇，各个文件有多少。"""
        counts = [f"{file.name} {file.num_documents:,} 篇 {file.num_characters:,} 字" for file in self.files]
        more = [f"……共 {len(counts):,} 个"] if len(counts) > REPORTED_FILES else []
        return {"文档": f"{self.num_documents:,} 篇", "文件": "；".join(counts[:REPORTED_FILES] + more)}

    @property
    def digest(self) -> str:
        """全部内容的指纹。"""
        return hashlib.sha256("\n".join(self._lines()).encode()).hexdigest()

    @property
    def fingerprint(self) -> str:
        """每个文件一行，续练时才说得出是哪个变了；文件太多就合成一行。"""
        return f"{self.digest} {self.encoding}" if len(self.files) > NAMED_FILES else "\n".join(self._lines())

    def _lines(self) -> list[str]:
        return [f"{file.source.fingerprint} {file.name}" for file in self.files]


Source = TextFile | DocumentCollection


def open_source(paths: list[Path], encoding: str) -> Source:
    """一个文本文件就是一整篇；文件夹、JSONL、几个文件是许多篇文档。"""
    if len(paths) == 1 and not os.path.isdir(paths[0]) and not is_jsonl(paths[0]):
        return TextFile.scan(paths[0], encoding)
    return DocumentCollection.scan(paths, encoding)


class ScanMemory:
    """以前检查的结果。大小和修改时间都没有变，就当作内容没有变，像 make 和 git 那样。"""

    def __init__(self, paths: list[Path], encoding: str):
        key = json.dumps([encoding, *(os.path.abspath(path) for path in paths)])
        self._path = files.CACHE_DIR / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.scan"
        self._encoding, self._code = encoding, fingerprint_of_code(SCANNING_CODE)
        record = read_record(self._path)
        self._old = record["files"] if record and record["code"] == self._code else {}
        self._new = {}

    def recall(self, path: Path, name: str) -> DocumentFile | None:
        """path 上次检查的结果；变过或没有检查过则为 None。"""
        entry = self._old.get(os.path.abspath(path))
        if not entry or entry["stamp"] != _stamp(path) or entry["seen"] - entry["stamp"][1] < SURE_AFTER:
            return None
        self._new[os.path.abspath(path)] = entry
        return DocumentFile.from_record(path, name, self._encoding, entry["record"])

    def scan(self, path: Path, name: str, on_read: Callable[[int], object]) -> DocumentFile:
        """检查并记住。"""
        stamp, seen = _stamp(path), time.time_ns()
        file = DocumentFile.scan(path, name, self._encoding, on_read)
        self._new[os.path.abspath(path)] = {"stamp": stamp, "seen": seen, "record": file.to_record()}
        return file

    def save(self) -> None:
        known = self._old | self._new
        if known != self._old:
            write_record(self._path, {"code": self._code, "files": known})


def _stamp(path: Path) -> list[int]:
    """[字节数, 修改时间（纳秒）]"""
    status = path.stat()
    return [status.st_size, status.st_mtime_ns]


def find_files(paths: list[Path], say: Callable[[str], None] = lambda text: None) -> list[tuple[Path, str]]:
    """-> [(路径, 名字)]，还没有读内容；直接给出的文件是什么后缀都行，文件夹里只认 SUFFIXES。提示用 say 说。"""
    named = list(_find_files(paths, say))
    for path, _ in named:
        check_input_file(path, "数据文件", FIND_DATA)
    _refuse_same_path(named)
    return named


def _find_files(paths: list[Path], say: Callable[[str], None]) -> Iterator[tuple[Path, str]]:
    for path in paths:
        if not os.path.isdir(path):  # 名字太长时 Path.is_dir 会出错
            yield path, path.name
            continue
        found, others = _list_folder(path)
        if not found:
            raise UserError(path, f"文件夹里没有语料（{'、'.join(SUFFIXES)}）", "放进语料，或换一个文件夹。")
        if others:
            more = f" 等 {len(others):,} 个文件" if len(others) > SHOWN else ""
            say(f"提示：{path} 里不是语料的没有用：{'、'.join(others[:SHOWN])}{more}")
        for name in found:
            yield path / name, name


def _list_folder(folder: Path) -> tuple[list[str], list[str]]:
    """文件夹连同里面的文件夹 -> (语料, 其余)，都是相对的名字，按名字排好；隐藏的不算。"""

    def refuse(error: OSError) -> None:
        raise UserError(error.filename, f"打不开文件夹（{describe_os_error(error)}）", CHECK_PATH)

    found, others = [], []
    for root, folders, names in os.walk(folder, onerror=refuse):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in names:
            if not name.startswith("."):
                is_corpus = name.lower().endswith(SUFFIXES) and not name.lower().endswith(OWN_LOG)
                (found if is_corpus else others).append(Path(root, name).relative_to(folder).as_posix())
    return sorted(found, key=lambda name: name.split("/")), sorted(others)


def _refuse_same_path(named: list[tuple[Path, str]]) -> None:
    seen = set()
    for path, _ in named:
        place = path.resolve()
        if place in seen:
            raise UserError(path, "这个文件给了两次", "只留一次：重复的文字会从训练部分漏进验证部分。")
        seen.add(place)


def _refuse_same_content(scanned: list[DocumentFile]) -> None:
    first: dict[str, DocumentFile] = {}
    again = [file for file in scanned if first.setdefault(file.source.digest, file) is not file]
    if again:
        count = f"，这样的文件共 {len(again):,} 个" if len(again) > 1 else ""
        reason = f"内容与 {first[again[0].source.digest].path} 相同{count}"
        raise UserError(again[0].path, reason, "只留一份：重复的文字会从训练部分漏进验证部分。")
