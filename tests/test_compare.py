"""compare.py 从头到尾：像用户那样从命令行比较几种极小的配置；还有表里的算术。"""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

import compare
from conftest import ROOT, TINY_FILE, last_of_each, run, tiny_config, write_config
from model.config import ModelConfig, count_training_flops
from model.kv_cache import KVCache
from model.language_model import LanguageModel
from utils import comparison
from utils.comparison import EqualBudget, Plan, count_steps, read_result
from utils.console import display_width
from utils.errors import RunError, UserError
from utils.evaluation_set import EVAL_BATCH
from utils.memory import cache_bytes_per_token, peak_bytes
from utils.report_comparison import Report, Row, align
from utils.train_utils import calc_loss_batch
from utils.variations import expand, parse_choice

FLOPS = 5e7  # 几步
FLAGS = ("--configs", "tiny.json", "--data_path", "corpus.txt", "--flops", FLOPS)
VARY = ("--vary", "emb_dim:vocab_size=32:300,16:280")


def prepare(folder: Path, text: str, **changes) -> None:
    (folder / "corpus.txt").write_text(text, encoding="utf-8")
    write_config(folder, **changes)


@pytest.fixture(scope="module")
def compared(tmp_path_factory, corpus_text) -> Path:
    """比较过两种配置、每种两个种子的文件夹。"""
    folder = tmp_path_factory.mktemp("compared")
    prepare(folder, corpus_text)
    result = run("compare.py", *FLAGS, *VARY, "--seeds", 2, cwd=folder)
    assert (result.code, result.stderr) == (0, "")
    (folder / "stdout.txt").write_text(result.stdout, encoding="utf-8")
    return folder


def read_rows(folder: Path) -> list[dict]:
    return json.loads((folder / "compare/compare.json").read_text(encoding="utf-8"))["rows"]


def test_table_picture_and_data_are_written(compared):
    stdout = (compared / "stdout.txt").read_text(encoding="utf-8")
    lines = stdout[stdout.index("\n\n") + 2 :].splitlines()
    assert lines[0] == "emb_dim"  # 一起变的字段名叠成两行
    assert lines[1].split() == ":vocab_size nats/char 极差 训练 token/s 参数 内存 缓存 轮".split()
    assert [line.split()[0] for line in lines[2:4]] == ["32:300", "16:280"]
    assert all(display_width(line) <= 80 for line in lines[:4])
    assert "| 32:300 | " in (compared / "compare/compare.md").read_text(encoding="utf-8")
    assert (compared / "compare/compare.png").read_bytes().startswith(b"\x89PNG")
    assert "分不出高下" in stdout or "的两倍。" in stdout


def test_every_run_spends_the_same_operations(compared):
    for row in read_rows(compared):
        cfg = ModelConfig.from_dict({k: v for k, v in row["config"].items() if k not in ("training", "tokenizer")})
        assert row["parameters"] == sum(p.numel() for p in LanguageModel(cfg).parameters())
        assert row["flops_per_token"] == count_training_flops(cfg)
        for result in row["runs"]:
            step = 4 * 16 * row["flops_per_token"]
            assert result["flops"] == pytest.approx(FLOPS, abs=step / 2)
            assert result["flops"] == result["tokens"] * row["flops_per_token"] == result["curve"][-1]["flops"]


def test_row_is_the_mean_of_its_seeds(compared):
    for row in read_rows(compared):
        first, second = (result["nats_per_char"] for result in row["runs"])
        assert first != second
        assert row["nats_per_char"] == pytest.approx((first + second) / 2)
        assert row["spread"] == pytest.approx(abs(first - second))
        assert row["tokens_per_second"] > 0 and row["peak_bytes"] > 5e7  # 单位是字节：载入 torch 就要一两百 MB


def test_run_is_what_pretrain_does_by_hand(compared, tmp_path):
    """文件夹里的 config.json 交给 pretrain.py，得到同样的数。"""
    folder = next((compared / "compare").glob("16_280_seed124_*"))
    flags = ["--config", folder / "config.json", "--data_path", compared / "corpus.txt"]
    result = run("pretrain.py", *flags, cwd=tmp_path)
    assert result.code == 0, result.stderr
    assert f"{read_rows(compared)[1]['runs'][1]['nats_per_char']:.3f} nats/char" in result.stdout
    assert not list(folder.glob("*.ckpt"))  # 练完就用不着检查点了


