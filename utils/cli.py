"""命令行：中文的 argparse，各种取值的检查，所有错误变成 UserError。"""

import argparse
import codecs
import difflib
import math
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from utils.console import display_width, pad, wrap, wrap_pieces
from utils.errors import UserError

MAX_LEFT = 28  # 帮助里参数一栏最宽几格
MIN_WIDTH = 40
CLOSE_WORD = 0.75  # 这么像才猜是写错了：gpu 不像 cpu
FLAGS_OF_FILES = {  # 文件前面漏写的参数，多半是其中第一个有的
    **dict.fromkeys((".pth", ".safetensors", ".bin"), ("--model_path",)),
    **dict.fromkeys((".txt", ".csv", ".tsv", ".jsonl", ".gz"), ("--data_path",)),
    ".json": ("--config", "--configs", "--data_path"),
}


class ArgumentParser(argparse.ArgumentParser):
    """argparse 的中文版：帮助是中文，错误是一行，写错的参数名给出猜测。"""

    def __init__(self, description: str):
        super().__init__(description=description, add_help=False, allow_abbrev=False)
        self._positionals.title, self._optionals.title = "位置参数", "参数"
        self.register("action", None, _StoreOnce)
        self.given: set[str] = set()  # 命令行上写了哪些参数，按 dest
        self._companions: dict[str, str] = {}
        self.add_argument("-h", "--help", action="help", help="显示这份帮助")

    def only_with(self, companion: str, *names: str) -> None:
        """names 只有与 companion 同用才管用；companion 如 --trainable lora，不写取值就是给了便行。"""
        self._companions |= dict.fromkeys(names, companion)

    def format_usage(self) -> str:
        start, width = f"用法：{self.prog} ", _terminal_width()
        indent = display_width(start)
        pieces = [piece for part in self._usage_parts() for piece in (part, " ")]
        return start + f"\n{' ' * indent}".join(wrap_pieces(pieces, width - indent)) + "\n"

    def format_help(self) -> str:
        """argparse 自己排的把汉字当作一格宽，会超出终端，列也对不齐。"""
        width = _terminal_width()
        sections = [self.format_usage(), "\n".join(wrap(self.description, width)) + "\n"]
        for group in self._action_groups:
            rows = [(_invocation(action), (action.help or "") % vars(action)) for action in group._group_actions]
            if rows:
                sections.append(f"{group.title}：\n" + _two_columns(rows, width))
        return "\n".join(sections)

    def _usage_parts(self) -> list[str]:
        """用法里的各项，可以省去的加方括号；只能选一个的合成一项。"""
        parts = {action: _invocation(action, only_first=True) for action in self._actions}
        for group in self._mutually_exclusive_groups:
            first, *others = group._group_actions
            parts[first] = " | ".join([parts[first], *(parts.pop(action) for action in others)])
        by_kind = sorted(parts, key=lambda action: not action.option_strings)  # 位置参数在最后
        is_bare = {action: action.required and action.nargs != "*" for action in parts}
        return [parts[action] if is_bare[action] else f"[{parts[action]}]" for action in by_kind]

    def parse_args(self, args: list[str] | None = None, namespace: argparse.Namespace | None = None):
        self.given.clear()
        namespace, unknown = self.parse_known_args(args, namespace)
        if unknown:
            name = unknown[0].split("=")[0] or '""'
            guess = self._guess(name)
            raise UserError(name, "无法识别的参数", f"是否想写 {guess}？" if guess else "用 --help 查看全部参数。")
        self._check_companions(namespace)
        return namespace

    def _guess(self, word: str) -> str | None:
        """多出来的 word 本来想写什么：文件前面漏了参数名，或名字写错了。"""
        known = self._option_string_actions
        flags = [flag for flag in FLAGS_OF_FILES.get(Path(word).suffix, ()) if flag in known]
        close = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
        return f"{flags[0]} {word}" if flags else close[0] if close else None

    def _check_companions(self, namespace: argparse.Namespace) -> None:
        """给了不管用的参数就抛出 UserError，免得用户以为它管用。"""
        for name, companion in self._companions.items():
            other, *value = companion.split()
            dest = self._option_string_actions[other].dest
            is_met = str(getattr(namespace, dest)) == value[0] if value else dest in self.given
            if self._option_string_actions[name].dest in self.given and not is_met:
                raise UserError(name, f"只与 {companion} 同用", f"加上 {companion}，或去掉 {name}。")

    def error(self, message: str):
        match = re.match(r"argument (\S+): (.*)", message, re.DOTALL)
        subject, reason = match.groups() if match else ("命令行", message)
        for english, chinese in _TRANSLATIONS:
            reason = re.sub(english, chinese, reason, flags=re.DOTALL)
        subject = subject.split("/")[-1]
        starts_with_dash = f"取值以 - 开头时写成 {subject}=取值。" if message.endswith("expected one argument") else ""
        is_guess = reason.endswith("？")  # 已经说了怎么办
        raise UserError(subject, reason, starts_with_dash or ("" if is_guess else "用 --help 查看说明。"))


