"""benchmarks/：用极小的模型把测量程序走一遍；数字本身随机器而变，只看它们怎样得来、写到哪里。"""

import argparse
import gzip
import re
import shutil
import sys
from types import SimpleNamespace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import (
    corpus_files,
    data_size,
    fine_tuning,
    generation,
    inside,
    peer,
    quality,
    run,
    scale,
    tables,
    train_step,
    weights,
)
from benchmarks.measure import alternate, in_new_process, pooled
from conftest import ROOT, tiny_config
from conftest import run as run_program
from model.config import ModelConfig
from model.language_model import LanguageModel
from utils import token_shards
from utils.config_file import read_config
from utils.document_file import DocumentFile
from utils.errors import RunError, UserError
from utils.settings import TrainingSettings
from utils.train_utils import calc_loss_batch

README = ROOT / "benchmarks/README.md"
QUICK = argparse.Namespace(quick=True, rounds=2)


def in_this_process(function, **options):
    """代替 in_new_process：不必每次重新载入 torch。"""
    return {**function(**options), "peak_bytes": 5e8}


def read_tables(text: str) -> list[list[list[str]]]:
    """Markdown 里的各个表格，去掉表头。"""
    blocks = re.findall(r"(?:^\|.*\|$\n?)+", text, re.MULTILINE)
    return [[line.strip("| ").split(" | ") for line in block.splitlines()[2:]] for block in blocks]


def first_number(cell: str) -> float:
    return float(re.match(r"[\d.,]+", cell)[0].replace(",", ""))


def test_variants_take_turns():
    order = []
    variants = {name: lambda name=name: order.append(name) or len(order) for name in "AB"}
    assert alternate(variants, rounds=3) == {"A": [1, 3, 5], "B": [2, 4, 6]}
    assert order == list("ABABAB")


def test_rounds_are_pooled_and_summarised():
    values = pooled([{"seconds": [3.0, 1.0]}, {"seconds": 2.5}], "seconds")
    assert values == [3.0, 1.0, 2.5]
    assert tables.spread(values) == "2.5（1–3）"
    assert tables.ratio(larger=[3.0, 9.0, 6.0], smaller=[2.0]) == "3.00×"
    assert [tables.number(value) for value in (1234.5, 99.94, 0.012345)] == ["1,234", "99.9", "0.0123"]


def test_new_process_reports_its_result_and_peak_memory(tmp_path):
    config = str(ROOT / "benchmarks/tiny_config.json")
    result = in_new_process(weights.save, config=config, path=str(tmp_path / "model.pth"))
    assert (tmp_path / "model.pth").exists()
    assert 5e7 < result["peak_bytes"] < 5e9  # 单位是字节：载入 torch 就要一两百 MB


def test_failure_in_the_new_process_is_one_line():
    with pytest.raises(RunError, match="没有.json") as caught:
        in_new_process(peer.save, config="没有.json", path="x")
    assert "\n" not in str(caught.value)


def test_training_is_compared_with_the_peer(monkeypatch):
    monkeypatch.setattr(train_step, "in_new_process", in_this_process)
    steps, ratios = read_tables(train_step.run(QUICK))
    assert [row[1:3] for row in steps] == [
        [who, dtype] for who in ("PocketLLM", "transformers") for dtype in ("float32", "bfloat16")
    ]
    seconds = {(row[1], row[2]): first_number(row[3]) for row in steps}
    expected = seconds["transformers", "float32"] / seconds["PocketLLM", "float32"]
    assert first_number(steps[0][5]) == pytest.approx(expected, rel=0.02)  # 表里的秒数只有三位
    assert first_number(ratios[0][3]) == first_number(steps[0][5])


