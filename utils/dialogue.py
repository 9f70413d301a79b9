"""一问一答：从终端或管道读一行，打印“模型: ”，再由程序回答。"""

import sys
from collections.abc import Callable


def talk(answer: Callable[[str], None]) -> None:
    """一问一答，直到 exit、输入结束或 Ctrl-C。"""
    if sys.stdin is None:  # 以 <&- 启动，没有输入可读
        return
    is_terminal = sys.stdin.isatty()
    if hasattr(sys.stdin, "reconfigure"):
        sys.stdin.reconfigure(errors="replace")
    try:
        while (line := _read_line(is_terminal)) is not None and line != "exit":
            if line:
                print("模型: ", end="", flush=True)
                answer(line)
    except KeyboardInterrupt:
        print()


def _read_line(is_terminal: bool) -> str | None:
    """显示“用户: ”并读一行，去掉首尾空白；输入结束时返回 None。从管道来的输入照样显示出来。"""
    print("用户: ", end="", flush=True)
    line = sys.stdin.readline()
    if not line or not is_terminal:
        print(line.rstrip("\n"))
    return line.strip() if line else None
