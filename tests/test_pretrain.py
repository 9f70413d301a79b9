"""pretrain.py 从头到尾：像用户那样从命令行运行。"""

import json
import os
import re
import shutil

import pytest
import torch
from torch.nn import functional as F

from conftest import ROOT, last_of_each, make_corpus, report_data, run, write_config
from model.config import ModelConfig
from model.language_model import LanguageModel
from utils.config_file import read_config
from utils.evaluation_set import EVAL_BATCH, evaluation_loader
from utils.model_file import load_weights, read_model_file
from utils.settings import TrainingSettings
from utils.text_utils import Tokenizer
from utils.train_utils import calc_loss_loader

LOG_LINE = re.compile(r"Ep (\d+) \(Step (\d{6})\): Train loss \d+\.\d{3}, Validate loss \d+\.\d{3}")
BEST_LINE = re.compile(
    r"Best validate loss (\d+\.\d{3}) \(Step (\d{6})\), (\d+\.\d{3}) nats/char, (\d+\.\d{3}) bits/byte"
)


def pretrain(folder, text, *arguments, config=None, **changes):
    """在 folder 里训练小模型。"""
    (folder / "corpus.txt").write_text(text, encoding="utf-8")
    config = config or write_config(folder, **changes)
    arguments = last_of_each("--config", config, "--data_path", "corpus.txt", *arguments)
    return run("pretrain.py", *arguments, cwd=folder)


