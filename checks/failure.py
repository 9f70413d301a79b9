"""学习者的代码抛出异常时，用一句中文说出是什么、在哪个文件的哪一行，不给 traceback。"""

import re
import traceback
from pathlib import Path

# (异常的英文, 中文)；没有列出的照原文
TRANSLATIONS = (
    (r"name '(.+?)' is not defined.*", r"没有 \1 这个名字"),
    (r"cannot access local variable '(.+?)'.*", r"用到 \1 时它还没有值"),
    (r"module '(.+?)' has no attribute '(.+?)'.*", r"\1 没有 \2 这个属性"),
    (r"'?(\w+)'? object has no attribute '(.+?)'.*", r"\1 没有 \2 这个属性"),
    (r"cannot import name '(.+?)' from '(.+?)'.*", r"\2 里没有 \1"),
    (r"No module named '(.+?)'", r"没有 \1 这个模块"),
    (r"mat1 and mat2 shapes cannot be multiplied \((.+?) and (.+?)\)", r"形状不对：\1 的矩阵不能乘 \2 的"),
    (
        r"The size of tensor a \((\d+)\) must match the size of tensor b \((\d+)\) at non-singleton dimension (\d+)",
        r"形状不对：第 \3 维一个是 \1，一个是 \2",
    ),
    (
        r"The expanded size of the tensor \((\d+)\) must match the existing size \((\d+)\) "
        r"at non-singleton dimension (\d+).*",
        r"形状不对：第 \3 维应为 \1，得到 \2",
    ),
    (r"shape '(.+?)' is invalid for input of size (\d+)", r"形状不对：\2 个数排不成 \1"),
    (r"Expected size for first two dimensions .*got: \[(.+?)\].*", r"形状不对：批量矩阵相乘时收到 [\1]"),
    (
        r"a (?:view of a )?leaf [Vv]ariable that requires grad is being used in an in-place operation.*",
        "原地修改了输入，写成 x = x + … 这样的新张量",
    ),
    (
        r"one of the variables needed for gradient computation has been modified by an inplace operation.*",
        "原地修改了反向传播要用的数，写成 x = x + … 这样的新张量",
    ),
    (r"(.+?) takes (.+?) positional arguments? but (\d+) (?:was|were) given", r"\1 收到 \3 个位置参数，定义里是 \2 个"),
    (r"(.+?) missing \d+ required positional arguments?: (.+)", r"\1 少给了参数 \2"),
    (r"(.+?) got an unexpected keyword argument '(.+?)'.*", r"\1 不接受参数 \2"),
    (r"maximum recursion depth exceeded.*", "函数不停地调用自己"),
    (r"division by zero|float division by zero", "除以 0"),
    (r"math domain error|expected a nonnegative input.*", "数学函数的参数超出范围"),
    (r"invalid syntax.*", "语法不对"),
    (r"expected an indented block.*", "缩进不对：冒号之后要有缩进的内容"),
    (r"unindent does not match any outer indentation level|unexpected indent", "缩进不对"),
    (r"'(.+?)' was never closed", r"\1 没有配对的另一半"),
)


def describe_exception(error: BaseException) -> tuple[str, str]:
    """-> (是什么异常, 在哪里)；哪里是 model/、utils/ 中最靠里的一行。"""
    message = str(error.msg if isinstance(error, SyntaxError) else error)
    message = " ".join(message.split())
    for english, chinese in TRANSLATIONS:
        if (translated := re.sub(f"^(?:{english})$", chinese, message)) != message:
            message = translated
            break
    return f"{type(error).__name__}：{message}", _place(error) or "出在反向传播时，不在某一行"


def _place(error: BaseException) -> str:
    frames = [(frame.filename, frame.lineno, frame.line) for frame in traceback.extract_tb(error.__traceback__)]
    if isinstance(error, SyntaxError):
        frames.append((error.filename, error.lineno, error.text or ""))
    for filename, line_number, line in reversed(frames):
        path = Path(filename or "")
        if path.parent.name in ("model", "utils"):
            return f"{path.parent.name}/{path.name} 第 {line_number} 行：{(line or '').strip()}"
    return ""
