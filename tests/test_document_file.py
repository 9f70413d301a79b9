"""utils/document_file.py：文件怎样分成文档和可以单独分词的段，坏的文件在哪里坏。"""

import gzip
import json
from contextlib import closing

import pytest

from utils import document_file, text_file
from utils.document_file import DocumentFile, DocumentReader
from utils.errors import UserError
from utils.text_utils import load_gpt2_tokenizer

DOCUMENTS = [
    "悟空道：“师父！”\n",
    " 八戒\r\n沙僧",
    "",
    "   ",
    "<|endoftext|>",
    "a\u2028b",
    "👍" * 30,
    "don't，it's。" * 20,
]
KEPT = ["悟空道：“师父！”\n", " 八戒\n沙僧", "<|endoftext|>", "a\u2028b", "👍" * 30, "don't，it's。" * 20]


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch):
    monkeypatch.setattr(document_file, "STRETCH_CHARACTERS", 50)
    monkeypatch.setattr(text_file, "BLOCK_BYTES", 32)


def scan(path) -> DocumentFile:
    return DocumentFile.scan(path, path.name, "utf-8", lambda num_bytes: None)


def write(path, data: bytes):
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


def lines(documents: list[str], **options) -> bytes:
    return "".join(json.dumps({"id": 1, "text": text}, **options) + "\n" for text in documents).encode()


def read(file: DocumentFile) -> list[str]:
    """各篇文档；不管它分成了几段。"""
    documents, pending = [], ""
    with closing(DocumentReader()) as reader:
        for stretch in file.stretches:
            for pieces, ends in reader.documents(file, stretch):
                pending += "".join(pieces)
                if ends:
                    documents.append(pending)
                    pending = ""
    assert pending == ""
    return documents


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "A.JSONL"])
@pytest.mark.parametrize("is_ascii", [True, False])
def test_each_line_is_a_document(tmp_path, name, is_ascii):
    data = b"\xef\xbb\xbf" + lines(DOCUMENTS, ensure_ascii=is_ascii).replace(b"\n", b"\r\n\n") + b'{"text": "end"}'
    file = scan(write(tmp_path / name, data))
    assert read(file) == [*KEPT, "end"]
    assert file.num_documents == len(KEPT) + 1 and file.num_characters == sum(map(len, [*KEPT, "end"]))
    assert len(file.stretches) > 2


@pytest.mark.parametrize("name", ["a.txt", "a.txt.gz"])
def test_text_file_is_one_document_cut_where_the_tokens_stay_the_same(tmp_path, name):
    text = "悟空道：“师父！”\n\u3000\u3000八戒 said don't，it's。\n\n" * 20
    file = scan(write(tmp_path / name, ("\ufeff" + text.replace("\n", "\r\n")).encode()))
    assert read(file) == [text] and file.num_documents == 1 and file.num_characters == len(text)
    assert len(file.stretches) > 5
    tokenizer = load_gpt2_tokenizer()
    parts = [tokenizer.encode(text[stretch.start : stretch.stop]) for stretch in file.stretches]
    assert sum(parts, []) == tokenizer.encode(text)


def test_text_without_a_place_to_cut_is_one_stretch(tmp_path):
    assert len(scan(write(tmp_path / "a.txt", "悟空".encode() * 500)).stretches) == 1


BAD = [
    (b'{"text": "a"}\n\n{"text": "b"\n', "第 3 行第 1"),
    (b"[" * 100_000, "从第 1 行起不是合法 JSON：嵌套太深"),
    (b'{"text": "a"}\n{"body": "b"}\n', '第 2 行缺少 "text"'),
    (b'{"text": "a"}\n["text"]\n', '第 2 行缺少 "text"'),
    (b'{"text": "a"}\n{"text": 3}\n', '第 2 行的 "text" 不是文字'),
    (b'{"text": "a"}\n{"text": null}\n', '第 2 行的 "text" 不是文字'),
    (rb'{"text": "a \ud83d"}', '第 1 行的 "text" 里有不成对的代理字符'),
    (b'{"text": "' + b"a" * 100 + b'"}\n{"text": "\xb1\xb1"}', "第 124 字节不是 UTF-8"),
    (b"", "没有内容"),
    (b'\n\n{"text": " "}\n', "没有内容"),
]


@pytest.mark.parametrize(("data", "reason"), BAD)
@pytest.mark.parametrize("name", ["坏的.jsonl", "坏的.jsonl.gz"])
def test_bad_line_is_named(tmp_path, name, data, reason):
    with pytest.raises(UserError) as caught:
        scan(write(tmp_path / name, data))
    assert f"{name}：{reason}" in str(caught.value)


def test_emoji_written_as_two_escapes_is_fine(tmp_path):
    assert read(scan(write(tmp_path / "a.jsonl", rb'{"text": "\ud83d\ude00"}'))) == ["😀"]


def test_cut_falls_between_two_documents_and_inside_a_text(tmp_path):
    file = scan(write(tmp_path / "a.jsonl", lines(["甲" * 5, "乙" * 6, "丙" * 7])))
    (stretch,) = (document_file.Stretch(0, 10_000, 18, 3),)
    for wanted, expected in ((1, 5), (7, 5), (9, 11), (18, 11)):  # 两边都不空
        before, after = file.cut(stretch, wanted)
        assert (before.characters, after.characters) == (expected, 18 - expected)
        assert before.stop == after.start and before.documents + after.documents == 3
    text = scan(write(tmp_path / "b.txt", "悟空".encode() * 20))
    before, after = text.cut(text.stretches[0], 7)
    assert (before.start, before.stop, after.start, after.stop) == (0, 7, 7, 40)
    assert (before.documents, after.documents) == (0, 1)


def test_record_restores_the_file(tmp_path):
    for name, data in (("a.jsonl", lines(KEPT)), ("a.txt", "悟空，八戒".encode() * 30)):
        path = write(tmp_path / name, data)
        file = scan(path)
        record = json.loads(json.dumps(file.to_record()))
        again = DocumentFile.from_record(path, name, "utf-8", record)
        assert again == file and read(again) == read(file)


def test_compressed_file_is_decompressed_only_once(tmp_path, monkeypatch):
    file = scan(write(tmp_path / "a.jsonl.gz", lines(KEPT * 20)))
    rewinds = []
    monkeypatch.setattr(gzip.GzipFile, "rewind", lambda self: rewinds.append(self))
    assert read(file) == KEPT * 20 and len(file.stretches) > 20
    assert rewinds == []