def test_both_sides_train_the_same_model_on_the_same_batch():
    """参数量相同；权重都取 0 时损失都是 ln(vocab_size)，可见批和损失的算法也相同。"""
    cfg = tiny_config(drop_rate=0.0)
    ours, theirs = LanguageModel(cfg), peer.build(cfg)
    assert sum(p.numel() for p in ours.parameters()) == sum(p.numel() for p in theirs.parameters())
    (inputs, targets), *rest = train_step.random_loader(cfg.vocab_size, 2, 16)
    assert inputs.shape == (2, 16) and not rest
    for model in (ours, theirs):
        for parameter in model.parameters():
            torch.nn.init.zeros_(parameter)
    loss = calc_loss_batch(ours, inputs, targets)
    torch.testing.assert_close(theirs(input_ids=inputs, labels=inputs).loss, loss)


def test_steps_change_the_weights():
    cfg, settings = tiny_config(), TrainingSettings(batch_size=2)
    for build in train_step.STEPS.values():
        step = build(cfg, settings, torch.float32, 16)
        losses = [step() for _ in range(5)]
        assert losses[-1] < losses[0]  # 同一批反复训练


def test_generation_is_compared_with_the_peer(monkeypatch):
    monkeypatch.setattr(generation, "in_new_process", in_this_process)
    rows, ratios = read_tables(generation.run(QUICK))
    assert [row[1] for row in rows] == ["auto", "float32", "float16", "bfloat16", "int8", "float32", "bfloat16"]
    assert all(first_number(cell) > 0 for row in rows for cell in row[2:])
    speeds = {(row[0], row[1]): first_number(row[2]) for row in rows}
    expected = speeds["PocketLLM", "float32"] / speeds["transformers", "float32"]
    assert first_number(ratios[1][1]) == pytest.approx(expected, rel=0.02)


def test_timers_give_one_duration_per_token(tmp_path):
    config = str(ROOT / "benchmarks/tiny_config.json")
    weights.save(config, str(tmp_path / "model.pth"))
    peer.save(config, str(tmp_path / "transformers"))
    for who, name in ((generation.OURS, "model.pth"), (generation.THEIRS, "transformers")):
        seconds = generation.TIMERS[who](str(tmp_path / name), "float32")(8, 5)
        assert len(seconds) == 5 and min(seconds) > 0


def test_large_corpus_is_tokenised_once_and_streamed(monkeypatch, tmp_path, corpus_text):
    monkeypatch.setattr(data_size, "in_new_process", in_this_process)
    corpus = tmp_path / "corpus.txt"
    corpus.write_text(corpus_text, encoding="utf-8")
    text = data_size.run(argparse.Namespace(quick=True, rounds=1, corpus=corpus, data_mb=2))
    speeds, starts = read_tables(text)
    assert [len(speeds), len(starts)] == [2, 2]
    assert first_number(starts[1][1]) < first_number(starts[0][1])  # 第二次启动不再分词
    assert re.search(r"等数据的时间占 [\d.]+", text)


def test_both_ways_of_tokenising_count_the_same_tokens(tmp_path, corpus_text):
    source, large = tmp_path / "corpus.txt", tmp_path / "large.txt"
    source.write_text(corpus_text, encoding="utf-8")
    data_size.make_corpus(source, large, 10**6)
    assert large.stat().st_size >= 10**6
    assert len({count(large) for count in data_size.TOKENIZERS.values()}) == 1


def test_operations_agree_with_the_count_of_torch():
    cfg = tiny_config(vocab_size=1000, emb_dim=128, context_length=64, drop_rate=0.1)
    workload = scale.Workload(None, cfg, TrainingSettings(batch_size=2))
    token_ids = torch.zeros(2, 64, dtype=torch.long)
    model = LanguageModel(cfg).train()
    with FlopCounterMode(display=False) as counter:
        calc_loss_batch(model, token_ids, token_ids).backward()
    assert workload.flops == pytest.approx(counter.get_total_flops(), rel=0.02)  # 6N 把偏置也当成矩阵


def count_calls(monkeypatch, owner, name: str, note) -> None:
    """调用 owner.name 之前先 note(各个参数)。"""
    original = getattr(owner, name)

    def noted(*args):
        note(*args)
        return original(*args)

    monkeypatch.setattr(owner, name, noted)