def read_log(path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_output_has_the_documented_form(trained):
    lines = (trained / "stdout.txt").read_text(encoding="utf-8").splitlines()
    steps = [int(match[2]) for line in lines if (match := LOG_LINE.fullmatch(line))]
    assert steps == [0, 3, 6]
    assert sum(bool(BEST_LINE.fullmatch(line)) for line in lines) == 1
    for word in ("设备：cpu", "精度", "35,584 个参数", "平均每个", "token", "6 步", "预计"):
        assert any(word in line for line in lines), word
    assert (trained / "stderr.txt").read_text(encoding="utf-8") == ""  # 不是终端：没有进度条
    assert (trained / "model.pth.loss.png").read_bytes().startswith(b"\x89PNG")


def test_report_tells_the_corpus_the_sample_and_the_command(trained):
    page = (trained / "model.pth.report.html").read_text(encoding="utf-8")
    opening = (trained / "corpus.txt").read_text(encoding="utf-8")[2700:].lstrip()[:8]
    command = f"{ROOT / 'pretrain.py'} --config {trained / 'tiny.json'} --data_path corpus.txt</code>"
    for part in (
        "<h1>预训练报告：model.pth</h1>",
        "训练完成",
        "corpus.txt（utf-8）",
        "2,700 字，",
        command,
        "35,584 个",
    ):
        assert part in page, part
    assert f"<span class=prompt>{opening}</span>" in page and "原文照抄率 0.0%" in page
    assert report_data(trained / "model.pth")["axes"]["步"] == [0, 3, 6]


def test_log_has_one_line_per_evaluation(trained):
    records = read_log(trained / "model.pth.log.jsonl")
    assert [record["step"] for record in records] == [0, 3, 6]
    assert records[-1]["tokens"] == 6 * 4 * 16


def test_best_line_is_the_loss_of_the_saved_weights_on_the_last_tenth(trained, corpus_text):
    """用保存的文件、只靠 torch 重算一遍。"""
    state = torch.load(trained / "model.pth", weights_only=True)
    description = state["_extra_state"]
    model = LanguageModel(ModelConfig.from_dict(description["config"]))
    model.load_state_dict(state)
    tokenizer = Tokenizer.from_state(description["tokenizer"])
    token_ids = torch.tensor(tokenizer.encode(corpus_text[int(len(corpus_text) * 0.9) :]))
    total, count = 0.0, (len(token_ids) - 1) // 16
    with torch.inference_mode():
        for index in range(count):
            window = token_ids[index * 16 : index * 16 + 17]
            total += F.cross_entropy(model(window[None, :-1])[0], window[1:], reduction="sum").item()
    covered = b"".join(tokenizer.token_bytes(token_id) for token_id in token_ids[1 : 1 + count * 16].tolist())
    characters = sum(byte & 0xC0 != 0x80 for byte in covered)
    match = BEST_LINE.search((trained / "stdout.txt").read_text(encoding="utf-8"))
    assert float(match[3]) == pytest.approx(total / characters, rel=0.01)  # 训练时可能用 bfloat16
    assert float(match[4]) == pytest.approx(total / len(covered) / 0.693147, rel=0.01)


def test_vocabulary_never_sees_the_validation_part(tmp_path):
    text = "悟空八戒\n" * 200 + "沙僧\n" * 37  # “沙僧”只在最后一成里
    result = pretrain(tmp_path, text, "--max_steps", 2)
    assert result.code == 0, result.stderr
    state = torch.load(tmp_path / "model.pth", weights_only=True)["_extra_state"]
    tokenizer = Tokenizer.from_state(state["tokenizer"])
    tokens = {tokenizer.token_bytes(token_id) for token_id in range(tokenizer.vocab_size - 1)}
    assert "悟空".encode() in tokens
    assert not any("沙".encode() in token for token in tokens)


@pytest.mark.parametrize("arguments", [[], ["--optimizer", "muon", "--dtype", "bfloat16", "--accumulation_steps", 2]])
def test_same_command_gives_the_same_bits(tmp_path, corpus_text, arguments):
    logs, models = [], []
    for name in ("a.pth", "b.pth"):
        result = pretrain(tmp_path, corpus_text, "--model_path", name, *arguments, drop_rate=0.1)
        assert result.code == 0, result.stderr
        records = read_log(tmp_path / f"{name}.log.jsonl")
        logs.append([(r["step"], r["train_loss"].hex(), r["validate_loss"].hex()) for r in records])
        models.append((tmp_path / name).read_bytes())
    assert logs[0] == logs[1] and models[0] == models[1]


def test_best_weights_are_kept_and_last_on_request(tmp_path, corpus_text):
    """学习率大得离谱，验证损失越训越高：最好的在前面，最后的在后面。"""
    arguments = ["--learning_rate", 2, "--eval_freq", 1, "--max_steps", 3]
    best = pretrain(tmp_path, corpus_text, *arguments, "--model_path", "best.pth")
    last = pretrain(tmp_path, corpus_text, *arguments, "--model_path", "last.pth", "--keep", "last")
    records = read_log(tmp_path / "best.pth.log.jsonl")
    lowest = min(records[1:], key=lambda record: record["validate_loss"])
    assert f"Best validate loss {lowest['validate_loss']:.3f} (Step {lowest['step']:06d})" in best.stdout
    assert f"Last validate loss {records[-1]['validate_loss']:.3f} (Step 000003)" in last.stdout
    assert (tmp_path / "best.pth").read_bytes() != (tmp_path / "last.pth").read_bytes()


def test_existing_results_are_kept_as_backups(tmp_path, corpus_text):
    endings = ("", ".log.jsonl", ".loss.png", ".report.html", ".result.json")
    names = [f"model.pth{ending}" for ending in endings]
    for name in names:
        (tmp_path / name).write_bytes(b"precious")
    result = pretrain(tmp_path, corpus_text)
    assert result.code == 0
    for name in names:
        assert (tmp_path / f"{name}.bak").read_bytes() == b"precious"
        assert f"{name}.bak" in result.stderr


def test_time_limit_finishes_cleanly(tmp_path, corpus_text):
    result = pretrain(tmp_path, corpus_text, "--max_minutes", 0.05, training={"epochs": 10**6, "eval_freq": 10**6})
    assert result.code == 0, result.stderr
    assert BEST_LINE.search(result.stdout) and "秒后停止" in result.stdout


def test_gpt2_configuration_and_other_settings_work(tmp_path, corpus_text):
    values = {"vocab_size": 50257, "tokenizer": {"type": "gpt2"}, "drop_rate": 0.1}
    result = pretrain(tmp_path, corpus_text, "--stride", 8, "--warmup_steps", 2, "--sample_prompt", "师父", **values)
    assert result.code == 0, result.stderr
    assert re.search(r"GPT-2 词表，50,257 个 token，平均每个 token 0\.[45]\d 字", result.stdout)
    assert "样文：师父" in result.stdout


def test_long_estimate_recommends_the_small_configuration(tmp_path, corpus_text):
    changes = {"training": {"epochs": 10**9, "max_minutes": 10**6, "batch_size": 4, "eval_freq": 1}}
    config = write_config(tmp_path, **changes)
    result = pretrain(tmp_path, corpus_text, "--max_steps", 10**9, "--learning_rate", 1e30, config=config)
    # 学习率离谱，很快发散：正好看到提示，又看到发散时怎么收场
    assert "configs/pocket_config_3M.json" in result.stdout and "--max_minutes" in result.stdout
    assert result.code == 1 and result.stderr.count("\n") == 1
    assert re.search(r"错误：第 \d+ 步：(训练损失|损失|梯度)", result.stderr)


COMPILERS = ("cl",) if os.name == "nt" else (os.environ.get("CXX", "c++"), "g++", "clang++")


@pytest.mark.skipif(not any(map(shutil.which, COMPILERS)), reason="没有 C++ 编译器，torch.compile 编译不了 CPU 代码")
def test_compiled_training_saves_weights_under_plain_names(tmp_path, corpus_text):
    """编译只改变怎么算：保存的文件谁都能读，不编译时算出的损失也一样。"""
    changes = {"num_layers": 1, "training": {"batch_size": 4, "eval_freq": 3, "eval_iter": 1}}
    result = pretrain(tmp_path, corpus_text, "--compile", "--dtype", "float32", "--max_steps", 3, **changes)
    assert result.code == 0, result.stderr
    file = read_model_file(tmp_path / "model.pth")
    model = LanguageModel(ModelConfig.from_dict(file.config))
    assert file.weights.keys() == model.state_dict().keys() - {"_extra_state"}  # 没有 _orig_mod. 开头的名字
    load_weights(model, file, "model.pth")
    corpus = make_corpus(corpus_text, {"type": "bpe", "vocab_size": 300}, tmp_path / "corpus.txt")
    _, validate = corpus.create_loaders(16, TrainingSettings(batch_size=4))
    first, last = (record["validate_loss"] for record in read_log(tmp_path / "model.pth.log.jsonl"))
    assert last < first
    assert calc_loss_loader(model, evaluation_loader(validate, EVAL_BATCH)) == pytest.approx(last, abs=1e-4)


def test_help_names_every_flag():
    result = run("pretrain.py", "--help", cwd=ROOT)
    flags = """config data_path model_path epochs max_steps max_minutes batch_size accumulation_steps learning_rate
    warmup_steps weight_decay grad_clip optimizer stride eval_freq eval_iter sample_prompt seed device dtype compile
    encoding keep dry_run""".split()
    assert result.code == 0
    assert all(f"--{flag} " in result.stdout for flag in flags)


def test_shipped_configurations_are_valid():
    paths = sorted((ROOT / "configs").glob("*.json"))
    assert {f"pocket_config_{size}.json" for size in ("3M", "5M", "12M", "30M")} <= {p.name for p in paths}
    for path in paths:
        config = read_config(path, ModelConfig.from_dict)
        TrainingSettings.from_sources(config.training, object(), path)
        size = config.tokenizer.get("vocab_size", 50257)
        assert config.model.vocab_size >= size


def test_dry_run_reports_and_writes_nothing(tmp_path, corpus_text):
    result = pretrain(tmp_path, corpus_text, "--dry_run", "--max_steps", 7)
    assert result.code == 0 and result.stderr == ""
    assert "参数：共 35,584 个" in result.stdout
    for name in ("token 嵌入", "注意力", "前馈", "权重", "梯度", "优化器", "激活", "分数"):
        assert f"  {name} " in result.stdout
    assert re.search(r"装得下的最大一批：约 [\d,]+ 个样本", result.stdout)
    assert re.search(r"共 7 步，每步 \S+ 秒（[\d,]+ token/s），预计", result.stdout)
    assert not list(tmp_path.glob("model.pth*"))


def test_dry_run_explains_a_model_that_does_not_fit(tmp_path, corpus_text):
    result = pretrain(tmp_path, corpus_text, "--dry_run", emb_dim=2**16, num_layers=100)
    assert result.code == 1 and "装得下的最大一批：约 0 个样本" in result.stdout
    assert result.stderr.startswith("错误：内存：预计需要")
