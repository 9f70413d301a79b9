"""utils/text_utils.py：GPT-2 的词表、自己的词表、流式解码。"""

import base64
import os
import random
import subprocess
import sys

import pytest
import tiktoken
import torch
from tiktoken_ext.openai_public import r50k_base

from conftest import ROOT
from utils import text_utils
from utils.config_file import TOKENIZER_SPLITS
from utils.errors import UserError
from utils.sure_break import SURE_BREAK
from utils.text_utils import (
    END_OF_TEXT,
    PARAGRAPH_START,
    StreamDecoder,
    Tokenizer,
    load_gpt2_tokenizer,
    split_chunks,
    text_to_token_ids,
    token_ids_to_text,
    train_tokenizer,
)

# 由 tiktoken.get_encoding("gpt2") 得出，测试时不必联网
GPT2_EXAMPLES = {
    "Hello, world!": [15496, 11, 995, 0],
    "The quick brown fox jumps over the lazy dog.": [464, 2068, 7586, 21831, 18045, 625, 262, 16931, 3290, 13],
    "I'll say it's 2024's   best\n\n": [40, 1183, 910, 340, 338, 48609, 338, 220, 220, 1266, 628],
    "你好": [19526, 254, 25001, 121],
}
TRICKY = [
    "",
    " ",
    "\n\n\n  x",
    "a\tb\r\nc",
    "👨‍👩‍👧‍👦 🏳️‍🌈",
    "\x00\x07\x1b[0m",
    "𠮷𡃁",
    "e\u0301é",
    "don't WE'LL",
    END_OF_TEXT,
    "٣٤５６",
    "\u3000全角",
]


@pytest.fixture(scope="module")
def gpt2() -> Tokenizer:
    return load_gpt2_tokenizer()


@pytest.fixture(scope="module")
def bpe(corpus_text) -> Tokenizer:
    return train_tokenizer(corpus_text, 600)


@pytest.mark.parametrize(("text", "expected"), GPT2_EXAMPLES.items())
def test_gpt2_vocabulary_gives_known_ids(gpt2, text, expected):
    assert gpt2.encode(text) == expected
    assert gpt2.vocab_size == 50257 and gpt2.end_of_text_id == 50256


def test_gpt2_equals_tiktokens_own_definition(gpt2, corpus_text, monkeypatch):
    """用 tiktoken 自己的正则和参数、同一张词表建立对照，不联网。"""
    lines = text_utils.GPT2_VOCABULARY_PATH.read_text(encoding="ascii").splitlines()
    ranks = {base64.b64decode(token): int(rank) for token, rank in (line.split() for line in lines)}
    monkeypatch.setattr("tiktoken_ext.openai_public.load_tiktoken_bpe", lambda *args, **kwargs: ranks)
    reference = tiktoken.Encoding(**r50k_base())
    generator = random.Random(0)
    noise = ["".join(chr(generator.choice([*range(1, 0x250), *range(0x4E00, 0x4E40), 0x1F600])) for _ in range(60))]
    for text in [corpus_text, *TRICKY, *noise, "x" * 5000, " " * 5000 + "x", "\n" * 3000]:
        assert gpt2.encode(text) == reference.encode_ordinary(text)


def test_end_of_text_written_in_a_text_is_only_text(gpt2, bpe):
    for tokenizer in (gpt2, bpe):
        token_ids = tokenizer.encode(f"前{END_OF_TEXT}后")
        assert tokenizer.end_of_text_id not in token_ids
        assert tokenizer.decode(token_ids) == f"前{END_OF_TEXT}后"


def test_damaged_vocabulary_is_refused(tmp_path, monkeypatch):
    data = bytearray(text_utils.GPT2_VOCABULARY_PATH.read_bytes())
    data[5000] ^= 1
    damaged = tmp_path / "gpt2.tiktoken"
    damaged.write_bytes(data)
    monkeypatch.setattr(text_utils, "GPT2_VOCABULARY_PATH", damaged)
    with pytest.raises(UserError, match="校验失败"):
        load_gpt2_tokenizer()


def test_own_vocabulary_round_trips_any_text(bpe, corpus_text):
    assert bpe.vocab_size == 600
    for text in [corpus_text, *TRICKY, "English too"]:
        assert bpe.decode(bpe.encode(text)) == text


def test_own_vocabulary_spends_fewer_tokens_than_gpt2(gpt2, bpe, corpus_text):
    assert len(bpe.encode(corpus_text)) < len(gpt2.encode(corpus_text))


def test_merges_follow_frequency():
    tokenizer = train_tokenizer("abab abab abab cd", 256 + 3 + 1)
    tokens = {tokenizer.token_bytes(token_id) for token_id in range(256, 259)}
    assert b"ab" in tokens and b"abab" in tokens and b"cd" not in tokens


