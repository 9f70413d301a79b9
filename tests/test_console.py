"""utils/console.py：没有人听的时候不说话，也不停下。"""

import os
import subprocess
import sys

import pytest

from conftest import ROOT
from utils.console import hint, say


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
