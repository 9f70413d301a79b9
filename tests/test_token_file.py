"""utils/token_file.py：多线程分词与整篇分词一致，文件坏了看得出来，写不进去也能继续。"""

import os
import random
import re
import warnings
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from utils import text_utils, token_file
from utils.sure_break import SURE_BREAK
from utils.text_utils import SPLIT_PATTERNS, Tokenizer, load_gpt2_tokenizer, train_tokenizer
from utils.token_file import create_tokens, encode_on_all_cores, open_tokens, write_tokens

FRAGMENTS = [
    *(" ", "  ", "\n", "\n\n", " \n", "\t", "\r\n", "\u3000", "\u3000\u3000", "\xa0", "\u2028", "\x1c", "\x85"),
    *("don't", "we'll", "'s", "'", "it’s", "I've ", "'ll", " 'd", "a", "B2", "3", "１２", "٣", "x_y", "héllo", "слово"),
    *("悟空", "道", "：“", "”", "，", "。", "！？", "…", "、", "——", "ひらがな", "カタカナ", "한국어", "ไทย", "हिन्दी"),
    *("👍", "👨‍👩‍👧‍👦", "🏳️‍🌈", "e\u0301", "𠮷", "\x00", "\ufeff", "<|endoftext|>", "==", "-", "@#", "/", "[{", "~`"),
]
PARTS = ["悟空笑道：don't！\n\n" * 30, "八戒 it's\r\n" * 10]


def random_text(seed: int, length: int = 400) -> str:
    return "".join(random.Random(seed).choices(FRAGMENTS, k=length))


def random_pieces(text: str, seed: int) -> list[str]:
    """随意切成几十段，有的是空的。"""
    cuts = sorted(random.Random(seed).choices(range(len(text) + 1), k=30))
    return [text[start:stop] for start, stop in zip([0, *cuts], [*cuts, len(text)], strict=True)]


@pytest.fixture(scope="module", params=SPLIT_PATTERNS)
def tokenizer(request) -> Tokenizer:
    text = "".join(random_text(seed) for seed in range(30))
    return train_tokenizer(text, 1000, request.param)


@pytest.mark.parametrize("chunk_characters", [1, 2, 7, 50, 100_000])
def test_chunks_on_all_cores_give_the_ids_of_the_whole_text(tokenizer, monkeypatch, chunk_characters):
    monkeypatch.setattr(text_utils, "CHUNK_CHARACTERS", chunk_characters)
    for seed in range(40):
        text = random_text(seed)
        arrays = list(encode_on_all_cores(tokenizer, random_pieces(text, seed)))
        assert np.concatenate(arrays).tolist() == tokenizer.encode(text)
        assert chunk_characters > 50 or len(arrays) > 3


def test_every_sure_break_really_is_one(tokenizer):
    """在每一个可能下刀的地方单独切一次。"""
    text = random_text(1234, 1500)
    whole = tokenizer.encode(text)
    places = [match.start() for match in SURE_BREAK.finditer(text)]
    assert len(places) > 300
    for place in places:
        assert tokenizer.encode(text[:place]) + tokenizer.encode(text[place:]) == whole


@pytest.mark.parametrize("blank", [" ", "\n", "\u3000"])
def test_very_long_blanks_are_cut_where_the_whole_text_is(tokenizer, monkeypatch, blank):
    monkeypatch.setattr(text_utils, "CHUNK_CHARACTERS", 100)
    text = "悟空" + blank * 25_003 + "八戒，" + blank * 9_999 + "沙僧" + blank * 10_000
    arrays = list(encode_on_all_cores(tokenizer, random_pieces(text, 1)))
    assert len(arrays) > 2 and np.concatenate(arrays).tolist() == tokenizer.encode(text)


def test_text_without_a_sure_break_is_one_chunk(tokenizer, monkeypatch):
    monkeypatch.setattr(text_utils, "CHUNK_CHARACTERS", 10)
    arrays = list(encode_on_all_cores(tokenizer, ["悟空大圣" * 10] * 3))
    assert len(arrays) == 1 and arrays[0].tolist() == tokenizer.encode("悟空大圣" * 30)


def test_reading_never_runs_far_ahead_of_encoding(tokenizer, monkeypatch):
    monkeypatch.setattr(token_file, "_count_cores", lambda: 2)
    monkeypatch.setattr(text_utils, "CHUNK_CHARACTERS", 5)
    taken = []

    def pieces():
        for index in range(1000):
            taken.append(index)
            yield "悟空，大圣 "

    encoded = encode_on_all_cores(tokenizer, pieces())
    next(encoded)
    assert len(taken) < 10
    encoded.close()


