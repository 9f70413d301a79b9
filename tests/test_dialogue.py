"""utils/dialogue.py：一问一答怎样开始和结束，从管道来的输入怎样显示。"""

import io
import sys

import pytest

from utils.dialogue import talk


@pytest.fixture
def ask(monkeypatch, capsys):
    """给出全部输入，返回（收到的问题, 屏幕上的文字）。"""

    def run(text: bytes, answer=lambda question: print(f"<{question}>")):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text), encoding="utf-8"))
        questions = []
        talk(lambda question: (questions.append(question), answer(question)))
        return questions, capsys.readouterr().out

    return run


def test_each_line_is_answered_until_exit(ask):
    questions, screen = ask("你好\n悟空 \nexit\n八戒\n".encode())
    assert questions == ["你好", "悟空"]
    assert screen == "用户: 你好\n模型: <你好>\n用户: 悟空 \n模型: <悟空>\n用户: exit\n"


def test_empty_lines_ask_again(ask):
    assert ask(b"\n  \n\n") == ([], "用户: \n用户:   \n用户: \n用户: \n")


def test_end_of_input_ends_it_on_a_new_line(ask):
    questions, screen = ask("你好".encode())
    assert questions == ["你好"] and screen.endswith("用户: \n")


def test_bytes_that_are_not_utf8_are_replaced(ask):
    assert ask(b"\xff\xfe\n")[0] == ["\ufffd\ufffd"]


def test_ctrl_c_ends_it_quietly(ask):
    def interrupt(question):
        raise KeyboardInterrupt

    assert ask("你好\n八戒\n".encode(), interrupt) == (["你好"], "用户: 你好\n模型: \n")


def test_no_stdin_at_all_is_an_empty_dialogue(monkeypatch, capsys):
    monkeypatch.setattr(sys, "stdin", None)
    talk(print)
    assert capsys.readouterr().out == ""
