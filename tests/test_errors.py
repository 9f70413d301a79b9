"""utils/errors.py：用户看到的总是一行话和约定的退出码；程序自己的错误仍有完整的 traceback。"""

import ast
import errno
import os
import signal
import subprocess
import sys

import pytest
import torch

from conftest import ROOT, Result
from utils.errors import RunError, UserError, describe_os_error, is_out_of_memory

POSIX_ONLY = pytest.mark.skipif(os.name == "nt", reason="Windows 没有 POSIX 信号和 /dev/full")
PROGRAM = """
import os, signal, sys
from utils.errors import RunError, Terminated, UserError, run_program
def main():
    {}
run_program(main)
"""


def run_main(body: str, encoding: str = "utf-8", **options) -> Result:
    """把 body 当作程序的 main 运行。"""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM.format(body)],
        cwd=ROOT,
        env={**os.environ, "PYTHONIOENCODING": encoding},
        timeout=60,
        **({"stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | options),
    )
    stdout, stderr = (
        (stream or b"").decode("utf-8").replace(os.linesep, "\n") for stream in (done.stdout, done.stderr)
    )
    return Result(done.returncode, stdout, stderr)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("--top_k", "必须是整数", ""), "错误：--top_k：必须是整数。"),
        (("a.json", "坏了", "换一个。"), "错误：a.json：坏了。换一个。"),
        (("a", "是否想写 b？", ""), "错误：a：是否想写 b？"),  # 问号后面不再加句号
        (("a", "已有句号。", ""), "错误：a：已有句号。"),
        (("a\nb\r\n", "有\t制表符", ""), r"错误：a\nb\r\n：有\t制表符。"),
        (("\x1b[31m红\x1b[0m", "\x00\x7f\x9b", ""), r"错误：\x1b[31m红\x1b[0m：\x00\x7f\x9b。"),
        (("\udcff.txt", "\u2028\u202e", ""), r"错误：\udcff.txt：\u2028\u202e。"),  # 换行和颠倒文字方向的字符
    ],
)
def test_message_is_one_visible_line(arguments, text):
    assert str(UserError(*arguments)) == text
    assert str(UserError(*arguments)).isprintable()


def test_exit_code_tells_bad_input_from_failure():
    assert UserError("a", "b", "c").exit_code == 2 and RunError("a", "b", "c").exit_code == 1
    assert isinstance(RunError("a", "b", "c"), UserError)


def has_advice(call: ast.Call) -> bool:
    """第三个参数是怎么办：不能没有，也不能是空的。*error.args 照抄别处的，不算。"""
    last = call.args[-1]
    is_blank = isinstance(last, ast.Constant) and not last.value
    return isinstance(last, ast.Starred) or len(call.args) == 3 and not is_blank


def test_every_error_says_what_to_do():
    calls = [
        (path.name, call)
        for path in (*ROOT.glob("*.py"), *ROOT.glob("[!t]*/*.py"))
        for call in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(call, ast.Call) and getattr(call.func, "id", "") in ("UserError", "RunError", "DamagedError")
    ]
    assert len(calls) > 100
    assert [(name, call.lineno) for name, call in calls if not has_advice(call)] == []


def test_system_errors_are_told_in_chinese(tmp_path):
    assert describe_os_error(OSError(errno.EACCES, "Permission denied")) == "没有权限"
    assert describe_os_error(OSError(errno.ENOTTY, "Not a typewriter")) == "Not a typewriter"
    assert describe_os_error(OSError("怪事")) == describe_os_error(ValueError("怪事")) == "怪事"
    with pytest.raises(OSError) as error:
        (tmp_path / "没有").read_bytes()
    assert describe_os_error(error.value) == "不存在"


@pytest.mark.parametrize(
    ("body", "code", "stdout", "stderr"),
    [
        ("print('好')", 0, "好\n", ""),
        ("raise UserError('--a', '不对', '换一个。')", 2, "", "错误：--a：不对。换一个。\n"),
        ("raise RunError('磁盘', '满了', '腾出空间。')", 1, "", "错误：磁盘：满了。腾出空间。\n"),
        ("raise KeyboardInterrupt", 130, "", ""),
        ("raise Terminated", 143, "", ""),
        ("raise BrokenPipeError", 0, "", ""),
        ("sys.exit(0)", 0, "", ""),
        (
            "open('/没有/这个')",
            1,
            "",
            "错误：/没有/这个：不存在。已有的文件没有改动；检查路径、磁盘和权限。\n",
        ),
        (
            "raise OSError(28, 'No space left')",
            1,
            "",
            "错误：磁盘：磁盘满了。已有的文件没有改动；检查路径、磁盘和权限。\n",
        ),
        ("raise OSError('怪事')", 1, "", "错误：磁盘：怪事。已有的文件没有改动；检查路径、磁盘和权限。\n"),
    ],
    ids=lambda value: value if isinstance(value, str) and "(" in value else "",
)
def test_each_ending_has_its_exit_code_and_at_most_one_line(body, code, stdout, stderr):
    assert run_main(body) == Result(code, stdout, stderr)


@pytest.mark.parametrize(
    "error",
    [
        "MemoryError()",
        "RuntimeError('CUDA out of memory. Tried to allocate 2.00 GiB')",
        'RuntimeError("[enforce fail at alloc_cpu.cpp:124] DefaultCPUAllocator: can\'t allocate memory")',
        "RuntimeError('DefaultCPUAllocator: not enough memory: you tried to allocate')",
    ],
)
def test_lack_of_memory_is_one_line_with_advice(error):
    result = run_main(f"raise {error}")
    assert (result.code, result.stdout) == (1, "")
    assert result.stderr.startswith("错误：内存：不够用。减小 --batch_size") and result.stderr.count("\n") == 1


def test_the_error_torch_really_raises_is_recognised():
    with pytest.raises(RuntimeError) as error:
        torch.empty(2**60, dtype=torch.int8)
    assert is_out_of_memory(error.value)
    assert not is_out_of_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))


@pytest.mark.parametrize("error", ["RuntimeError('形状不符')", "ValueError('意外')", "KeyError('a')"])
def test_bug_keeps_its_traceback(error):
    result = run_main(f"raise {error}")
    assert result.code == 1
    assert result.stderr.startswith("Traceback") and result.stderr.splitlines()[-1].startswith(error.split("(")[0])


@POSIX_ONLY
def test_sigterm_becomes_its_exit_code_and_runs_finally():
    body = "\n    ".join(("try:", "    os.kill(os.getpid(), signal.SIGTERM)", "finally:", "    print('收尾')"))
    assert run_main(body) == Result(128 + signal.SIGTERM, "收尾\n", "")


@POSIX_ONLY
def test_reader_that_left_before_the_last_flush_is_no_failure():
    reader, writer = os.pipe()
    os.close(reader)
    try:
        assert run_main("print('没有人看')", stdout=writer) == Result(0, "", "")
    finally:
        os.close(writer)


@POSIX_ONLY
@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="这个系统没有 /dev/full")
def test_output_that_cannot_be_written_is_a_failure():
    with open("/dev/full", "wb") as full:
        result = run_main("print('写不下')", stdout=full)
    assert result.code == 1
    assert result.stderr == "错误：磁盘：磁盘满了。已有的文件没有改动；检查路径、磁盘和权限。\n"


def test_terminal_without_chinese_gets_question_marks_not_a_crash():
    assert run_main("print('悟空 ok')", encoding="ascii") == Result(0, "?? ok\n", "")
    assert run_main("raise UserError('a', '坏了', '')", encoding="ascii") == Result(2, "", "???a????\n")