class _StoreOnce(argparse._StoreAction):
    """记下取值；给了两次就抛出 UserError，而不是悄悄丢掉前一次。"""

    def __call__(self, parser: ArgumentParser, namespace: argparse.Namespace, values, option_string=None):
        if self.dest in parser.given:
            same = f"（{'、'.join(self.option_strings)} 是同一个参数）" if len(self.option_strings) > 1 else ""
            advice = f"几个取值写在一个 {option_string} 后面。" if self.nargs == "+" else "只留一个。"
            raise UserError(option_string, f"给了两次{same}", advice)
        parser.given.add(self.dest)
        super().__call__(parser, namespace, values, option_string)


# argparse 自己产生的几句英文；取值的检查都在下面的函数里，本来就是中文
_TRANSLATIONS = (
    (r"expected one argument", "后面缺少取值"),
    (r"expected at least one argument", "后面至少要有一个取值"),
    (r"ignored explicit argument (.*)", r"不接受取值，收到 \1"),
    (r"the following arguments are required: (.*)", r"缺少必填参数 \1"),
    (r"not allowed with argument (.*)", r"不能与 \1 同时使用"),
)


def _invocation(action: argparse.Action, only_first: bool = False) -> str:
    """一个参数怎样写，如 --data_path 值 ...；取值一律写作“值”，位置参数有自己的名字。"""
    name = "值" if action.option_strings else action.metavar or action.dest
    values = "" if action.nargs == 0 else f"{name} ..." if action.nargs in ("+", "*") else name
    names = action.option_strings[: 1 if only_first else None] or [""]
    return ", ".join(f"{name} {values}".strip() for name in names)