def test_folder_of_many_files_is_measured(tmp_path, monkeypatch, corpus_text):
    monkeypatch.setattr(corpus_files, "in_new_process", in_this_process)
    monkeypatch.setattr("benchmarks.corpus_files.os.sched_setaffinity", lambda *args: None, raising=False)
    monkeypatch.setattr("utils.documents.SURE_AFTER", 0)  # 刚写好的文件也算没有变过
    read, tokenized = [], []
    count_calls(monkeypatch, DocumentFile, "scan", lambda path, *_: read.append(path.name))
    count_calls(monkeypatch, token_shards, "_create", lambda missing, *_: tokenized.append(len(missing)))
    corpus = tmp_path / "语料.txt"
    corpus.write_text(corpus_text, encoding="utf-8")
    text = corpus_files.run(argparse.Namespace(quick=True, rounds=1, corpus=corpus, size_gb=0.002))
    parts, whole = corpus_files.NUM_PART, corpus_files.NUM_FILES
    assert len(read) == 2 * parts + whole  # 一个核、全部的核，各检查一部分；第一次启动检查全部，之后不再读
    assert len(tokenized) == 3
    speeds, starts, trainings = read_tables(text)
    assert "2 MB" in text and [row[0] for row in speeds] == ["一个核", "全部的核"]
    assert [row[0] for row in starts] == ["第一次启动", "第二次启动"]
    assert [row[0] for row in trainings] == ["语料.txt", "文件夹"] and first_number(trainings[1][1]) > 0


def test_made_up_folder_is_the_same_every_time(tmp_path, corpus_text):
    source = tmp_path / "a.txt"
    source.write_text(corpus_text, encoding="utf-8")
    contents = []
    for name in ("one", "two"):
        paths = corpus_files.make_folder(source, tmp_path / name, 10**6)
        contents.append([gzip.decompress(p.read_bytes()) if p.suffix == ".gz" else p.read_bytes() for p in paths])
    assert contents[0] == contents[1] and len(set(contents[0])) == corpus_files.NUM_FILES
    assert sum(map(len, contents[0])) >= 10**6


def test_what_does_not_fit_is_calculated_not_measured(monkeypatch):
    monkeypatch.setattr(scale.psutil, "virtual_memory", lambda: SimpleNamespace(available=0))
    workloads = [scale.Workload.read(ROOT / "benchmarks/tiny_config.json")]
    assert scale.measure_what_fits(workloads, rounds=1) == {}
    ((row,),) = read_tables(scale.cpu_table(workloads, {}))
    assert row[3].endswith("（推算）") and row[4].endswith("（推算）")


def test_page_and_index_are_timed_and_weighed(monkeypatch, tmp_path):
    monkeypatch.setattr(inside, "in_new_process", in_this_process)
    corpus = tmp_path / "语料.txt"
    corpus.write_text("".join(chr(0x4E00 + number * 7 % 977) for number in range(3000)), encoding="utf-8")
    text = inside.run(argparse.Namespace(quick=True, rounds=1, corpus=corpus))
    (rows,) = read_tables(text)
    explained, built, found = (first_number(row[1]) for row in rows)
    assert explained > built > 0 and found > 0
    assert "tiny_config.json，64 个 token" in rows[0][0] and "语料.txt（3,000 字）" in rows[1][0]
    assert 0.05 < float(re.search(r"网页 ([\d.]+) MB", text)[1]) < 15


def test_results_go_between_the_markers_and_nowhere_else(tmp_path):
    copy = tmp_path / "README.md"
    copy.write_text("# 前\r\n<!-- 启动:开始 -->\n旧\n<!-- 启动:结束 -->\n后\n", encoding="utf-8", newline="")
    result = run_program("benchmarks/run.py", "startup", "--quick", "--rounds", 1, "--readme", copy, cwd=tmp_path)
    assert result.code == 0, result.stderr
    text = copy.read_bytes().decode("utf-8")
    assert text.startswith("# 前\r\n<!-- 启动:开始 -->\n\n") and text.endswith("\n\n<!-- 启动:结束 -->\n后\n")
    assert "旧" not in text and f"torch {torch.__version__}" in text
    (rows,) = read_tables(text)
    assert len(rows) == 2 + len(list(ROOT.glob("*.py")))
    assert "\n".join(text.splitlines()[3:-3]) in result.stdout


