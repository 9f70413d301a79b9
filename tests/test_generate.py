"""generate.py 从头到尾：像用户那样从命令行运行。"""

import shutil

import pytest
import torch

from conftest import ROOT, run, write_config


def generate(folder, *arguments, stdin=""):
    result = run("generate.py", *arguments, cwd=folder, stdin=stdin)
    assert result.code == 0, result.stderr
    return result


def test_prompt_is_continued(trained):
    result = generate(trained, "--prompt", "悟空", "--max_new_tokens", 20)
    assert result.stdout.startswith("悟空") and len(result.stdout) > len("悟空\n") and result.stderr == ""


def test_greedy_is_the_default_and_repeats_itself(trained):
    outputs = {generate(trained, "--prompt", "悟空").stdout for _ in range(2)}
    assert len(outputs) == 1


def test_seed_fixes_a_random_answer(trained):
    def answer(seed):
        return generate(trained, "--prompt", "悟空", "--temperature", 1.5, "--seed", seed).stdout

    assert answer(1) == answer(1) != answer(2)


def test_several_samples_differ_and_are_separated(trained):
    result = generate(trained, "--prompt", "八戒", "--num_samples", 3, "--temperature", 1.5, "--seed", 1)
    samples = result.stdout.rstrip("\n").split("\n\n八戒")
    assert len(samples) == 3 and len(set(samples)) == 3


def test_every_sampling_flag_is_accepted(trained):
    flags = ["--temperature", 0.9, "--top_k", 5, "--top_p", 0.9, "--repetition_penalty", 1.2, "--dtype", "bfloat16"]
    generate(trained, "--prompt", "师父", *flags)


@pytest.mark.parametrize("flags", [("--quantize", "int8"), *(("--dtype", name) for name in ("float16", "bfloat16"))])
def test_compact_weights_write_text_and_repeat_themselves(trained, flags):
    outputs = {generate(trained, "--prompt", "悟空", "--device", "cpu", *flags).stdout for _ in range(2)}
    assert len(outputs) == 1 and outputs.pop().startswith("悟空")


def test_dialogue_answers_each_line_until_exit(trained):
    result = generate(trained, stdin="你好\n\n悟空\nexit\n八戒\n")
    lines = result.stdout.split("用户: ")
    assert [line.split("\n")[0] for line in lines[1:]] == ["你好", "", "悟空", "exit"]
    assert "模型: 你好" in result.stdout and "模型: 悟空" in result.stdout and "八戒" not in result.stdout


def test_dialogue_ends_with_the_input(trained):
    assert generate(trained, stdin="你好").stdout.startswith("用户: 你好\n模型: 你好")


def test_plain_weights_need_a_config_and_load_with_it(trained, tmp_path):
    state = torch.load(trained / "model.pth", weights_only=True)
    del state["_extra_state"]
    weights = {"vocab_size": 50257, "tokenizer": ...}
    plain = tmp_path / "plain.pth"
    table = torch.randn(50257, 32) * 0.02
    torch.save({**state, "tok_emb.weight": table, "out_head.weight": table}, plain)
    without = run("generate.py", "--model_path", plain, "--prompt", "你好", cwd=tmp_path)
    assert without.code == 2 and "--config" in without.stderr
    config = write_config(tmp_path, **weights)
    result = generate(tmp_path, "--config", config, "--model_path", plain, "--prompt", "你好")
    assert result.stdout.startswith("你好")


def test_plain_untied_weights_load_with_the_same_config(trained, tmp_path):
    """早期的项目输出层与嵌入各有一个矩阵，配置里却没有这个字段。"""
    state = torch.load(trained / "model.pth", weights_only=True)
    del state["_extra_state"]
    tables = {name: torch.randn(50257, 32) * 0.02 for name in ("tok_emb.weight", "out_head.weight")}
    torch.save({**state, **tables}, tmp_path / "plain.pth")
    config = write_config(tmp_path, vocab_size=50257, tokenizer=...)
    generate(tmp_path, "--config", config, "--model_path", "plain.pth", "--prompt", "你好")


