"""utils/corpus.py 怎样切开一篇文本；还有随项目发行的语料本身是否合乎约定。"""

import os
import re
from pathlib import Path

import pytest
import torch

from conftest import ROOT, make_corpus
from utils import corpus as corpus_module
from utils import files, text_utils, token_file, vocabulary_text
from utils.corpus import Corpus
from utils.errors import UserError
from utils.settings import TrainingSettings
from utils.text_file import TextFile

BYTES_ONLY = {"type": "bpe", "vocab_size": 257}  # 没有一次合并：一个 token 就是一个字节
CORPUS_PATH = ROOT / "data" / "西游记.txt"
DIGITS = "零一二三四五六七八九"
HEADING = re.compile(r"第[一二三四五六七八九十百]+回 ")  # 正文里也有“第二回国王亲自……”这样开头的段落，没有空格


@pytest.fixture(autouse=True)
def _in_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def corpus_of(text: str, spec: dict = BYTES_ONLY) -> Corpus:
    return make_corpus(text, spec, Path("语料.txt"))


def test_text_is_split_by_position_and_each_part_encoded_alone():
    text = "悟空abc" * 40  # 200 个字
    corpus = corpus_of(text)
    assert (corpus.train_characters, corpus.validate_characters) == (180, 20)
    assert corpus.train_ids.dtype == corpus.validate_ids.dtype == torch.uint16
    assert corpus.tokenizer.decode(corpus.train_ids.tolist()) == text[:180]
    assert corpus.tokenizer.decode(corpus.validate_ids.tolist()) == text[180:]


def test_characters_per_token_counts_both_parts():
    assert corpus_of("a" * 100).characters_per_token == 1.0
    assert corpus_of("悟" * 100).characters_per_token == pytest.approx(1 / 3)
    # 训练部分 90 个 a，验证部分 10 个汉字即 30 个字节
    assert corpus_of("a" * 90 + "悟" * 10).characters_per_token == pytest.approx(100 / 120)


def test_excerpt_and_opening_come_from_the_two_beginnings():
    corpus = corpus_of("训练部分。" * 180 + "\n\u3000验证部分从这里开始。" + "字" * 88)
    assert corpus.excerpt == "训练部分。" * 180 and corpus.opening == "验证部分从这里开"
    assert corpus_of("\n 训练" * 90 + " \n\u3000" * 30).opening == "训练\n 训练\n "  # 验证部分全是空白
    assert corpus_of("训练" * 40 + " \n" * 10).opening == "训练训练训练训练"
    assert corpus_of("训练" * 36 + " \n悟 空\n\n\n").opening == "悟 空\n\n\n"


# 缓存


def refuse_to_tokenize(monkeypatch) -> None:
    for name in ("build_tokenizer", "create_tokens"):
        monkeypatch.setattr(corpus_module, name, lambda *args: pytest.fail("又分了一遍词"))


def same(one: Corpus, other: Corpus) -> bool:
    return torch.equal(one.train_ids, other.train_ids) and torch.equal(one.validate_ids, other.validate_ids)


@pytest.mark.parametrize("spec", [{"type": "gpt2"}, {"type": "bpe", "vocab_size": 300, "split": "han"}])
def test_unchanged_text_is_never_tokenized_again(corpus_text, monkeypatch, cache_dir, spec):
    first = corpus_of(corpus_text, spec)
    os.utime("语料.txt", (1, 1))  # 日期不算数
    refuse_to_tokenize(monkeypatch)
    again = corpus_of(corpus_text, spec)
    assert same(first, again) and again.tokenizer.state() == first.tokenizer.state()
    assert [path.suffix for path in cache_dir.iterdir()] == [".tokens"]


def test_changed_text_or_tokenizer_is_tokenized_anew(corpus_text, cache_dir):
    spec = {"type": "bpe", "vocab_size": 300}
    first = corpus_of(corpus_text, spec)
    times = os.stat("语料.txt").st_mtime_ns
    changed = corpus_text.replace("，", "。", 1)
    Path("语料.txt").write_text(changed, encoding="utf-8", newline="")
    os.utime("语料.txt", ns=(times, times))  # 日期和大小都没有变
    second = Corpus.from_file(TextFile.scan(Path("语料.txt")), spec)
    assert second.tokenizer.decode(second.train_ids.tolist()) == changed[: second.train_characters]
    assert not same(first, second)
    assert corpus_of(corpus_text, {**spec, "vocab_size": 301}).tokenizer.vocab_size == 301
    assert corpus_of(corpus_text, {**spec, "split": "han"}).tokenizer.split == "han"
    assert len(list(cache_dir.iterdir())) == 4


def test_changed_code_replaces_the_old_cache(corpus_text, monkeypatch, cache_dir):
    corpus_of(corpus_text)
    monkeypatch.setattr(corpus_module, "_fingerprint_of_code", lambda: "改过的代码")
    corpus_of(corpus_text)
    assert len(list(cache_dir.iterdir())) == 1
    refuse_to_tokenize(monkeypatch)
    corpus_of(corpus_text)