def test_resume_trains_only_what_is_new(compared, tmp_path):
    shutil.copytree(compared, tmp_path, dirs_exist_ok=True)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.glob("compare/*/result.json")}
    more = "--vary", "emb_dim:vocab_size=32:300,16:280,8:280"
    again = run("compare.py", *FLAGS, *more, cwd=tmp_path)
    assert again.code == 2 and "--resume" in again.stderr and again.stderr.count("\n") == 1
    result = run("compare.py", *FLAGS, *more, "--resume", cwd=tmp_path)
    assert (result.code, result.stderr) == (0, "")
    after = {path: path.stat().st_mtime_ns for path in tmp_path.glob("compare/*/result.json")}
    assert len(before) == 4 and len(after) == 5 and before.items() <= after.items()
    assert [row["label"] for row in read_rows(tmp_path)] == [["32:300"], ["16:280"], ["8:280"]]


@pytest.mark.skipif(os.name == "nt", reason="Windows 没有 SIGINT 给单个进程")
def test_interrupted_comparison_continues_from_the_checkpoint(tmp_path, corpus_text):
    prepare(tmp_path, corpus_text)
    flags = ["--configs", "tiny.json", "--data_path", "corpus.txt", "--flops", 1e10]  # 几百步
    command = [sys.executable, ROOT / "compare.py", *map(str, flags)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, encoding="utf-8", env=environment)
    logs = lambda: tmp_path.glob("compare/*/model.pth.log.jsonl")  # noqa: E731
    while not any(log.read_text("utf-8").count("\n") > 1 for log in logs()):  # 已经走过几步，才有检查点可存
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    stderr = process.communicate(timeout=60)[1]
    assert process.returncode == 130 and stderr.count("\n") == 1 and "--resume" in stderr
    assert not list(tmp_path.glob("compare/*/result.json")) and list(tmp_path.glob("compare/*/model.pth.ckpt/*"))
    result = run("compare.py", *flags, "--resume", cwd=tmp_path)
    assert result.code == 0, result.stderr
    (output,) = tmp_path.glob("compare/*/train.txt")
    assert "步继续：" in output.read_text(encoding="utf-8")


def test_diverged_run_does_not_stop_the_others(tmp_path, corpus_text):
    prepare(tmp_path, corpus_text)
    result = run("compare.py", *FLAGS, "--vary", "learning_rate=1e30,0.01", cwd=tmp_path)
    assert result.code == 1 and "Traceback" not in result.stderr
    assert result.stderr.splitlines()[-1].startswith("错误：learning_rate=1e30：没有练完")
    assert [row["label"] for row in read_rows(tmp_path)] == [["0.01"]]
    assert "没有练完：learning_rate=1e30：第 " in result.stdout


def test_minutes_is_the_length_of_each_command(tmp_path, corpus_text):
    prepare(tmp_path, corpus_text)
    result = run("compare.py", *FLAGS[:-2], "--minutes", 0.1, cwd=tmp_path)
    assert result.code == 0, result.stderr
    (row,) = read_rows(tmp_path)
    assert 0 < row["runs"][0]["seconds"] < 12 and row["label"] == ["tiny"]
    config = json.loads(next(tmp_path.glob("compare/*/config.json")).read_text(encoding="utf-8"))
    assert config["training"]["max_minutes"] == 0.1 and config["training"]["max_steps"] is None


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--vary", "learning_rat=1"], "错误：--vary：没有字段 learning_rat。是否想写 learning_rate？"),
        (["--vary", "learning_rate"], "错误：--vary：应写成 字段=值1,值2,…"),
        (["--vary", "learning_rate=1,,2"], "错误：--vary：应写成"),
        (["--vary", "emb_dim:num_heads=16"], "错误：--vary：emb_dim:num_heads 是 2 个字段，16 是 1 个值"),
        (["--set", "drop_rate=0,0.1"], "错误：--set：只能有一个值"),
        (["--vary", "drop_rate=0,2"], "错误：--vary drop_rate=2（tiny.json）：drop_rate 应在 [0, 1) 内"),
        (["--vary", "optimizer=sgd"], '错误：--vary optimizer=sgd（tiny.json）："training" 的 optimizer 应为'),
        (["--vary", "vocab_size=100"], '错误：--vary vocab_size=100（tiny.json）："tokenizer" 的 vocab_size 应为'),
        (["--vary", "max_steps=3"], "错误：--vary：不能改 max_steps。训练多久由"),
        (["--vary", "learning_rate=1,1"], "错误：--vary：1 给了不止一次"),
        (["--vary", "seed=1", "--set", "seed=2"], "错误：--set：seed 给了不止一次"),
        (["--configs", "tiny.json", "none.json"], "错误：none.json：找不到配置文件"),
        (["--flops", 100], "错误：--flops：100 不够走一步（tiny.json）"),
        (["--flops", 1e9, "--minutes", 1], "错误：--minutes：不能与 --flops 同时使用"),
        (["--vary", "context_length=16,4000", "--flops", 1e12], "错误：corpus.txt：验证部分只有"),
        (["--data_path", "none.txt"], "错误：none.txt：找不到数据文件"),
        (["--output_dir", "tiny.json"], "错误：tiny.json"),
        (["--set", "device=cuda"], "错误：--device：未检测到可用的 CUDA"),
    ],
    ids=lambda value: " ".join(map(str, value)) if isinstance(value, list) else "",
)
def test_bad_input_is_one_line_before_any_training(tmp_path, corpus_text, flags, message):
    if "device=cuda" in flags and torch.cuda.is_available():
        pytest.skip("这台机器有 CUDA")
    prepare(tmp_path, corpus_text)
    result = run("compare.py", *last_of_each(*FLAGS, *flags), cwd=tmp_path)
    assert result.code == 2 and result.stdout == ""
    assert result.stderr.startswith(message) and result.stderr.count("\n") == 1
    assert not list(tmp_path.glob("compare/*"))