def test_config_with_another_tokenizer_is_named(trained, tmp_path):
    config = write_config(tmp_path, tokenizer={"type": "gpt2"})
    result = run("generate.py", "--config", config, "--model_path", trained / "model.pth", cwd=tmp_path)
    assert result.code == 2 and "tokenizer 是 gpt2" in result.stderr and "训练时是 bpe" in result.stderr


def test_model_file_describes_itself_wherever_it_is(trained, tmp_path):
    shutil.copy(trained / "model.pth", tmp_path / "renamed.bin")
    assert generate(tmp_path, "--model_path", "renamed.bin", "--prompt", "悟空").stdout.startswith("悟空")


def test_matching_config_is_accepted(trained):
    assert generate(trained, "--config", trained / "tiny.json", "--prompt", "悟空").stdout.startswith("悟空")


def test_help_names_every_flag():
    result = run("generate.py", "--help", cwd=ROOT)
    flags = """config model_path max_new_tokens temperature top_k top_p repetition_penalty prompt num_samples seed
    device dtype quantize check_copy encoding""".split()
    assert result.code == 0 and all(f"--{flag} " in result.stdout for flag in flags)


@pytest.fixture
def memorized(trained, tmp_path):
    """-> (文件夹, 样文)：corpus.txt 里有模型贪心写出的整段，加上开头。"""
    sample = generate(trained, "--prompt", "悟空", "--max_new_tokens", 60).stdout.removesuffix("\n")
    (tmp_path / "corpus.txt").write_text(f"别的话。{sample}。", encoding="utf-8")
    shutil.copy(trained / "model.pth", tmp_path)
    return tmp_path, sample


def check_copy(folder, *arguments):
    flags = ("--prompt", "悟空", "--max_new_tokens", 60, "--check_copy", "corpus.txt")
    return generate(folder, *flags, *arguments).stdout


def test_copied_sample_is_marked_without_its_prompt(memorized):
    folder, sample = memorized
    written = sample.removeprefix("悟空")
    output = check_copy(folder)
    shown = written.replace("\n", "↵")
    rate = f"原文照抄率 100.0%（{len(written)} / {len(written)} 字，10 字以上与原文相同的才算）"
    assert output == f"{sample}\n标出照抄：悟空【{written}】\n{rate}，最长的相同 {len(written)} 字：{shown}\n"


def test_each_sample_is_checked_in_its_own_encoding(memorized):
    folder, sample = memorized
    (folder / "corpus.txt").write_text("与它毫不相干的一篇文字。", encoding="gb18030")
    output = check_copy(folder, "--encoding", "gb18030", "--num_samples", 2)
    assert output.count(f"{sample}\n标出照抄：{sample}\n原文照抄率 0.0%（0 / ") == 2


def test_dialogue_is_checked_too(memorized):
    folder, _ = memorized
    result = generate(folder, "--check_copy", "corpus.txt", stdin="悟空\n八戒\n")
    assert result.stdout.count("标出照抄：") == result.stdout.count("原文照抄率 ") == 2


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "错误：corpus.txt：找不到数据文件。检查路径；随项目附带的语料和数据在 data/ 下。\n"),
        (b"", "错误：corpus.txt：没有内容。换一份语料。\n"),
        ("悟空".encode("gb18030"), "错误：corpus.txt：第 1 字节不是 UTF-8（像 GB18030）。加 --encoding gb18030。\n"),
    ],
)
def test_bad_corpus_to_check_is_one_line(trained, tmp_path, content, message):
    if content is not None:
        (tmp_path / "corpus.txt").write_bytes(content)
    flags = ("--model_path", trained / "model.pth", "--prompt", "悟空", "--check_copy", "corpus.txt")
    result = run("generate.py", *flags, cwd=tmp_path)
    assert (result.code, result.stdout, result.stderr) == (2, "", message)


def test_folder_to_check_is_one_line(trained):
    result = run("generate.py", "--prompt", "悟空", "--check_copy", ".", cwd=trained)
    assert result.code == 2 and result.stderr == "错误：.：不是普通文件。这里需要一个数据文件。\n"