def test_fingerprint_covers_the_code_that_tokenizes():
    modules = (corpus_module, text_utils, token_file, vocabulary_text)
    used = {Path(module.__file__).name for module in modules}
    assert used | {"text_file.py", "data_loader.py", "sure_break.py"} == set(corpus_module.TOKENIZING_CODE)


def test_damaged_cache_is_rebuilt(corpus_text, cache_dir, capsys):
    first = corpus_of(corpus_text)
    (path,) = cache_dir.iterdir()
    data = bytearray(path.read_bytes())
    data[100] ^= 1
    path.unlink()
    path.write_bytes(data)
    assert same(corpus_of(corpus_text), first) and "重新分词" in capsys.readouterr().err
    assert same(corpus_of(corpus_text), first) and capsys.readouterr().err == ""


def test_cache_that_cannot_be_written_does_not_matter(corpus_text, tmp_path, monkeypatch, capsys):
    first = corpus_of(corpus_text)
    (tmp_path / "file").write_bytes(b"")
    monkeypatch.setattr(files, "CACHE_DIR", tmp_path / "file")
    assert same(corpus_of(corpus_text), first)
    assert capsys.readouterr().err.count("\n") == 1


def test_vocabulary_of_a_long_text_comes_from_all_over_the_training_part(monkeypatch):
    """八成是“甲乙”，中间一成是“丙丁”，验证部分是“戊己”。"""
    monkeypatch.setattr(vocabulary_text, "VOCABULARY_CHARACTERS", 1000)
    text = "甲乙" * 2000 + "丙丁" * 500 + "甲乙" * 2000 + "戊己" * 500
    corpus = corpus_of(text, {"type": "bpe", "vocab_size": 300})
    tokens = {corpus.tokenizer.token_bytes(token_id) for token_id in range(corpus.tokenizer.vocab_size - 1)}
    assert {"甲乙".encode(), "丙丁".encode()} <= tokens and not any("戊".encode() in token for token in tokens)
    sample = vocabulary_text.text_from_file(TextFile.scan(Path("语料.txt")), corpus.train_characters)
    assert len(sample) == 1000 and 80 <= sample.count("丙") + sample.count("丁") <= 140


def test_large_corpus_gives_the_ids_of_each_part_tokenized_whole(corpus_text, monkeypatch):
    monkeypatch.setattr(text_utils, "CHUNK_CHARACTERS", 100)
    monkeypatch.setattr("utils.text_file.BLOCK_BYTES", 64)
    text = "\ufeff" + corpus_text.replace("\n", "\r\n") + "don't 👍"
    corpus = corpus_of(text, {"type": "gpt2"})
    text = text[1:].replace("\r\n", "\n")
    assert corpus.train_ids.tolist() == corpus.tokenizer.encode(text[: int(len(text) * 0.9)])
    assert corpus.validate_ids.tolist() == corpus.tokenizer.encode(text[int(len(text) * 0.9) :])


# 数据


def test_validation_keeps_the_order_and_training_is_shuffled():
    corpus = corpus_of("".join(chr(32 + index % 90) for index in range(2000)))
    train, validate = corpus.create_loaders(9, TrainingSettings(batch_size=4))
    inputs = torch.cat([inputs for inputs, _ in validate])
    assert torch.equal(inputs.flatten(), corpus.validate_ids[: 22 * 9].long())  # 200 个 token，22 个窗口
    assert [len(inputs) for inputs, _ in validate] == [4, 4, 4, 4, 4, 2]
    starts = list(train.sampler)
    assert len(starts) == 199 and starts != sorted(starts)
    assert {start % 9 for start in starts} == {starts[0] % 9}  # 互不重叠，一个接一个
    windows = torch.stack([corpus.train_ids[start : start + 9] for start in starts]).long()
    assert torch.equal(torch.cat([inputs for inputs, _ in train]), windows)


def test_stride_is_only_for_training():
    corpus = corpus_of("abcde" * 100)  # 训练 450，验证 50 个 token
    whole, overlapping = (
        corpus.create_loaders(10, TrainingSettings(stride=stride, batch_size=1)) for stride in (None, 3)
    )
    assert (len(whole[0]), len(overlapping[0])) == (44, 146)  # 440 个开头，每 10 个或每 3 个取一个
    assert len(whole[1]) == len(overlapping[1]) == 4


def test_seed_decides_the_training_order():
    corpus = corpus_of("".join(chr(32 + index % 90) for index in range(2000)))
    orders = []
    for seed in (1, 1, 2):
        train, _ = corpus.create_loaders(9, TrainingSettings(seed=seed))
        orders.append(torch.cat([inputs for inputs, _ in train]))
    assert torch.equal(orders[0], orders[1]) and not torch.equal(orders[0], orders[2])


def test_corpus_shorter_than_one_window_names_the_part():
    corpus = corpus_of("a" * 100)  # 训练 90，验证 10 个 token
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
