"""utils/corpus.py 怎样切开一篇文本；还有随项目发行的语料本身是否合乎约定。"""

import re

import pytest
import torch

from conftest import ROOT
from utils.corpus import Corpus
from utils.errors import UserError
from utils.settings import TrainingSettings

BYTES_ONLY = {"type": "bpe", "vocab_size": 257}  # 没有一次合并：一个 token 就是一个字节
CORPUS_PATH = ROOT / "data" / "西游记.txt"
DIGITS = "零一二三四五六七八九"
HEADING = re.compile(r"第[一二三四五六七八九十百]+回 ")  # 正文里也有“第二回国王亲自……”这样开头的段落，没有空格


def make_corpus(text: str, path="语料.txt") -> Corpus:
    return Corpus.from_text(text, BYTES_ONLY, path)


def test_text_is_split_by_position_and_each_part_encoded_alone():
    text = "悟空abc" * 40  # 200 个字
    corpus = make_corpus(text)
    assert (corpus.train_text, corpus.validate_text) == (text[:180], text[180:])
    assert corpus.train_ids.dtype == corpus.validate_ids.dtype == torch.int32
    assert corpus.tokenizer.decode(corpus.train_ids.tolist()) == text[:180]
    assert corpus.tokenizer.decode(corpus.validate_ids.tolist()) == text[180:]


def test_characters_per_token_counts_both_parts():
    assert make_corpus("a" * 100).characters_per_token == 1.0
    assert make_corpus("悟" * 100).characters_per_token == pytest.approx(1 / 3)
    # 训练部分 90 个 a，验证部分 10 个汉字即 30 个字节
    assert make_corpus("a" * 90 + "悟" * 10).characters_per_token == pytest.approx(100 / 120)


@pytest.mark.parametrize("text", ["", " \n\t\u3000"])
def test_text_without_content_is_refused(text):
    with pytest.raises(UserError, match="错误：语料.txt：没有内容"):
        make_corpus(text)


def test_validation_keeps_the_order_and_training_is_shuffled():
    corpus = make_corpus("".join(chr(32 + index % 90) for index in range(2000)))
    train, validate = corpus.create_loaders(9, TrainingSettings(batch_size=4))
    inputs = torch.cat([inputs for inputs, _ in validate])
    assert torch.equal(inputs.flatten(), corpus.validate_ids[: 22 * 9].long())  # 200 个 token，22 个窗口
    assert [len(inputs) for inputs, _ in validate] == [4, 4, 4, 4, 4, 2]
    starts = torch.cat([inputs for inputs, _ in train])
    in_order = corpus.train_ids[: 199 * 9].long().view(199, 9)
    assert not torch.equal(starts, in_order)
    assert sorted(starts.tolist()) == sorted(in_order.tolist())


def test_stride_is_only_for_training():
    corpus = make_corpus("abcde" * 100)  # 训练 450，验证 50 个 token
    whole, overlapping = (
        corpus.create_loaders(10, TrainingSettings(stride=stride, batch_size=1)) for stride in (None, 3)
    )
    assert (len(whole[0]), len(overlapping[0])) == (44, 147)  # (450 - 11) // 3 + 1
    assert len(whole[1]) == len(overlapping[1]) == 4


def test_seed_decides_the_training_order():
    corpus = make_corpus("".join(chr(32 + index % 90) for index in range(2000)))
    orders = []
    for seed in (1, 1, 2):
        train, _ = corpus.create_loaders(9, TrainingSettings(seed=seed))
        orders.append(torch.cat([inputs for inputs, _ in train]))
    assert torch.equal(orders[0], orders[1]) and not torch.equal(orders[0], orders[2])


def test_corpus_shorter_than_one_window_names_the_part():
    corpus = make_corpus("a" * 100)  # 训练 90，验证 10 个 token
    settings = TrainingSettings()
    corpus.create_loaders(9, settings)  # 9 个输入加一个目标，刚好
    with pytest.raises(
        UserError, match="错误：语料.txt：验证部分只有 10 个 token，至少需要 11 个。减小.*context_length"
    ):
        corpus.create_loaders(10, settings)
    with pytest.raises(UserError, match="训练部分只有 90 个 token，至少需要 91 个"):
        corpus.create_loaders(90, settings)


# 以下检查 data/西游记.txt


@pytest.fixture(scope="module")
def shipped() -> str:
    return CORPUS_PATH.read_bytes().decode("utf-8")


def chinese_number(number: int) -> str:
    """1 到 100 的中文写法，如 十、十一、二十、九十九、一百。"""
    if number == 100:
        return "一百"
    tens, ones = divmod(number, 10)
    text = {0: "", 1: "十"}.get(tens, f"{DIGITS[tens]}十")
    return text + (DIGITS[ones] if ones else "")


def paragraphs_of(text: str) -> list[str]:
    return [line for line in text.split("\n") if line and not HEADING.match(line)]


def test_shipped_corpus_is_plain_utf8(shipped):
    assert not shipped.startswith("\ufeff") and "\r" not in shipped and shipped.endswith("\n")
    assert len(re.findall(r"[\u4e00-\u9fff]", shipped)) >= 60_000


def test_shipped_corpus_has_only_the_allowed_characters(shipped):
    for number, line in enumerate(shipped.split("\n"), 1):
        text = line.replace(" ", "", 1) if HEADING.match(line) else line
        strange = re.findall(r"[^\u4e00-\u9fff，。！？：；、“”‘’《》…—（）·]", text)
        assert not strange, f"第 {number} 行有 {strange}"


def test_shipped_corpus_has_one_hundred_chapters_in_order(shipped):
    lines = shipped.split("\n")
    places = [index for index, line in enumerate(lines) if HEADING.match(line)]
    assert [lines[index].split(" ")[0] for index in places] == [f"第{chinese_number(n)}回" for n in range(1, 101)]
    for index in places:
        assert re.fullmatch(HEADING.pattern + r"\S+", lines[index]), lines[index]
        assert lines[index + 1] == "" and lines[index + 2] != "", lines[index]
    assert places[0] == 0


def test_every_chapter_of_the_shipped_corpus_has_text(shipped):
    chapters = re.split(rf"^{HEADING.pattern}\S+\n\n", shipped, flags=re.MULTILINE)[1:]
    assert len(chapters) == 100 and min(len(chapter.strip()) for chapter in chapters) >= 100


def test_shipped_corpus_never_repeats_itself(shipped):
    """训练部分和验证部分若有相同的长句，验证损失就不可信了。"""
    paragraphs = paragraphs_of(shipped)
    assert len(set(paragraphs)) == len(paragraphs)
    first_seen: dict[str, int] = {}
    for number, paragraph in enumerate(paragraphs):
        for start in range(len(paragraph) - 19):
            run = paragraph[start : start + 20]
            assert first_seen.setdefault(run, number) == number, f"重复的二十字：{run}"
