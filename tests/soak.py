"""经得起摔打的证明：python tests/soak.py 把 docs/可靠性.md 里的每一项做到底，约一小时；--scale 0.01 先试一遍。

只用于 POSIX。任何一项失败都说明怎样重现。
"""

import argparse
import contextlib
import itertools
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="把各项做到底，打印一张表。")
    parser.add_argument("names", nargs="*", help="只做名字里有这些字的项")
    parser.add_argument("--scale", type=float, default=1.0, help="各项的个数乘上它（默认 1）")
    parser.add_argument("--seed", type=int, default=0, help="随机种子（默认 0）")
    return parser.parse_args()


def measures() -> Iterator[tuple[str, int, Callable[[int, int, Path], str]]]:
    """(名字, 个数, 函数)；函数(个数, 种子, 文件夹) 返回一行结果，失败时抛出 AssertionError。"""
    import soak_archives
    import soak_changes
    import soak_inputs
    import soak_kills
    import soak_resume
    import soak_saving

    modules = (soak_kills, soak_resume, soak_changes, soak_archives, soak_inputs, soak_saving)
    return itertools.chain.from_iterable(module.measures() for module in modules)


def main() -> None:
    args = parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"  # 小模型多线程反而慢
    sys.path.insert(0, str(ROOT))
    print("| 项目 | 个数 | 结果 | 秒 |\n| --- | --- | --- | --- |", flush=True)
    for name, full_count, measure in measures():
        if args.names and not any(part in name for part in args.names):
            continue
        count, begin = max(1, round(full_count * args.scale)), time.monotonic()
        with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(sys.stderr):
            result = measure(count, args.seed, Path(folder))
        print(f"| {name} | {count:,} | {result} | {time.monotonic() - begin:,.0f} |", flush=True)


if __name__ == "__main__":
    main()
