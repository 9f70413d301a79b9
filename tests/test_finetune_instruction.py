"""finetune_instruction.py 和 chat.py 从头到尾：像用户那样从命令行运行。"""

import json
import re

import pytest
from builders import make_records

from conftest import last_of_each, refuse, run, write_config
from utils.model_file import read_model_file


@pytest.fixture(scope="module")
def folder(tmp_path_factory, corpus_text):
    """有预训练好的 model.pth（上下文 64 个 token）和 data.json 的文件夹。"""
    folder = tmp_path_factory.mktemp("instruction")
    (folder / "corpus.txt").write_text(corpus_text, encoding="utf-8")
    config = write_config(folder, context_length=64)
    assert run("pretrain.py", "--config", config, "--data_path", "corpus.txt", cwd=folder).code == 0
    (folder / "data.json").write_text(json.dumps(make_records(), ensure_ascii=False), encoding="utf-8")
    return folder


def finetune(folder, *args):
    flags = ("--data_path", "data.json", "--epochs", 30, "--eval_freq", 50, "--batch_size", 16)
    return run("finetune_instruction.py", *last_of_each(*flags, *args), cwd=folder)


@pytest.fixture(scope="module")
def tuned(folder):
    result = finetune(folder)
    assert result.code == 0, result.stderr
    return result


def test_exact_match_is_printed_before_and_after_per_task(folder, tuned):
    match = re.search(r"首字  (\d+)% → (\d+)%（10）", tuned.stdout)
    assert int(match[1]) < 20 < 60 < int(match[2])
    result = json.loads((folder / "assistant.pth.result.json").read_bytes())
    before, after = result["exact_match_before"], result["exact_match"]
    assert f"合计 {before:.1%} → {after:.1%}（10），第 {result['step']} 步" in tuned.stdout


def test_report_asks_a_held_out_question(folder, tuned):
    page = (folder / "assistant.pth.report.html").read_text(encoding="utf-8")
    for part in ("<h1>指令微调报告：assistant.pth</h1>", "训练完成", "首字 90（训练部分）", "留出</th><td>10 条"):
        assert part in page, part
    question = make_records()[3]
    asked = f"问：第一个字\n{question['input']}\n答：</span>"
    assert asked in page and f"<footer>应为：{question['output']}</footer>" in page


def test_template_travels_in_the_model_file(folder, tuned):
    assert read_model_file(folder / "assistant.pth").template == "zh"


def test_chat_answers_one_instruction_and_shows_the_prompt(folder, tuned):
    result = run("chat.py", "--instruction", "第一个字", "--input", "悟空八戒", "--show_prompt", cwd=folder)
    assert result.code == 0 and result.stdout.strip() and result.stdout.count("\n") == 1
    assert result.stderr.startswith("［问：第一个字\n") or "答：］" in result.stderr
    spaced = run("chat.py", "--instruction", " 第一个字 ", "--input", " 悟空八戒", "--show_prompt", cwd=folder)
    assert (spaced.stdout, spaced.stderr) == (result.stdout, result.stderr)
    without = run("chat.py", "--instruction", "你好", "--input", "", "--show_prompt", cwd=folder)
    assert without.code == 0 and "［问：你好\n答：］" in without.stderr


def test_dialogue_remembers_as_far_as_the_context_reaches(folder, tuned):
    stdin = "第一个字 悟空\n\n" + "八戒" * 100 + "\n<|endoftext|>\nexit\n"
    result = run("chat.py", "--show_prompt", cwd=folder, stdin=stdin)
    assert result.code == 0 and result.stdout.count("模型: ") == 3
    assert len(read_model_file(folder / "assistant.pth").weights) > 0


def test_lora_gives_a_plain_file(folder, tuned):
    result = finetune(folder, "--trainable", "lora", "--output_path", "lora.pth", "--max_steps", 5)
    assert result.code == 0, result.stderr
    assert read_model_file(folder / "lora.pth").weights.keys() == read_model_file(folder / "model.pth").weights.keys()