def _two_columns(rows: list[tuple[str, str]], width: int) -> str:
    """左边是参数，右边是说明；左边太宽的自己占一行。"""
    left = min(MAX_LEFT, width // 2, max(display_width(name) for name, _ in rows))
    lines = []
    for name, text in rows:
        first, *others = wrap(text, width - left - 4)
        if display_width(name) > left:
            lines += [f"  {name}"]
            name = ""
        lines += [f"  {pad(name, left)}  {first}".rstrip(), *(" " * (left + 4) + line for line in others)]
    return "\n".join(lines) + "\n"


def _terminal_width() -> int:
    """排多少格宽；最右边的两格空着，有的终端写满一行会多空一行。"""
    return max(MIN_WIDTH, shutil.get_terminal_size().columns - 2)


def _number(convert: Callable[[str], float], kind: str, is_valid: Callable[[float], bool]) -> Callable[[str], float]:
    """做一个检查函数：文字变成数，不合要求时说明要求和收到的值。"""

    def parse(text: str):
        try:
            value = convert(text)
        except ValueError:
            value = None
        if value is None or not is_valid(value) or not math.isfinite(value):
            raise argparse.ArgumentTypeError(f"必须是 {kind}，收到 {_show(text)}")
        return value

    return parse


def _show(text: str) -> str:
    return text or '""'


def _limited_int(text: str) -> int:
    """再大的个数也当作 2^63-1：结果没有分别，torch 和迭代器却都只认到这里。"""
    return min(int(text), 2**63 - 1)


positive_int = _number(_limited_int, "≥1 的整数", lambda value: value >= 1)
non_negative_int = _number(_limited_int, "≥0 的整数", lambda value: value >= 0)
seed_int = _number(int, "0 到 2^63-1 的整数", lambda value: 0 <= value < 2**63)
positive_float = _number(float, ">0 的有限数", lambda value: value > 0)
non_negative_float = _number(float, "≥0 的有限数", lambda value: value >= 0)
probability = _number(float, "(0, 1] 内的数", lambda value: 0 < value <= 1)
fraction = _number(float, "[0, 1) 内的数", lambda value: 0 <= value < 1)


def one_of(*choices: str) -> Callable[[str], str]:
    """只接受列出的几个词；写错一两个字母的给出猜测。"""

    def parse(text: str) -> str:
        if text not in choices:
            close = difflib.get_close_matches(text, choices, n=1, cutoff=CLOSE_WORD)
            guess = f"，是否想写 {close[0]}？" if close else ""
            raise argparse.ArgumentTypeError(f"应为 {' | '.join(choices)} 之一，收到 {_show(text)}{guess}")
        return text

    return parse


LORA_PROJECTIONS = ("all", "attention", "feed_forward")  # 与 model/lora.py 的 PROJECTIONS 相同；那边要载入 torch
DEVICES = "auto | cpu | cuda | mps"
DTYPES = "auto | float32 | bfloat16"
PARALLEL_MODES = "auto | ddp | fsdp"
device_name = one_of(*DEVICES.split(" | "))
dtype_name = one_of(*DTYPES.split(" | "))
parallel_mode = one_of(*PARALLEL_MODES.split(" | "))


def text_encoding(name: str) -> str:
    """Python 认识的文本编码名。"""
    try:
        "".encode(name)
        return codecs.lookup(name).name
    except (LookupError, ValueError):
        raise argparse.ArgumentTypeError(f"不认识的编码 {_show(name)}，常用的有 utf-8、gb18030、big5") from None


def file_path(text: str) -> Path:
    """非空的文件路径。"""
    if not text or "\0" in text:
        raise argparse.ArgumentTypeError("不能是空的路径")
    return Path(text)


def plain_text(text: str) -> str:
    """任意非空文字。"""
    if not text:
        raise argparse.ArgumentTypeError("不能为空")
    return text


def visible_text(text: str) -> str:
    """看得见的文字，去掉首尾空白。"""
    return plain_text(text.strip())


def add_finetuning_arguments(parser: ArgumentParser, data_path: str, output_path: str, modes: tuple[str, ...]) -> None:
    """微调程序共有的参数：从哪个模型开始，数据和结果在哪里，训练哪些参数（名字见 model/trainable.py）。"""
    add = parser.add_argument
    add("--config", type=file_path, help="模型配置文件（默认用模型文件里记录的配置）")
    start = "预训练好的模型，也可以是 GPT-2 或书里的权重（默认 %(default)s）"
    add("--init_from", "--model_path", dest="model_path", type=file_path, default="model.pth", help=start)
    add("--data_path", type=file_path, default=data_path, help="微调数据（默认 %(default)s）")
    add("--output_path", type=file_path, default=output_path, help="微调好的模型存到哪里（默认 %(default)s）")
    add("--encoding", type=text_encoding, default="utf-8", help="数据的编码（默认 %(default)s）")
    add(
        "--trainable", type=one_of(*modes), default="all", help=f"训练哪些参数：{' | '.join(modes)}（默认 %(default)s）"
    )
    add(
        "--lora_rank",
        type=positive_int,
        default=8,
        help="低秩适配器的秩，只与 --trainable lora 同用（默认 %(default)s）",
    )
    add("--lora_alpha", type=positive_float, default=16.0, help="适配器的缩放，输出乘 alpha/rank（默认 %(default)s）")
    where = f"给哪些投影加适配器：{' | '.join(LORA_PROJECTIONS)}（默认 %(default)s）"
    add("--lora_projections", type=one_of(*LORA_PROJECTIONS), default="all", help=where)
    parser.only_with("--trainable lora", "--lora_rank", "--lora_alpha", "--lora_projections")


def command_line(arguments: list[str]) -> str:
    """可以照抄进终端的一行命令。"""
    join = subprocess.list2cmdline if sys.platform == "win32" else shlex.join
    return join(["python", *arguments])
