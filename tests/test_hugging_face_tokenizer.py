"""utils/hugging_face_tokenizer.py：transformers 打开的分词器与我们的编码完全相同，读回来也是同一个。"""

import json
import random

import pytest
from transformers import AutoTokenizer

from utils.errors import UserError
from utils.hugging_face_tokenizer import read_tokenizer, recover_merges, tokenizer_files
from utils.text_utils import Tokenizer, load_gpt2_tokenizer, train_tokenizer

EDGE_CASES = [
    "",
    " ",
    "\n",
    "悟空道：“师父！”",
    "I'll say: don't  stop.\n\n  x\t y  ",
    "Monkey 大闹天宫 500 年 ５００",
    "<|endoftext|>",
    "a<|endoftext|>b <|endoftext|>",
    "😀👨‍👩‍👧‍👦 🇨🇳 𠀀𪚥",
    "e\u0301 \ufeff\u200b\u3000全角　空格\u00a0",
    "\x00\x1c\x1f\x7f\r\n\r",
    "a" * 3000,
    "哈" * 3000,
    " " * 9999 + "中",
    " " * 20_001 + "a",
    "\n" * 10_000,
    "\x1c" * 10_001 + " b",
    "١٢٣ Ⅳ ½ ぁあァ 한국어 हिन्दी ไทย",
]


def write(folder, tokenizer) -> None:
    for name, data in tokenizer_files(tokenizer, 1 << 20).items():
        (folder / name).write_bytes(data)


@pytest.fixture(scope="module", params=["gpt2", "bpe gpt2", "bpe han"])
def pair(request, tmp_path_factory, corpus_text):
    """(我们的, transformers 打开的, 文件夹)"""
    kind, _, split = request.param.partition(" ")
    tokenizer = load_gpt2_tokenizer() if kind == "gpt2" else train_tokenizer(corpus_text, 700, split)
    folder = tmp_path_factory.mktemp("tokenizer")
    write(folder, tokenizer)
    return tokenizer, AutoTokenizer.from_pretrained(folder), folder


@pytest.mark.parametrize("text", EDGE_CASES, ids=range(len(EDGE_CASES)))
def test_edge_cases_are_encoded_and_decoded_the_same(pair, text):
    ours, theirs, _ = pair
    token_ids = ours.encode(text)
    assert theirs.encode(text) == token_ids
    assert theirs.decode(token_ids) == text


def test_novel_is_encoded_the_same(pair, corpus_text):
    ours, theirs, _ = pair
    assert theirs.encode(corpus_text) == ours.encode(corpus_text)


def test_random_text_is_encoded_the_same(pair):
    """各种文字、标点、空白随意混在一起。"""
    ours, theirs, _ = pair
    generator = random.Random(5)
    alphabet = [*map(chr, range(1, 0x250)), *map(chr, range(0x2000, 0x2070)), *map(chr, range(0x3000, 0x3100))]
    alphabet += [chr(generator.randrange(0x4E00, 0xA000)) for _ in range(300)]
    alphabet += [chr(generator.randrange(0x10000, 0x32000)) for _ in range(300)] + [" ", "\n", "'"] * 40
    for _ in range(200):
        text = "".join(generator.choices(alphabet, k=40))
        assert theirs.encode(text) == ours.encode(text), repr(text)


def test_special_token_ends_the_text(pair):
    ours, theirs, _ = pair
    assert (theirs.eos_token_id, len(theirs)) == (ours.end_of_text_id, ours.vocab_size)
    assert theirs.decode([ours.end_of_text_id]) == ours.decode([ours.end_of_text_id])


def test_tokenizer_is_read_back(pair):
    ours, _, folder = pair
    assert read_tokenizer(folder) == ours.state()


def test_folder_without_a_tokenizer_means_gpt2(tmp_path):
    assert read_tokenizer(tmp_path) == load_gpt2_tokenizer().state()


def test_vocab_json_alone_is_gpt2_or_refused(tmp_path):
    write(tmp_path, load_gpt2_tokenizer())
    (tmp_path / "tokenizer.json").unlink()
    assert read_tokenizer(tmp_path) == {"type": "gpt2"}
    (tmp_path / "vocab.json").write_text('{"别的": 0}', encoding="utf-8")
    with pytest.raises(UserError, match="vocab.json：不是 GPT-2 的词表"):
        read_tokenizer(tmp_path)


@pytest.mark.parametrize("name", ["vocab.txt", "spiece.model"])
def test_other_vocabularies_are_not_taken_for_gpt2(tmp_path, name):
    (tmp_path / name).write_text("别的", encoding="utf-8")
    with pytest.raises(UserError, match=f"{name}：不是 GPT-2 的词表"):
        read_tokenizer(tmp_path)