def test_configuration_that_does_not_fit_stops_everything(tmp_path, corpus_text):
    prepare(tmp_path, corpus_text)
    result = run("compare.py", *FLAGS[:-2], "--vary", "num_layers=1,2000000000", "--minutes", 0.1, cwd=tmp_path)
    assert result.code == 1 and result.stderr.startswith("错误：内存：预计需要") and result.stdout == ""


def test_variations_are_all_combinations(tmp_path):
    write_config(tmp_path)
    path = tmp_path / "tiny.json"
    fixed, varied = [parse_choice("bias=false")], [parse_choice("num_layers:emb_dim=1:8,2:4"), parse_choice("seed=1,2")]
    variations = expand([path], fixed, varied, ModelConfig.from_dict)
    assert [v.label for v in variations] == [("1:8", "1"), ("1:8", "2"), ("2:4", "1"), ("2:4", "2")]
    last = variations[-1]
    assert last.config.model == tiny_config(num_layers=2, emb_dim=4, bias=False)  # hidden_dim 也跟着变
    assert last.settings.seed == 2 and last.values["training"]["seed"] == 2
    assert json.loads(path.read_text(encoding="utf-8")) == TINY_FILE


@pytest.mark.parametrize("name", ["vocab_size", "tokenizer.vocab_size"])
def test_vocabulary_of_model_and_tokenizer_change_together(tmp_path, name):
    write_config(tmp_path)
    (variation,) = expand([tmp_path / "tiny.json"], [], [parse_choice(f"{name}=512")], ModelConfig.from_dict)
    assert variation.config.model.vocab_size == variation.config.tokenizer["vocab_size"] == 512


def test_tokenizers_can_be_compared(tmp_path):
    write_config(tmp_path)
    choice = parse_choice("tokenizer.type:vocab_size=gpt2:50257,bpe:400")
    gpt2, bpe = expand([tmp_path / "tiny.json"], [], [choice], ModelConfig.from_dict)
    assert gpt2.config.tokenizer == {"type": "gpt2"} and bpe.config.tokenizer == {"type": "bpe", "vocab_size": 400}


def test_configs_of_the_same_name_are_told_apart_by_path(tmp_path):
    paths = [tmp_path / name / "tiny.json" for name in "ab"]
    for path in paths:
        path.parent.mkdir()
        write_config(path.parent)
    assert [v.label for v in expand(paths, [], [], ModelConfig.from_dict)] == [(str(path),) for path in paths]


@pytest.mark.parametrize(
    "changes",
    [{}, {"position": "rope", "norm": "rms_norm", "activation": "swiglu", "num_kv_heads": 2}, {"tie_weights": False}],
    ids=["gpt2", "modern", "untied"],
)
def test_operations_agree_with_the_count_of_torch(changes):
    cfg = tiny_config(vocab_size=1000, emb_dim=128, context_length=64, drop_rate=0.1, **changes)
    token_ids = torch.zeros(2, 64, dtype=torch.long)
    model = LanguageModel(cfg).train()
    with FlopCounterMode(display=False) as counter:
        calc_loss_batch(model, token_ids, token_ids).backward()
    assert count_training_flops(cfg) * 2 * 64 == pytest.approx(counter.get_total_flops(), rel=0.03)


