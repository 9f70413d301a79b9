"""--data_path 是几个文件或文件夹：像用户那样从命令行运行，到报告、续练、出错的说法。"""

import gzip
import json
import re
from pathlib import Path

import pytest
import torch

from conftest import make_corpus, run, write_config
from utils import vocabulary_text
from utils.corpus import Corpus
from utils.document_split import split_documents
from utils.documents import open_source
from utils.settings import TrainingSettings


@pytest.fixture
def folder(tmp_path, corpus_text):
    """tiny.json，和装着四种文件的文件夹 d。"""
    write_config(tmp_path)
    (tmp_path / "d").mkdir()
    quarters = [corpus_text[start : start + 750] for start in range(0, 3000, 750)]
    lines = ["".join(json.dumps({"text": text[i : i + 50]}) + "\n" for i in range(0, 750, 50)) for text in quarters]
    (tmp_path / "d" / "a.txt").write_text(quarters[0], encoding="utf-8")
    (tmp_path / "d" / "b.jsonl").write_text(lines[1], encoding="utf-8")
    (tmp_path / "d" / "c.txt.gz").write_bytes(gzip.compress(quarters[2].encode()))
    (tmp_path / "d" / "d.jsonl.gz").write_bytes(gzip.compress(lines[3].encode()))
    return tmp_path


def pretrain(folder, *arguments):
    return run("pretrain.py", "--config", "tiny.json", *arguments, cwd=folder)


def refuse(folder, arguments, *parts):
    before = sorted(path.name for path in folder.iterdir())
    result = pretrain(folder, *arguments)
    assert result.code == 2 and (result.stdout == "" or "--resume" in arguments)
    assert result.stderr.count("错误：") == 1 and "Traceback" not in result.stderr
    for part in parts:
        assert part in result.stderr, result.stderr
    assert sorted(path.name for path in folder.iterdir()) == before


def test_folder_is_trained_on_and_described(folder):
    (folder / "d" / "notes.md").write_bytes(b"x")
    result = pretrain(folder, "--data_path", "d")
    assert result.code == 0, result.stderr
    assert result.stderr == "提示：d 里不是语料的没有用：notes.md\n"
    assert re.search(r"语料：d/a.txt 等 4 个文件，训练 2,700 字（[\d,]+ token），验证 300 字", result.stdout)
    page = (folder / "model.pth.report.html").read_text(encoding="utf-8")
    for part in ("d/a.txt 等 4 个文件（utf-8）", "32 篇", "a.txt 1 篇 750 字；b.jsonl 15 篇 750 字", "原文照抄率"):
        assert part in page, part


def test_resumed_run_is_the_uninterrupted_one(folder):
    arguments = ["--data_path", "d", "--save_every", 3]
    assert pretrain(folder, *arguments).code == 0
    whole = (folder / "model.pth").read_bytes()
    (folder / "model.pth.ckpt" / "step-00000006.ckpt").unlink()  # 如同停在第 3 步
    result = pretrain(folder, *arguments, "--resume")
    assert result.code == 0 and "从第 3 步继续" in result.stdout, result.stderr
    assert (folder / "model.pth").read_bytes() == whole


def test_changed_file_is_named_on_resume(folder):
    assert pretrain(folder, "--data_path", "d", "--max_steps", 3).code == 0
    (folder / "d" / "b.jsonl").write_text('{"text": "别的"}\n' * 20, encoding="utf-8")
    (folder / "d" / "c.txt.gz").rename(folder / "d" / "e.txt.gz")
    message = "数据与检查点记录的不同：b.jsonl 改过了，少了 c.txt.gz，多了 e.txt.gz"
    refuse(folder, ["--data_path", "d", "--resume"], message)


def test_changed_folder_is_trained_on_when_allowed(folder):
    assert pretrain(folder, "--data_path", "d", "--max_steps", 3).code == 0
    (folder / "d" / "e.txt").write_text("又添了一篇。", encoding="utf-8")
    result = pretrain(folder, "--data_path", "d", "--resume", "--allow_data_change")
    assert result.code == 0 and "从第 3 步继续" in result.stdout, result.stderr


def test_bad_files_are_named_and_nothing_is_written(folder):
    refuse(folder, ["--data_path", "d", "none"], "none：找不到数据文件")
    refuse(folder, ["--data_path", "d", "d/a.txt"], "d/a.txt：这个文件给了两次")
    refuse(folder, ["--data_path", "d", "--model_path", "d/b.jsonl"], "d/b.jsonl：同时是输入文件")
    (folder / "d" / "z.jsonl").write_text('{"text": "好"}\n{"txt": "坏"}\n', encoding="utf-8")
    refuse(folder, ["--data_path", "d"], 'd/z.jsonl：第 2 行缺少 "text"')
    (folder / "d" / "z.jsonl").write_bytes(b'{"text": "\xba\xc3"}\n')
    refuse(folder, ["--data_path", "d"], "d/z.jsonl：第 11 字节不是 UTF-8（像 GB18030）")
    (folder / "empty").mkdir()
    refuse(folder, ["--data_path", "empty"], "empty：文件夹里没有语料")


def test_too_short_a_corpus_is_refused(folder):
    (folder / "one.jsonl").write_text('{"text": "只有一篇，很短。"}\n', encoding="utf-8")
    refuse(folder, ["--data_path", "one.jsonl"], "one.jsonl：", "至少需要 17 个")


def test_dry_run_works_on_a_folder(folder):
    result = pretrain(folder, "--data_path", "d", "--dry_run")
    assert result.code == 0 and "预计" in result.stdout and not list(folder.glob("model.pth*"))


