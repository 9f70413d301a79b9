"""在终端里对用户说话：不弄乱进度条，也不因为没人听了就停下训练；几个进程一起训练时，只有进程 0 说。汉字占两格。"""

import contextlib
import errno
import sys
import unicodedata
from collections.abc import Iterable

from tqdm import tqdm

from utils.errors import discard_stdout
from utils.processes import is_main

# 读的一方走了：管道关闭（Windows 上是 EINVAL），终端关闭
READER_GONE = (errno.EPIPE, errno.EIO, errno.EINVAL)
NOT_LAST = "（《「『【［“‘"  # 不放在行末
NOT_FIRST = "，。；：！？、）》」』】］”’….,;:!?)]}"  # 不放在行首


def say(text: str) -> None:
    """在 stdout 上打印一行；读的一方（如 head -1）走了、终端关了就不再打印，训练照常继续。"""
    if sys.stdout is None or not is_main():  # 以 >&- 启动时没有标准输出
        return
    try:
        tqdm.write(text, file=sys.stdout)
        sys.stdout.flush()
    except OSError as error:
        if error.errno not in READER_GONE:
            raise
        discard_stdout()


def hint(text: str) -> None:
    """在 stderr 上打印一行提示；打不出来（如终端已经关闭）也不要紧。"""
    if is_main():
        with contextlib.suppress(OSError):
            tqdm.write(text, file=sys.stderr)


def progress_bar(name: str, total: int, unit: str) -> tqdm:
    """stderr 上的进度条，一秒内做完的事不必画；stderr 不是终端时什么也不画。"""
    options = {"unit_scale": True, "delay": 1, "leave": False, "disable": None if is_main() else True}
    return tqdm(desc=name, total=total, unit=unit, file=sys.stderr, **options)


def display_width(text: str) -> int:
    """在终端里占几格；汉字和全角标点占两格。"""
    return sum(map(_cells, text))


def _cells(character: str) -> int:
    return 2 if unicodedata.east_asian_width(character) in "WF" else 1


def pad(text: str, width: int) -> str:
    """在右边补空格，补到 width 格。"""
    return text + " " * (width - display_width(text))


def wrap(text: str, width: int) -> list[str]:
    """折成每行不超过 width 格；只在空格处和全角字符的前后换行，不拆开英文的词。"""
    return wrap_pieces(_split_pieces(text), width)


def wrap_pieces(pieces: Iterable[str], width: int) -> list[str]:
    """把不该拆开的各段排成每行不超过 width 格，行首行末的空格去掉；一段自己就超过一行时才拆开。"""
    lines = [""]
    for piece in pieces:
        if display_width(lines[-1] + piece) <= width:
            lines[-1] += piece
            continue
        lines.append("")
        for character in piece.lstrip():
            if display_width(lines[-1] + character) > width:
                lines.append("")
            lines[-1] += character
    lines = [line.strip() for line in lines]
    return [line for line in lines if line] or [""]


def _split_pieces(text: str) -> list[str]:
    """一个词、一个汉字、一个空格各是一段；标点跟着前面的一段，开括号跟着后面的。"""
    pieces: list[str] = []
    for character in text:
        before = pieces[-1][-1] if pieces else " "
        is_word = _cells(character) == _cells(before) == 1
        is_tied = is_word or character in NOT_FIRST or before in NOT_LAST
        if is_tied and " " not in (character, before):
            pieces[-1] += character
        else:
            pieces.append(character)
    return pieces
