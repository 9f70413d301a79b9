"""utils/console.py：没有人听的时候不说话，也不停下；折行不拆开词，汉字占两格。"""

import os
import subprocess
import sys

import pytest

from conftest import ROOT
from utils.console import display_width, hint, pad, say, wrap, wrap_pieces


def start(body: str, stdout: int) -> subprocess.Popen:
    environment = {**os.environ, "PYTHONIOENCODING": "utf-8"}
    pipes = {"stdout": stdout, "stderr": subprocess.PIPE, "stdin": subprocess.PIPE}
    return subprocess.Popen([sys.executable, "-c", body], cwd=ROOT, env=environment, **pipes)


def test_say_writes_to_stdout_and_hint_to_stderr(capsys):
    say("悟空")
    hint("八戒")
    assert capsys.readouterr() == ("悟空\n", "八戒\n")


def test_line_is_flushed_at_once():
    """程序还在等输入时，管道另一头已经读到这一行。"""
    process = start("from utils.console import say; say('一'); input(); say('二')", subprocess.PIPE)
    try:
        assert process.stdout.readline().decode().strip() == "一"
        assert process.communicate(b"\n", timeout=60) == ("二\n".encode().replace(b"\n", os.linesep.encode()), b"")
    finally:
        process.kill()


def test_closed_pipe_silences_the_program_but_does_not_stop_it():
    """head -1 走了：后面的话没有人听，程序照样做完，退出时也不抱怨。"""
    body = (
        "import sys; from utils.console import say, hint\nsay('一'); input()\nfor _ in range(9): say('二')\nhint('完')"
    )
    process = start(body, subprocess.PIPE)
    try:
        assert process.stdout.readline().decode().strip() == "一"
        process.stdout.close()
        process.stdin.write(b"\n")
        process.stdin.close()
        stderr = process.stderr.read().decode()
        assert (process.wait(60), stderr.strip()) == (0, "完")
    finally:
        process.kill()
        process.stderr.close()


def test_missing_stdout_is_ignored(monkeypatch, capsys):
    monkeypatch.setattr(sys, "stdout", None)  # 以 >&- 启动时就是这样
    say("悟空")
    hint("八戒")
    assert capsys.readouterr().err == "八戒\n"


@pytest.mark.skipif(os.name == "nt", reason="Windows 的 shell 不能写 >&-")
def test_program_started_without_stdout_runs_to_the_end():
    body = "from utils.console import say, hint; say('1'); hint('2')"
    command = ["sh", "-c", '"$0" -c "$1" >&-', sys.executable, body]
    done = subprocess.run(command, cwd=ROOT, stderr=subprocess.PIPE, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, b"2\n")


def test_full_width_character_takes_two_cells():
    assert [display_width(text) for text in ("", "ab", "注意a", "，（）", "café", "１２")] == [0, 2, 5, 6, 4, 4]
    assert pad("注意", 6) == "注意  " and pad("注意力", 4) == "注意力"


@pytest.mark.parametrize(
    ("text", "width", "lines"),
    [
        ("注意力ab", 4, ["注意", "力ab"]),
        ("", 4, [""]),
        ("用冒号：num_layers:emb_dim=2", 22, ["用冒号：", "num_layers:emb_dim=2"]),
        ("model_path 是 train", 10, ["model_path", "是 train"]),
        ("一二三，四", 6, ["一二", "三，四"]),  # 标点不到行首
        ("一二（三）", 6, ["一二", "（三）"]),  # 开括号不在行末
        ("默认 西游记.txt", 11, ["默认 西游", "记.txt"]),
        ("learning_rate", 5, ["learn", "ing_r", "ate"]),  # 一个词比一行还长，只好拆开
        ("a  b", 1, ["a", "b"]),
    ],
)
def test_text_is_folded_between_words(text, width, lines):
    assert wrap(text, width) == lines


def test_given_pieces_stay_whole():
    assert wrap_pieces(["[-a 值]", " ", "[-b 值]"], 8) == ["[-a 值]", "[-b 值]"]
