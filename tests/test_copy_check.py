"""utils/copy_check.py：与逐个比较的笨办法一致；边角上的样文也不出错。"""

import random
import time
from types import SimpleNamespace

import numpy as np
import pytest

from conftest import ROOT
from utils import copy_check
from utils.copy_check import BYTES_PER_CHARACTER, MIN_CHARACTERS, Copies, CopyIndex, index_file, suffix_array
from utils.errors import RunError
from utils.text_file import TextFile

ALPHABETS = ["a", "ab", "天地玄黄", "悟空😀👨‍👩‍👧\n 。", "".join(map(chr, range(0x4E00, 0x5E00)))]


def random_text(generator: random.Random, alphabet: str, length: int) -> str:
    return "".join(generator.choice(alphabet) for _ in range(length))


def longest_by_hand(text: str, sample: str, start: int) -> int:
    length = 0
    while start + length < len(sample) and sample[start : start + length + 1] in text:
        length += 1
    return length


def copied_by_hand(text: str, sample: str) -> set[int]:
    """照抄的是哪些字：每一个 MIN_CHARACTERS 字的窗口，原文里有就全部算上。"""
    size = MIN_CHARACTERS
    windows = [start for start in range(len(sample) - size + 1) if sample[start : start + size] in text]
    return {position for start in windows for position in range(start, start + size)}


def positions_of(copies: Copies) -> set[int]:
    return {position for start, end in copies.spans for position in range(start, end)}


@pytest.mark.parametrize("alphabet", ALPHABETS, ids=range(len(ALPHABETS)))
@pytest.mark.parametrize("length", [0, 1, 2, 9, 100, 700])
def test_suffixes_are_in_dictionary_order(alphabet, length):
    text = random_text(random.Random(length), alphabet, length)
    assert suffix_array(text).tolist() == sorted(range(length), key=lambda start: text[start:])


@pytest.mark.parametrize("seed", range(40))
def test_copies_are_those_found_by_comparing_everything(seed):
    generator = random.Random(seed)
    alphabet = generator.choice(ALPHABETS[:4])
    text = random_text(generator, alphabet, generator.randrange(1, 400))
    parts = []
    for _ in range(6):
        start = generator.randrange(len(text))
        parts += [text[start : start + generator.randrange(60)], random_text(generator, alphabet + "新", 5)]
    sample = "".join(parts)
    index = CopyIndex(text)
    copies = index.find_copies(sample)
    lengths = [longest_by_hand(text, sample, start) for start in range(len(sample))]
    assert [index.longest_match(sample, start) for start in range(len(sample))] == lengths
    assert positions_of(copies) == copied_by_hand(text, sample)
    assert copies.num_copied == len(positions_of(copies))
    assert len(copies.longest) == max(lengths) and copies.longest in text
    assert "".join(piece for piece, _ in copies.pieces()) == sample
    assert sum(len(piece) for piece, is_copy in copies.pieces() if is_copy) == copies.num_copied


TEXT = "却说那大圣径入深山，叫道：“师父休言语。老孙已是了手脚。”😀👨‍👩‍👧"


@pytest.mark.parametrize(
    ("sample", "marked"),
    [
        ("", ""),
        ("却说那大圣", "却说那大圣"),  # 样文比 MIN_CHARACTERS 还短
        (TEXT, f"【{TEXT}】"),
        ("某日，却说那大圣径入深山，", "某日，【却说那大圣径入深山，】"),  # 正好 10 字
        ("某日，却说那大圣径入深山。", "某日，却说那大圣径入深山。"),
        ("老孙已是了手脚。”😀👨‍👩‍👧完", "【老孙已是了手脚。”😀👨‍👩‍👧】完"),
        ("「却说那大圣径入深山，」【", "「〔却说那大圣径入深山，〕」【"),  # 括号不与样文自己的相混
    ],
)
def test_marks(sample, marked):
    assert CopyIndex(TEXT).find_copies(sample).marked() == marked


def test_touching_copies_from_different_places_stay_apart():
    first, second = "一二三四五六七八九十", "甲乙丙丁戊己庚辛壬癸"
    copies = CopyIndex(f"{first}，{second}").find_copies(first + second)
    assert copies.spans == [(0, 10), (10, 20)] and copies.rate == 1.0
    assert copies.marked() == f"【{first}】【{second}】"


def test_repeated_text_is_no_slower():
    """同样的一行三千遍：每个片段都有几千处，只看排在旁边的两处。"""
    line = "大圣大圣行者行者呆子呆子\n"
    begin = time.perf_counter()
    copies = CopyIndex(line * 3000).find_copies(line * 20 + "八戒")
    assert copies.spans == [(0, len(line) * 20)]
    assert time.perf_counter() - begin < 5


def test_summary_counts_by_hand():
    copies = CopyIndex(TEXT).find_copies("某日，却说那大圣径入深山，见一人")
    assert copies.summary() == (
        "原文照抄率 62.5%（10 / 16 字，10 字以上与原文相同的才算），最长的相同 10 字：却说那大圣径入深山，"
    )
    assert CopyIndex(TEXT).find_copies("").summary() == "原文照抄率 0.0%（0 / 0 字，10 字以上与原文相同的才算）"
    assert CopyIndex("一\n二").find_copies("一\n二").summary().endswith("最长的相同 3 字：一↵二")


def test_default_corpus_takes_a_fraction_of_a_second():
    """14 万字；小说全文见 docs/采样.md。时限放得很宽，机器忙时也不误报。"""
    text = (ROOT / "data" / "西游记.txt").read_text(encoding="utf-8")
    begin = time.perf_counter()
    index = CopyIndex(text)
    assert index.find_copies(text[5000:5500]).rate == 1.0
    assert time.perf_counter() - begin < 3


def test_index_of_a_file_reads_it_like_training_does(tmp_path):
    path = tmp_path / "corpus.txt"
    path.write_bytes("\ufeff第一行\r\n第二行".encode())
    assert index_file(TextFile.scan(path)).text == "第一行\n第二行"


def test_file_too_large_for_the_memory_is_said_before_it_is_read(tmp_path, monkeypatch):
    path = tmp_path / "corpus.txt"
    path.write_text("悟空" * 100, encoding="utf-8")
    available = SimpleNamespace(available=200 * BYTES_PER_CHARACTER - 1)
    monkeypatch.setattr("psutil.virtual_memory", lambda: available)
    monkeypatch.setattr(copy_check, "CopyIndex", None)
    with pytest.raises(RunError, match="错误：内存：预计需要"):
        index_file(TextFile.scan(path))


def test_order_is_a_permutation():
    order = suffix_array("悟空" * 1000)
    assert np.array_equal(np.sort(order), np.arange(2000))