def test_gpt2_of_any_origin_is_recognized(tmp_path):
    """别处的 tokenizer.json 写法不同：切法在 ByteLevel 里，结束符也列在词表里。"""
    write(tmp_path, load_gpt2_tokenizer())
    path = tmp_path / "tokenizer.json"
    values = json.loads(path.read_text(encoding="utf-8"))
    values["pre_tokenizer"] = {"type": "ByteLevel", "add_prefix_space": False}
    values["model"]["vocab"]["<|endoftext|>"] = 50256
    path.write_text(json.dumps(values), encoding="utf-8")
    assert read_tokenizer(tmp_path) == {"type": "gpt2"}
    path.write_text(json.dumps({**values, "normalizer": {"type": "Lowercase"}}), encoding="utf-8")
    with pytest.raises(UserError, match="不是 GPT-2 的分词器"):  # 词表相同，编码却不同
        read_tokenizer(tmp_path)


def test_saved_again_by_transformers_it_is_still_ours(pair, tmp_path):
    ours, theirs, _ = pair
    theirs.save_pretrained(tmp_path)
    assert read_tokenizer(tmp_path) == ours.state()


def change(path: list, value):
    """把 tokenizer.json 里 path 处的值换成 value 的函数。"""

    def apply(values):
        for key in path[:-1]:
            values = values[key]
        values[path[-1]] = value

    return apply


EXTRA = {"id": 700, "content": "<pad>", "special": True, "normalized": False}
WITH_START = {"type": "TemplateProcessing", "special_tokens": {"<|endoftext|>": {"ids": [0]}}}


@pytest.mark.parametrize("kind", ["gpt2", "bpe"])
@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda values: values["added_tokens"].append(EXTRA), '另加了 token "<pad>"（added_tokens）'),
        (change(["model", "dropout"], 0.1), "dropout 是 0.1"),
        (change(["post_processor"], WITH_START), 'post_processor 是 "TemplateProcessing"'),
        (change(["post_processor"], {"type": "BertProcessing"}), 'post_processor 是 "BertProcessing"'),
        (change(["pre_tokenizer"], {"type": "ByteLevel", "add_prefix_space": True}), "add_prefix_space 是 true"),
    ],
    ids=["added_tokens", "dropout", "template", "bert", "add_prefix_space"],
)
def test_what_would_be_encoded_differently_is_named(tmp_path, corpus_text, kind, damage, words):
    """词表相同，别的地方还有会改变编码的。"""
    write(tmp_path, load_gpt2_tokenizer() if kind == "gpt2" else train_tokenizer(corpus_text, 700, "han"))
    path = tmp_path / "tokenizer.json"
    values = json.loads(path.read_text(encoding="utf-8"))
    damage(values)
    path.write_text(json.dumps(values), encoding="utf-8")
    with pytest.raises(UserError) as refused:
        read_tokenizer(tmp_path)
    assert str(refused.value).startswith(f"错误：{path}：{words}")


@pytest.mark.parametrize(
    ("name", "values", "words"),
    [
        ("added_tokens.json", {"<|endoftext|>": 50256, "<pad>": 50257}, '另加了 token "<pad>"'),
        ("tokenizer_config.json", {"added_tokens_decoder": {"50257": EXTRA}}, '另加了 token "<pad>"'),
        ("tokenizer_config.json", {"added_tokens_decoder": [1]}, "added_tokens_decoder 写得不对"),
    ],
)
def test_tokens_added_beside_the_tokenizer_are_named(tmp_path, name, values, words):
    (tmp_path / name).write_text(json.dumps(values), encoding="utf-8")
    with pytest.raises(UserError, match=f"{name}：{words}"):
        read_tokenizer(tmp_path)


@pytest.mark.parametrize(
    "damage",
    [
        change(["model"], {"type": "WordPiece", "vocab": {"[UNK]": 0, "中": 1}}),
        change(["model"], {"type": "Unigram", "vocab": [["a", 0.0]]}),
        change(["model"], None),
        change(["normalizer"], {"type": "NFC"}),
        change(["pre_tokenizer"], {"type": "ByteLevel"}),
        change(["model", "merges"], []),
        change(["model", "vocab", "a"], 5000),
        change(["model", "vocab", "a"], "0"),
        change(["model", "vocab", "新词"], 699),
    ],
)
def test_other_tokenizers_are_refused(tmp_path, corpus_text, damage):
    write(tmp_path, train_tokenizer(corpus_text, 700, "han"))
    path = tmp_path / "tokenizer.json"
    values = json.loads(path.read_text(encoding="utf-8"))
    damage(values)
    path.write_text(json.dumps(values), encoding="utf-8")
    with pytest.raises(UserError, match="tokenizer.json.*不是 GPT-2 的分词器"):
        read_tokenizer(tmp_path)


def test_merges_are_the_ones_the_vocabulary_was_trained_with():
    """ab、abc、bc 依次合并：abc 来自 ab + c，而不是 a + bc。"""
    ranks = {bytes([byte]): byte for byte in range(256)} | {b"ab": 256, b"abc": 257, b"bc": 258}
    assert recover_merges(ranks) == [(b"a", b"b"), (b"ab", b"c"), (b"b", b"c")]


def test_token_that_merging_cannot_reach_is_still_used_for_the_whole_word(tmp_path):
    ranks = {bytes([byte]): byte for byte in range(256)} | {b"xyz": 256}
    ours = Tokenizer("bpe", ranks)
    write(tmp_path, ours)
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    for text in ("xyz", "xyzz", " xyz xyz"):
        assert theirs.encode(text) == ours.encode(text)