def test_best_weights_of_lora_are_the_ones_judged(folder, tuned):
    """学习率太大，越练越差：最好的不是最后一步，判断时要装回文件里的、合并过的权重。"""
    flags = ("--trainable", "lora", "--keep", "best", "--eval_freq", 1, "--max_steps", 6)
    flags += ("--optimizer", "adamw", "--learning_rate", 1, "--warmup_steps", 20)
    result = finetune(folder, *flags, "--output_path", "best.pth")
    assert result.code == 0, result.stderr
    step = read_model_file(folder / "best.pth").origin["step"]
    assert step < 6 and f"第 {step} 步" in result.stdout and "留出部分完全答对" in result.stdout


def test_small_adapter_and_base_answer_like_the_merged_model(folder, tuned):
    result = finetune(folder, "--trainable", "lora", "--output_path", "l.pth", "--max_steps", 5)
    assert "适配器：l.pth.lora" in result.stdout
    ask = ("--instruction", "第一个字", "--input", "悟空")
    merged = run("chat.py", "--model_path", "l.pth", *ask, cwd=folder)
    apart = run("chat.py", "--model_path", "model.pth", "--adapter_path", "l.pth.lora", *ask, cwd=folder)
    assert merged.code == apart.code == 0 and merged.stdout == apart.stdout
    flags = ["--model_path", "assistant.pth", "--adapter_path", "l.pth.lora"]
    refuse(folder, "chat.py", flags, "l.pth.lora：适配器是从另一个模型微调来的")


def test_interrupted_run_resumes(folder, tuned):
    first = finetune(folder, "--output_path", "again.pth", "--max_steps", 7)
    second = finetune(folder, "--output_path", "again.pth", "--max_steps", 9, "--resume")
    assert first.code == second.code == 0 and "从第 7 步继续" in second.stdout


def test_bad_input_is_one_line(folder, tuned):
    records = [*make_records(), {"input": "缺少"}]
    (folder / "bad.json").write_text(json.dumps(records), encoding="utf-8")
    refuse(folder, "finetune_instruction.py", ["--data_path", "bad.json"], 'bad.json：第 101 条缺少 "instruction"')
    refuse(folder, "finetune_instruction.py", ["--data_path", "none.json"], "none.json：找不到数据文件")
    (folder / "long.json").write_text(
        json.dumps([{**r, "instruction": "长" * 90} for r in make_records()]), encoding="utf-8"
    )
    result = run("finetune_instruction.py", "--data_path", "long.json", cwd=folder)
    assert result.code == 2 and "训练部分没有一条的回答放得进 64 个 token 的上下文" in result.stderr
    refuse(
        folder,
        "chat.py",
        ["--model_path", "model.pth"],
        "model.pth：没有做过指令微调，不会回答",
        "finetune_instruction.py",
    )
    refuse(folder, "chat.py", ["--input", "悟空"], "--input：只与 --instruction 同用")


def test_dry_run_tells_memory_and_time_and_writes_nothing(folder):
    before = sorted(path.name for path in folder.iterdir())
    result = finetune(folder, "--dry_run", "--trainable", "lora", "--output_path", "dry.pth")
    assert result.code == 0 and "内存：一批" in result.stdout and "训练：" in result.stdout, result.stderr
    assert sorted(path.name for path in folder.iterdir()) == before
    refuse(
        folder,
        "finetune_instruction.py",
        ["--trainable", "lora", "--lora_rank", 100_000, "--data_path", "data.json"],
        "--lora_rank",
        "emb_dim=32",
    )


def test_long_question_and_large_top_k_are_hinted(folder, tuned):
    flags = ("--instruction", "长" * 300, "--top_k", 10**6, "--temperature", 1)
    result = run("chat.py", *flags, cwd=folder)
    assert result.code == 0 and "--top_k 已降为词表大小 300" in result.stderr
    assert "提示：问话超过上下文长度，只看末尾" in result.stderr


def test_resume_with_other_details_is_refused(folder, tuned):
    flags = ("--output_path", "details.pth", "--max_steps", 2, "--trainable", "lora")
    assert finetune(folder, *flags).code == 0
    other = finetune(folder, *flags, "--resume", "--lora_rank", 4)
    assert other.code == 2 and "lora_rank 是 8，现在是 4" in other.stderr
    other = finetune(folder, *flags, "--resume", "--template", "en")
    assert other.code == 2 and "template 是 zh，现在是 en" in other.stderr