def test_han_split_gives_each_han_character_its_own_token():
    tokenizer = train_tokenizer("悟空笑道：good morning，悟空笑道：good morning。" * 50, 400, split="han")
    tokens = {
        tokenizer.token_bytes(token_id).decode("utf-8", "replace") for token_id in range(256, tokenizer.vocab_size - 1)
    }
    assert {"悟", "空", "笑", "道", " morning"} <= tokens and not {"悟空", "笑道"} & tokens
    assert tokenizer.decode(tokenizer.encode("悟空 said：é٣\n\n")) == "悟空 said：é٣\n\n"
    assert Tokenizer.from_state(tokenizer.state()).encode("悟空笑道") == tokenizer.encode("悟空笑道")
    assert len(tokenizer.encode("悟空笑道")) == 4


def test_splits_have_the_names_the_configuration_knows():
    assert tuple(text_utils.SPLIT_PATTERNS) == TOKENIZER_SPLITS


def test_short_text_gives_a_smaller_vocabulary():
    tokenizer = train_tokenizer("好好好", 5000)
    assert 257 <= tokenizer.vocab_size < 300
    assert tokenizer.end_of_text_id == tokenizer.vocab_size - 1


def test_same_text_gives_same_vocabulary_whatever_threads_and_hash_seed():
    script = (
        "from utils.text_utils import train_tokenizer; import hashlib;"
        "text = open('data/西游记.txt', encoding='utf-8').read();"
        "print(hashlib.sha256(train_tokenizer(text, 1500).state()['ranks'].encode()).hexdigest())"
    )
    digests = set()
    for threads, seed in (("1", "0"), ("2", "1")):
        env = {**os.environ, "RAYON_NUM_THREADS": threads, "PYTHONHASHSEED": seed, "PYTHONPATH": str(ROOT)}
        done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, env=env, capture_output=True, check=True)
        digests.add(done.stdout)
    assert len(digests) == 1


def test_chunks_do_not_change_the_vocabulary(corpus_text, monkeypatch):
    whole = train_tokenizer(corpus_text, 500).state()
    monkeypatch.setattr(text_utils, "CHUNK_CHARACTERS", 50)
    chunks = list(split_chunks([corpus_text], PARAGRAPH_START))
    assert "".join(chunks) == corpus_text and len(chunks) > 10
    assert train_tokenizer(corpus_text, 500).state() == whole


def test_state_rebuilds_the_same_tokenizer(gpt2, bpe, corpus_text):
    for tokenizer in (gpt2, bpe):
        again = Tokenizer.from_state(tokenizer.state())
        assert again.encode(corpus_text) == tokenizer.encode(corpus_text)
    assert gpt2.state() == {"type": "gpt2"}


@pytest.mark.parametrize("ranks", ["", "YQ== 0\n", "不是词表", "YQ== 0\nYg== 0\n"])
def test_incomplete_state_is_refused(ranks):
    with pytest.raises(ValueError):
        Tokenizer.from_state({"type": "bpe", "split": "gpt2", "ranks": ranks})


def test_stream_equals_full_decode_and_never_breaks_a_character(gpt2):
    generator = random.Random(1)
    for text in TRICKY + ["话说孙悟空👍一个筋斗"]:
        decoder, token_ids = StreamDecoder(gpt2), gpt2.encode(text)
        pieces = [decoder.push(token_id) for token_id in token_ids]
        assert "�" not in "".join(pieces)
        assert "".join(pieces) + decoder.finish() == text
    for _ in range(200):  # 任意的 token 序列，常常拼不成字符
        token_ids = [generator.randrange(50256) for _ in range(20)]
        decoder = StreamDecoder(gpt2)
        streamed = "".join(decoder.push(token_id) for token_id in token_ids) + decoder.finish()
        assert streamed == gpt2.decode(token_ids)


@pytest.mark.parametrize("dtype", [torch.int32, torch.uint16])
def test_count_text_counts_characters_and_bytes(bpe, corpus_text, monkeypatch, dtype):
    monkeypatch.setattr(text_utils, "COUNT_BLOCK", 100)
    for text in ("", "悟空a👍\n", corpus_text):
        token_ids = torch.tensor(bpe.encode(text), dtype=torch.int32).to(dtype)
        assert bpe.count_text(token_ids) == (len(text), len(text.encode("utf-8")))


def test_numpy_ids_are_the_same_ids(gpt2, bpe, corpus_text):
    for tokenizer in (gpt2, bpe):
        for text in [corpus_text, *TRICKY, "\n" * 25_000 + "x" + " " * 10_000]:
            assert tokenizer.encode_to_numpy(text).tolist() == tokenizer.encode(text)


def test_chunks_are_cut_only_at_the_places_and_grow_without_them(monkeypatch):
    monkeypatch.setattr(text_utils, "CHUNK_CHARACTERS", 3)
    assert list(split_chunks(["ab", "c,d", "efghijk", ",", "l"], SURE_BREAK)) == ["abc", ",defghijk", ",l"]
    assert list(split_chunks([], SURE_BREAK)) == list(split_chunks(["", ""], SURE_BREAK)) == []


def test_text_and_tensor_conversion(bpe):
    token_ids = text_to_token_ids("悟空", bpe)
    assert token_ids.shape == (1, len(bpe.encode("悟空"))) and token_ids.dtype == torch.long
    assert token_ids_to_text(token_ids, bpe) == "悟空"


def test_lone_surrogates_do_not_crash(bpe):
    assert bpe.encode("a\ud800b")