def test_training_programs_are_measured_from_the_command_line(tmp_path, corpus_text):
    copy, corpus = tmp_path / "README.md", tmp_path / "corpus.txt"
    shutil.copy(README, copy)
    corpus.write_text(corpus_text, encoding="utf-8")
    other = shutil.copy(corpus, tmp_path / "other.txt")
    arguments = ["--quick", "--rounds", 1, "--corpus", corpus, "--other_corpus", other, "--readme", copy]
    result = run_program("benchmarks/run.py", "precision", "quality", *arguments, cwd=tmp_path)
    assert result.code == 0, result.stderr
    precision, trials, formats = read_tables(result.stdout)
    assert [row[0] for row in precision] == ["0", "1", "2"]
    full, half, difference = (float(re.match(r"[+-]?[\d.]+", cell)[0]) for cell in precision[-1][4:7])
    assert difference == pytest.approx(half - full, abs=2e-4)
    assert first_number(trials[0][2]) >= 1
    assert trials[0][0].startswith("corpus.txt") and trials[1][0].startswith("other.txt")
    errors = [float(re.match(r"[+-]\d+\.\d+", cell)[0]) for row in formats for cell in row[1:]]
    assert len(errors) == 2 * 3 and max(map(abs, errors)) < 0.5  # 百分之几


def test_fine_tuning_is_measured_beside_a_bag_of_words(tmp_path, corpus_text):
    copy, corpus, data = (tmp_path / name for name in ("README.md", "corpus.txt", "data.csv"))
    shutil.copy(README, copy)
    corpus.write_text(corpus_text, encoding="utf-8")
    lines = [
        f"{label},{text}{i}" for i in range(60) for label, text in (("好", "春天"), ("好", "晚安"), ("坏", "贷款"))
    ]
    data.write_text("label,text\n" + "\n".join(lines), encoding="utf-8")
    flags = ["finetune", "--quick", "--corpus", corpus, "--labeled", data, "--readme", copy]
    result = run_program("benchmarks/run.py", *flags, cwd=tmp_path)
    assert result.code == 0, result.stderr
    (rows,) = read_tables(result.stdout)
    assert [row[0] for row in rows] == [*fine_tuning.MODES, fine_tuning.SCRATCH, fine_tuning.BAG_OF_WORDS]
    assert "“坏”的 F1" in result.stdout and float(rows[-1][1]) == 100 and float(rows[-1][2]) == 1
    assert all(0 <= float(row[1]) <= 100 and 0 <= float(row[2]) <= 1 for row in rows)


def test_plain_baseline_is_a_valid_config():
    file = read_config(quality.PLAIN, ModelConfig.from_dict)
    assert file.model.position == "learned" and file.training["batch_size"] == 12


def test_shipped_page_has_every_marker():
    text = README.read_text(encoding="utf-8")
    for section in run.SECTIONS.values():
        start, end = run.find_region(README, text, section.title)
        assert start <= end


def test_page_without_markers_is_reported_before_measuring(tmp_path):
    (tmp_path / "empty.md").write_text("没有标记\n", encoding="utf-8")
    result = run_program("benchmarks/run.py", "scale", "--quick", "--readme", "empty.md", cwd=tmp_path)
    assert result.code == 2 and result.stdout == ""
    assert result.stderr.count("\n") == 1 and "<!-- 规模:开始 -->" in result.stderr


def test_missing_peer_is_reported_before_measuring(monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    monkeypatch.setattr(sys, "argv", ["run.py", "train", "--quick"])
    with pytest.raises(UserError, match="requirements-dev.txt"):
        run.main()
