"""utils/document_split.py：验证部分从哪里开始，一篇文档会不会两边都有。"""

import json
from contextlib import closing

import pytest

from utils import document_file, document_split
from utils.document_file import DocumentReader
from utils.document_split import Place, split_documents
from utils.documents import DocumentCollection


@pytest.fixture(autouse=True)
def _short_stretches(monkeypatch):
    monkeypatch.setattr(document_file, "STRETCH_CHARACTERS", 40)


def text_of(places: list[Place]) -> str:
    """各篇之后是一个 |。"""
    text = ""
    with closing(DocumentReader()) as reader:
        for place in places:
            for pieces, ends in reader.documents(place.file, place.stretch):
                text += "".join(pieces) + "|" * ends
    return text


def split(folder, contents: dict[str, str | list[str]]) -> tuple[str, str]:
    """{文件名: 文字，或各行的文档} -> (训练部分, 验证部分)"""
    for name, content in contents.items():
        if isinstance(content, list):
            content = "".join(json.dumps({"text": text}) + "\n" for text in content)
        (folder / name).write_text(content, encoding="utf-8")
    collection = DocumentCollection.scan([folder / name for name in contents], "utf-8")
    train, validate = map(text_of, split_documents(collection))
    return train, validate


def numbered(count: int, length: int = 10) -> list[str]:
    return [f"{number:0{length}}" for number in range(count)]


def test_last_tenth_of_the_lines_is_for_validation(tmp_path):
    documents = numbered(100)
    train, validate = split(tmp_path, {"a.jsonl": documents[:34], "b.jsonl": documents[34:]})
    assert train.split("|")[:-1] == documents[:90] and validate.split("|")[:-1] == documents[90:]


def test_few_lines_are_never_cut(tmp_path):
    for count in range(2, 25):
        documents = [text * 7 for text in numbered(count)]  # 一行就比一段长
        train, validate = split(tmp_path, {"a.jsonl": documents})
        assert train and validate and (train + validate).split("|")[:-1] == documents


def test_text_files_are_kept_whole_when_the_border_is_near(tmp_path):
    texts = {f"{number}.txt": f"第{number}篇，" * 25 for number in range(12)}  # 每篇都分成几段
    train, validate = split(tmp_path, texts)
    assert train == "".join(f"{text}|" for text in list(texts.values())[:11]) and validate == texts["11.txt"] + "|"


def test_long_last_text_is_cut_inside_like_a_single_file(tmp_path):
    first, last = "天" * 300, "，地" * 350  # 最后一篇占七成
    train, validate = split(tmp_path, {"a.txt": first, "b.txt": last})
    assert train == f"{first}|{last[:600]}" and validate == f"{last[600:]}|"


def test_last_long_line_is_kept_whole(tmp_path):
    train, validate = split(tmp_path, {"a.jsonl": ["天" * 50, "地" * 50, "人" * 300]})
    assert train == "天" * 50 + "|" + "地" * 50 + "|" and validate == "人" * 300 + "|"


def test_validation_of_a_large_corpus_is_limited(tmp_path, monkeypatch):
    monkeypatch.setattr(document_split, "MAX_VALIDATE_CHARACTERS", 40)
    documents = numbered(100)
    train, validate = split(tmp_path, {"a.jsonl": documents})
    assert train.split("|")[:-1] == documents[:96] and validate.split("|")[:-1] == documents[96:]
