"""检查 model/：每个模块与 torch 的参照比较输出和梯度，不同时猜是哪里写错了。

python verify.py
python verify.py attention layer_norm
"""

import argparse
import importlib.util
import time
from typing import TYPE_CHECKING

from utils import cli
from utils.console import display_width, pad, wrap
from utils.errors import RunError, run_program

if TYPE_CHECKING:
    from checks.comparison import Result

WIDTH = 80
COLUMNS = (16, 32, 11, 11)  # 模块、检查、两个差；最后一列是结果，不用补齐
LEFT_OUT = "没有装 transformers，略去与它的 GPT-2 的比较。"


def parse_args() -> argparse.Namespace:
    from checks.runner import MODULES

    parser = cli.ArgumentParser("把 model/ 的每个模块与参照比较，不同时猜是哪里写错了。")
    names = f"只检查这几个（默认全部）：{'、'.join(MODULES)}"
    parser.add_argument("modules", metavar="模块", nargs="*", type=cli.one_of(*MODULES), help=names)
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    from checks.runner import MODULES, run_checks

    names = tuple(name for name in MODULES if name in (args.modules or MODULES))
    started, results = time.perf_counter(), []
    print(row("模块", "检查", "输出最大差", "梯度最大差", "结果"))
    for name, found in run_checks(names):
        for result in found:
            show(name, result)
        results += found
    if "language_model" in names and importlib.util.find_spec("transformers") is None:
        print(LEFT_OUT)
    failed = sum(not result.passed for result in results)
    print(f"{len(results)} 项检查，{len(results) - failed} 项相同，用时 {time.perf_counter() - started:.1f} 秒")
    if failed:
        raise RunError("model/", f"有 {failed} 项与参照不同", "先改最上面的一处，再运行一遍。")


def show(name: str, result: "Result") -> None:
    """一项检查占一行；不同时下面再写原因和猜测。"""
    differences = [as_text(value) for value in (result.output_difference, result.gradient_difference)]
    print(row(name, result.name, *differences, "相同" if result.passed else "不同"), flush=True)
    for label, text in (("", result.problem), ("", result.trace), ("猜测：", result.guess)):
        for line in wrap(f"{label}{text}", WIDTH - 4) if text else ():
            print(f"    {line}")


def as_text(difference: float | None) -> str:
    if difference is None:
        return "-"
    return f"{difference:.1e}" if difference else "0"


def row(*cells: str) -> str:
    """前几格补空格对齐，差靠右；汉字占两格。"""
    padded = [pad(cell, size) for cell, size in zip(cells[:2], COLUMNS, strict=False)]
    numbers = [" " * (size - display_width(cell)) + cell for cell, size in zip(cells[2:4], COLUMNS[2:], strict=True)]
    return "".join(padded + numbers) + "  " + cells[4]


if __name__ == "__main__":
    run_program(main)