def write(file, tokenizer, parts=PARTS, info=None):
    write_tokens(file, tokenizer, [[part] for part in parts], info or {"名字": "甲"})


def test_written_parts_are_mapped_back_without_a_warning(tokenizer, tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tokens = create_tokens(tmp_path / "new" / "a.tokens", partial(write, tokenizer=tokenizer))
    assert [part.tolist() for part in tokens.parts] == [tokenizer.encode(part) for part in PARTS]
    assert tokens.info == {"名字": "甲"} and [part.dtype for part in tokens.parts] == [torch.uint16] * 2
    again = open_tokens(tmp_path / "new" / "a.tokens")
    assert all(map(torch.equal, again.parts, tokens.parts)) and again.info == tokens.info
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["a.tokens"]


def test_part_may_be_empty(tokenizer, tmp_path):
    tokens = create_tokens(tmp_path / "a.tokens", partial(write, tokenizer=tokenizer, parts=["", "悟空"]))
    assert [part.tolist() for part in tokens.parts] == [[], tokenizer.encode("悟空")]


@pytest.mark.parametrize(("vocab_size", "dtype"), [(65_536, torch.uint16), (65_537, torch.int32)])
def test_smallest_integer_that_holds_the_vocabulary_is_used(tmp_path, vocab_size, dtype):
    ranks = dict(load_gpt2_tokenizer()._ranks)
    for number in range(len(ranks), vocab_size - 1):  # 用不到的 token 凑足大小
        ranks[b"\xff\xff" + number.to_bytes(3, "big")] = number
    large = Tokenizer("bpe", ranks)
    assert large.vocab_size == vocab_size
    tokens = create_tokens(tmp_path / "a.tokens", partial(write, tokenizer=large))
    assert tokens.parts[0].dtype == dtype and tokens.parts[0].tolist() == large.encode(PARTS[0])


def test_damage_anywhere_is_noticed(tokenizer, tmp_path, capsys):
    path = tmp_path / "a.tokens"
    create_tokens(path, partial(write, tokenizer=tokenizer))
    whole = path.read_bytes()
    for position in range(0, len(whole), 7):
        damaged = bytearray(whole)
        damaged[position] ^= 1 << position % 8
        path.write_bytes(damaged)
        assert open_tokens(path) is None
    for length in (0, 1, 39, 40, 41, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        assert open_tokens(path) is None
    assert "a.tokens 已损坏，重新分词。" in capsys.readouterr().err
    path.write_bytes(whole)
    assert open_tokens(path) is not None and capsys.readouterr().err == ""


def test_absent_file_is_not_worth_a_word(tmp_path, capsys):
    assert open_tokens(tmp_path / "none") is None and capsys.readouterr().err == ""


def test_place_that_cannot_be_written_gives_a_temporary_file_and_one_hint(tokenizer, tmp_path, capsys):
    (tmp_path / "file").write_bytes(b"")
    tokens = create_tokens(tmp_path / "file" / "a.tokens", partial(write, tokenizer=tokenizer))
    assert [part.tolist() for part in tokens.parts] == [tokenizer.encode(part) for part in PARTS]
    captured = capsys.readouterr()
    assert captured.err.count("\n") == 1 and "这次用临时文件" in captured.err and captured.out == ""
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_disk_that_fills_up_gives_a_temporary_file_too(tokenizer, tmp_path):
    attempts = []

    def fail_once(file):
        attempts.append(file)
        write(file, tokenizer)
        if len(attempts) == 1:
            raise OSError(28, "No space left on device")

    tokens = create_tokens(tmp_path / "a.tokens", fail_once)
    assert tokens.parts[1].tolist() == tokenizer.encode(PARTS[1])
    assert list(tmp_path.iterdir()) == []


def test_interrupted_writing_leaves_nothing(tokenizer, tmp_path):
    def pieces():
        yield "悟空 "
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        create_tokens(tmp_path / "a.tokens", lambda file: write_tokens(file, tokenizer, [pieces()], {}))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="没有 /proc，看不到常驻内存")
def test_released_pages_leave_the_resident_memory_and_come_back(tokenizer, tmp_path):
    tokens = create_tokens(tmp_path / "a.tokens", partial(write, tokenizer=tokenizer, parts=["悟空，" * 2_000_000]))
    before = resident_bytes()
    total = tokens.parts[0].int().sum()
    touched = resident_bytes()
    tokens.release()
    assert touched - before > 3e6 and touched - resident_bytes() > 3e6
    assert tokens.parts[0].int().sum() == total


def resident_bytes() -> int:
    """文件映射占的常驻内存。"""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return int(re.search(r"RssFile:\s+(\d+) kB", status)[1]) * 1024