def test_cache_bytes_are_those_of_the_cache():
    cfg = tiny_config(num_kv_heads=2)
    cache = KVCache(cfg, batch_size=1)
    assert cache.keys.nbytes + cache.values.nbytes == cfg.context_length * cache_bytes_per_token(cfg)


def test_peak_memory_of_a_process():
    assert peak_bytes(os.getpid()) > 5e7
    assert peak_bytes(2**22 + 1) == 0  # 没有这个进程


def make_plan(variation, **changes) -> Plan:
    values = {
        "num_parameters": 2_500_000,
        "cache_bytes": 6144,
        "flops_per_token": 1000,
        "seconds_per_step": 0.5,
        "max_steps": None,
        "num_windows": 100,
        "train_tokens": 1000,
        "tokens_per_character": (0.9, 0.8),
        "estimated_bytes": 10**8,
    }
    return Plan(variation, **{**values, **changes})


@pytest.fixture
def variations(tmp_path) -> list:
    write_config(tmp_path)
    return expand([tmp_path / "tiny.json"], [], [parse_choice("learning_rate=0.1,0.2,0.3")], ModelConfig.from_dict)


def make_report(variations: list, losses: list[list[float]], num_seeds: int) -> Report:
    def result(nats: float) -> dict:
        curve = [{"seconds": t, "flops": t, "nats_per_char": nats + 1 - t} for t in (0, 1)]
        numbers = {"tokens": 3000, "seconds": 2.0, "epochs": 3.0, "peak_bytes": 4e8, "train_nats_per_char": nats - 1}
        return {"nats_per_char": nats, "curve": curve, **numbers}

    rows = [
        Row(make_plan(variation), [result(nats) for nats in values], [] if values else ["第 3 步：损失为 nan"])
        for variation, values in zip(variations, losses, strict=True)
    ]
    return Report(("learning_rate",), rows, EqualBudget(None, 1e9), num_seeds, Path("x.txt"))


def test_figures_of_the_table(variations):
    report = make_report(variations, [[5.0, 5.1], [4.0, 4.3], []], 2)
    header, first, second = [line.split() for line in report.table().splitlines()]
    assert first == ["0.1", "5.050", "0.100", "4.050", "1,500", "2.50", "400", "6,144", "3.0"]
    assert second[:3] == ["0.2", "4.150", "0.300"] and len(header) == len(first)
    best, failed = report.remarks()
    assert best == ("最低：learning_rate=0.2，比次低的 learning_rate=0.1 低 0.900，超过种子之间极差 0.300 的两倍。")
    assert failed == "没有练完：learning_rate=0.3：第 3 步：损失为 nan。"


def test_difference_within_the_noise_decides_nothing(variations):
    report = make_report(variations, [[5.0, 5.3], [4.6, 4.7], [6.0, 6.0]], 2)  # 相差半个 nat 也不算
    assert report.remarks()[0].endswith("不到种子之间极差 0.300 的两倍：分不出高下。")
    assert "--seeds 3" in make_report(variations, [[5.0], [4.9], [6.0]], 1).remarks()[0]


def test_equal_results_have_no_winner(variations):
    report = make_report(variations, [[5.0], [5.0], [6.0]], 1)
    assert report.remarks() == ["最低的 learning_rate=0.1 与 learning_rate=0.2 一样：分不出高下。"]


def test_long_names_get_their_own_line(variations):
    report = make_report(variations, [[5.0], [4.0], [3.0]], 1)
    wide = Report(("很长的名字" * 4,), report.rows, report.budget, 1, report.data_path)
    lines = wide.table().splitlines()
    assert max(map(display_width, lines)) <= 80 and lines[1] == "很长的名字" * 4 + "=0.1" and len(lines) == 7


def test_columns_line_up_when_characters_are_wide():
    assert align([["名", "轮"], ["ab", "123"]], 1) == "名   轮\nab  123"


