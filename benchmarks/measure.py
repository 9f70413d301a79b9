"""怎样量：每个对象在自己的进程里量，几个对象轮流，一轮又一轮。"""

import importlib
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.machine import peak_bytes
from utils.console import hint
from utils.errors import RunError

ROOT = Path(__file__).resolve().parent.parent


def alternate(variants: dict[str, Callable[[], Any]], rounds: int) -> dict[str, list[Any]]:
    """A B A B …：机器一时忙一时闲，对谁都一样。-> {对象: 各轮的结果}"""
    results = {name: [] for name in variants}
    for number in range(1, rounds + 1):
        for name, measure in variants.items():
            hint(f"第 {number}/{rounds} 轮：{name}")
            results[name].append(measure())
    return results


def in_new_process(function: Callable[..., dict], **options: Any) -> dict:
    """在新的进程里调用某个模块的函数，结果里添上那个进程占用内存的最高点。"""
    command = [sys.executable, "-m", "benchmarks.measure", function.__module__, function.__name__]
    done = subprocess.run(command, cwd=ROOT, input=json.dumps(options), capture_output=True, encoding="utf-8")
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["没有说明原因，多半是内存不够"])[-1]
        subject, reason = f"{function.__module__} {options}", f"以退出码 {done.returncode} 结束（{reason}）"
        raise RunError(subject, reason, "原因在它自己的输出里，改好再量一遍。")
    return json.loads(done.stdout.splitlines()[-1])


def _answer() -> None:
    """新进程的一边。"""
    module, name = sys.argv[1:]
    result = getattr(importlib.import_module(module), name)(**json.load(sys.stdin))
    print(json.dumps({**result, "peak_bytes": peak_bytes()}))


def pooled(results: list[dict], key: str) -> list[float]:
    """各轮结果里的同一项合在一起；每轮可以是一个数或一串数。"""
    return [value for result in results for value in (result[key] if isinstance(result[key], list) else [result[key]])]


if __name__ == "__main__":
    _answer()