def test_configurations_are_compared_on_a_folder(folder):
    flags = ("--configs", "tiny.json", "--data_path", "d", "--flops", 2e8, "--output_dir", "out")
    result = run("compare.py", *flags, cwd=folder)
    assert result.code == 0, result.stderr
    assert "nats/char" in result.stdout


# 以下直接看 Corpus


def open_corpus(spec: dict, *paths) -> Corpus:
    return Corpus.open(open_source([Path(path) for path in paths], "utf-8"), spec)


def test_order_of_the_files_is_that_of_the_command(folder):
    names = ["a.txt", "b.jsonl", "c.txt.gz", "d.jsonl.gz"]
    paths = [folder / "d" / name for name in names]
    whole, listed, reversed_ = (open_corpus({"type": "gpt2"}, *some) for some in ([folder / "d"], paths, paths[::-1]))
    assert whole.train_ids.tolist() == listed.train_ids.tolist() != reversed_.train_ids.tolist()


def test_compressed_text_is_the_plain_text(corpus_text, tmp_path):
    plain = make_corpus(corpus_text, {"type": "bpe", "vocab_size": 300}, tmp_path / "a.txt")
    (tmp_path / "b.txt.gz").write_bytes(gzip.compress(corpus_text.encode()))
    packed = open_corpus({"type": "bpe", "vocab_size": 300}, tmp_path / "b.txt.gz")
    assert torch.equal(packed.train_ids, plain.train_ids) and packed.tokenizer.state() == plain.tokenizer.state()
    sources = [open_source([tmp_path / name], "utf-8") for name in ("a.txt", "b.txt.gz")]
    assert sources[0].fingerprint == sources[1].fingerprint


def test_statistics_count_the_characters_of_the_documents(folder, corpus_text):
    corpus = open_corpus({"type": "bpe", "vocab_size": 257}, folder / "d")
    assert (corpus.train_characters, corpus.validate_characters) == (2700, 300)
    text = corpus.train_text() + corpus.validate_text(999)  # 文档之间是空行
    assert text.replace("\n\n", "") == corpus_text.replace("\n\n", "")


def test_vocabulary_comes_from_the_training_documents_only(tmp_path):
    texts = [*["悟空八戒"] * 500, *["沙僧"] * 90]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
    tokenizer = open_corpus({"type": "bpe", "vocab_size": 300}, tmp_path / "a.jsonl").tokenizer
    tokens = {tokenizer.token_bytes(token_id) for token_id in range(tokenizer.vocab_size - 1)}
    assert "悟空八戒".encode() in tokens and not any("沙".encode() in token for token in tokens)


def test_vocabulary_of_a_large_corpus_is_trained_on_a_sample_from_everywhere(tmp_path, monkeypatch):
    monkeypatch.setattr(vocabulary_text, "VOCABULARY_CHARACTERS", 1000)
    monkeypatch.setattr("utils.document_file.STRETCH_CHARACTERS", 100)
    for number, text in enumerate(["甲乙", "丙丁", "戊己"]):
        lines = "".join(json.dumps({"text": text * 10 + str(i)}) + "\n" for i in range(200))
        (tmp_path / f"{number}.jsonl.gz").write_bytes(gzip.compress(lines.encode()))
    train, _ = split_documents(open_source([tmp_path], "utf-8"))
    sample = vocabulary_text.text_from_documents(train)
    assert 900 < len(sample) < 1200
    assert all(120 < sample.count(character) < 200 for character in "甲丙戊")


def test_trained_vocabulary_is_kept_until_the_training_part_changes(folder, monkeypatch):
    spec = {"type": "bpe", "vocab_size": 300}
    first = open_corpus(spec, folder / "d").tokenizer.state()
    monkeypatch.setattr("utils.corpus.text_from_documents", lambda places: pytest.fail("又训练了一遍词表"))
    assert open_corpus(spec, folder / "d").tokenizer.state() == first


def test_loaders_cross_the_borders_of_shards(folder, monkeypatch):
    monkeypatch.setattr("utils.document_file.STRETCH_CHARACTERS", 100)
    monkeypatch.setattr("utils.token_shards.SHARD_CHARACTERS", 300)
    corpus = open_corpus({"type": "gpt2"}, folder / "d")
    assert len(corpus.tokens.shards) > 6
    train, validate = corpus.create_loaders(16, TrainingSettings(batch_size=4))
    whole = corpus.train_ids.long()
    starts = list(train.sampler)
    windows = torch.cat([inputs for inputs, _ in train])
    assert torch.equal(windows, torch.stack([whole[start : start + 16] for start in starts]))
    assert torch.equal(torch.cat([targets for _, targets in validate]).flatten(), validate.dataset.target_ids().long())
    characters, _ = corpus.tokenizer.count_text(validate.dataset.target_ids())
    assert 250 < characters < 600


def test_single_file_is_not_a_collection(corpus_text, tmp_path):
    """一个文本文件没有文本结束符，切在第九成的那个字上，像从前一样。"""
    corpus = make_corpus(corpus_text, {"type": "gpt2"}, tmp_path / "a.txt")
    again = open_corpus({"type": "gpt2"}, tmp_path / "a.txt")
    assert torch.equal(again.train_ids, corpus.train_ids) and isinstance(again.train_ids, torch.Tensor)
    assert corpus.tokenizer.end_of_text_id not in corpus.train_ids.tolist() and again.facts == {}
