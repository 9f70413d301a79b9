"""utils/documents.py：哪些文件算语料，次序怎样，重复的、空的怎么说，没有变的不再读。"""

import gzip
import os
import subprocess
import sys

import pytest

from conftest import ROOT
from utils import documents, files
from utils.documents import DocumentCollection, open_source
from utils.errors import UserError
from utils.text_file import TextFile

LONG_AGO = (10**9, 10**9)


@pytest.fixture
def folder(tmp_path):
    """里面有各种文件的文件夹 d。"""
    contents = {
        "d/b.txt": "乙".encode(),
        "d/a.jsonl": '{"text": "甲"}'.encode(),
        "d/sub/z.TXT": "戊".encode(),
        "d/sub/c.jsonl.gz": gzip.compress('{"text": "丁"}'.encode()),
        "d/sub.txt.gz": gzip.compress("丙".encode()),
        "d/readme.md": b"#",
        "d/model.pth.log.jsonl": b'{"step": 1}',
        "d/.hidden.txt": b"x",
        "d/.git/x.txt": b"x",
    }
    for name, data in contents.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        os.utime(path, LONG_AGO)
    return tmp_path / "d"


def scan(*paths) -> DocumentCollection:
    return DocumentCollection.scan(list(paths), "utf-8")


def refuse(message, *paths) -> None:
    with pytest.raises(UserError) as caught:
        scan(*paths)
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_single_text_file_is_one_text_and_everything_else_a_collection(folder):
    for name in ("b.txt", "sub.txt.gz", "readme.md"):
        assert isinstance(open_source([folder / name], "utf-8"), TextFile)
    for paths in ([folder], [folder / "a.jsonl"], [folder / "b.txt", folder / "a.jsonl"]):
        assert isinstance(open_source(paths, "utf-8"), DocumentCollection)


def test_folder_is_read_in_the_order_of_names_and_says_once_what_it_skips(folder, capsys):
    collection = scan(folder)
    assert [file.name for file in collection.files] == ["a.jsonl", "b.txt", "sub/c.jsonl.gz", "sub/z.TXT", "sub.txt.gz"]
    assert collection.name == f"{folder / 'a.jsonl'} 等 5 个文件" and collection.num_documents == 5
    captured = capsys.readouterr()
    assert captured.err == f"提示：{folder} 里不是语料的没有用：model.pth.log.jsonl、readme.md\n"


def test_files_given_directly_keep_their_order_whatever_their_suffix(folder, capsys):
    collection = scan(folder / "readme.md", folder / "sub", folder / "a.jsonl")
    assert [file.name for file in collection.files] == ["readme.md", "c.jsonl.gz", "z.TXT", "a.jsonl"]
    assert capsys.readouterr().err == ""


def test_what_cannot_be_used_is_refused(folder, tmp_path):
    refuse("none.txt：找不到数据文件", folder, tmp_path / "none.txt")
    (tmp_path / "empty").mkdir()
    refuse("empty：文件夹里没有语料", tmp_path / "empty")
    refuse("b.txt：这个文件给了两次", folder / "b.txt", folder)
    (folder / "copy.txt.gz").write_bytes(gzip.compress("乙".encode()))
    (folder / "copy2.txt").write_bytes("乙".encode())
    refuse(f"copy.txt.gz：内容与 {folder / 'b.txt'} 相同，这样的文件共 2 个", folder)
    (folder / "copy.txt.gz").write_bytes(b"")
    refuse("copy.txt.gz：没有内容", folder)


@pytest.mark.parametrize("name", ["bad.txt.gz", "bad.jsonl.gz"])
@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"plain text", "不是完好的 gzip 文件"),
        (gzip.compress(b"a" * 1000)[:-10], "压缩的数据不完整"),
        (gzip.compress(b"a")[:10] + b"\xff" * 20, "不是完好的 gzip 文件"),
        (gzip.compress(b'{"text": "abc"}')[:-8] + b"\0" * 8, "不是完好的 gzip 文件"),
    ],
    ids=["没有压缩", "缺了末尾", "乱的", "校验不符"],  # gzip 的开头有时间，不能让它进名字
)
def test_broken_gzip_is_named(folder, name, data, reason):
    (folder / name).write_bytes(data)
    refuse(f"{name}：{reason}", folder)


def count_scans(monkeypatch) -> list[str]:
    scanned, scan_file = [], documents.DocumentFile.scan

    def counted(path, *args):
        scanned.append(path.name)
        return scan_file(path, *args)

    monkeypatch.setattr(documents.DocumentFile, "scan", counted)
    return scanned


def test_unchanged_files_are_not_read_again(folder, monkeypatch):
    first = scan(folder)
    scanned = count_scans(monkeypatch)
    assert scan(folder) == first and scanned == []
    (folder / "b.txt").write_bytes("改".encode())
    (folder / "new.txt").write_bytes("新".encode())
    assert scan(folder) != first and scanned == ["b.txt", "new.txt"]


def test_file_changed_within_the_resolution_of_the_clock_is_read_again(folder, monkeypatch):
    os.utime(folder / "b.txt")
    scan(folder)
    scanned = count_scans(monkeypatch)
    scan(folder)
    assert scanned == ["b.txt"]


def test_memory_that_is_damaged_or_from_other_code_is_not_used(folder, cache_dir, monkeypatch):
    first = scan(folder)
    scanned = count_scans(monkeypatch)
    (path,) = cache_dir.iterdir()
    data = path.read_bytes()
    path.write_bytes(data.replace(b'"characters": 1', b'"characters": 2'))
    assert scan(folder) == first and len(scanned) == 5
    monkeypatch.setattr(documents, "fingerprint_of_code", lambda names: "改过的代码")
    assert scan(folder) == first and len(scanned) == 10
    monkeypatch.setattr(files, "CACHE_DIR", folder / "b.txt")  # 写不进去
    assert scan(folder) == first and len(scanned) == 15


def test_files_scanned_before_an_error_are_remembered(folder, monkeypatch):
    (folder / "c.jsonl").write_bytes(b"{")
    refuse("c.jsonl：第 1 行第 2 列不是合法 JSON", folder)
    scanned = count_scans(monkeypatch)
    refuse("c.jsonl：第 1 行第 2 列不是合法 JSON", folder)
    assert scanned == ["c.jsonl"]


def test_fingerprint_names_every_file_unless_there_are_too_many(folder, monkeypatch):
    lines = scan(folder).fingerprint.split("\n")
    assert [line.split(" ", 1)[1] for line in lines[:2]] == ["utf-8 a.jsonl", "utf-8 b.txt"] and len(lines) == 5
    monkeypatch.setattr(documents, "NAMED_FILES", 4)
    before = scan(folder).fingerprint
    assert "\n" not in before
    (folder / "b.txt").write_bytes("改".encode())
    assert scan(folder).fingerprint != before


def test_scanning_does_not_need_torch():
    code = "import sys, utils.documents; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0