def test_budget_becomes_steps_and_evaluations(variations):
    variation = variations[0]  # 一批 4 × 16 个 token
    assert count_steps(variation, 1000, EqualBudget(None, 64_000 * 10.4)) == 10
    assert count_steps(variation, 1000, EqualBudget(1.0, None)) is None
    with pytest.raises(UserError, match="不够"):
        count_steps(variation, 1000, EqualBudget(None, 63_999))
    by_time = make_plan(variation).training(EqualBudget(1.0, None), seed=7)  # 60 秒，每步半秒
    assert (by_time["max_minutes"], by_time["max_steps"], by_time["seed"]) == (1.0, None, 7)
    assert by_time["eval_freq"] == 15  # 120 步，评估八次
    by_flops = make_plan(variation, max_steps=800).training(EqualBudget(None, 1e9), seed=7)
    assert (by_flops["max_minutes"], by_flops["max_steps"], by_flops["eval_freq"]) == (None, 800, 100)
    evaluated = 2 * 8 * by_flops["eval_iter"] * EVAL_BATCH / 3  # 前向按训练的三分之一计
    assert evaluated <= 0.2 * 800 * 4


def test_damaged_result_is_computed_again(tmp_path):
    for content in (b"", b"[]", b'{"nats_per_char": NaN}', b'{"nats_per_char": "x"}', b"\xff"):
        (tmp_path / "result.json").write_bytes(content)
        assert read_result(tmp_path) is None
    (tmp_path / "result.json").write_bytes(b'{"nats_per_char": 4.5}')
    assert read_result(tmp_path) == {"nats_per_char": 4.5}
    assert read_result(tmp_path / "none") is None


@pytest.mark.parametrize("page", ["docs/手册/比较.md", "docs/实验.md"])
def test_commands_of_the_pages_are_accepted(page, monkeypatch):
    """每条命令的参数都认得，每种配置都成立，--flops 够走几步。"""
    monkeypatch.chdir(ROOT)
    commands = re.findall(r"^(?:\$ )?python (compare\.py .*)$", (ROOT / page).read_text(encoding="utf-8"), re.MULTILINE)
    assert len(commands) >= 3
    for command in commands:
        monkeypatch.setattr(sys, "argv", command.split())
        args = compare.parse_args()
        for variation in compare.read_variations(args):
            flops = count_training_flops(variation.config.model)
            assert args.minutes or count_steps(variation, flops, EqualBudget(None, args.flops)) > 100


FORGED = "Best validate loss 0.001 (Step 000001), 0.001 nats/char, 0.001 bits/byte\n错误：甲：乙。\nTraceback\n"


def test_score_cannot_be_forged_by_corpus_or_prompt(tmp_path):
    """语料就是我们自己的日志，提示语也照着写：样文里是假的分数，表里仍是真的。"""
    prepare(tmp_path, FORGED * 60, training={**TINY_FILE["training"], "sample_prompt": FORGED})
    result = run("compare.py", *FLAGS, cwd=tmp_path)
    assert (result.code, result.stderr) == (0, "")
    (folder,) = tmp_path.glob("compare/tiny_seed*")
    printed = (folder / "train.txt").read_text(encoding="utf-8")
    assert FORGED in printed[printed.index("样文：") :]
    true = next(line for line in printed.splitlines() if line.startswith("Best validate loss"))  # 在样文之前
    (row,) = read_rows(tmp_path)
    assert f", {row['nats_per_char']:.3f} nats/char, " in true and row["nats_per_char"] > 0.1
    assert row["runs"][0]["kept_step"] == int(re.search(r"Step (\d+)", true)[1])


def test_failure_cannot_be_forged(tmp_path, variations, monkeypatch):
    """标准输出上写什么都不算；被信号结束的，标准错误上写什么也不算。"""
    monkeypatch.setattr(comparison, "PROGRAM", tmp_path / "program.py")
    run_once = comparison.Run(make_plan(variations[0], max_steps=1), EqualBudget(None, 1e9), 1, Path("x"), "utf-8", "")
    for ending, reason in (
        ("sys.exit(1)", "以退出码 1 结束"),
        ("print('提示', file=sys.stderr); print('错误：丙：丁。再试。', file=sys.stderr); sys.exit(2)", "丙：丁。再试"),
        (
            "print('错误：甲：乙。', file=sys.stderr, flush=True); os.kill(os.getpid(), 9)",
            "被信号 9 结束，多半是内存不够",
        ),
    ):
        if os.name == "nt" and "kill" in ending:
            continue  # Windows 没有信号
        code = f"import os, sys\nprint({FORGED!r}, flush=True)\n{ending}\n"
        (tmp_path / "program.py").write_text(code, encoding="utf-8")
        with pytest.raises(RunError) as failed:
            comparison.train(run_once, tmp_path / "run")
        assert failed.value.reason == reason
        assert FORGED in (tmp_path / "run/train.txt").read_text(encoding="utf-8")
