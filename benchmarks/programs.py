"""像用户那样运行项目的程序，只看它的输出、文件和用了多久。"""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from benchmarks.measure import ROOT
from utils.errors import RunError
from utils.run_files import RunFiles

ENVIRONMENT = {**os.environ, "PYTHONIOENCODING": "utf-8"}


def run_program(program: str, *arguments: object) -> tuple[float, str]:
    """-> (整个命令的秒数, 全部输出)；没有成功就抛出 RunError。"""
    command = [sys.executable, ROOT / program, *arguments]
    begin = time.perf_counter()
    done = subprocess.run(list(map(str, command)), capture_output=True, encoding="utf-8", env=ENVIRONMENT)
    seconds = time.perf_counter() - begin
    check(command, done.returncode, done.stderr)
    return seconds, done.stdout


def pretrain(*arguments: object, inspect: Callable[[Path], object] = lambda model_path: None) -> dict:
    """运行 pretrain.py，再让 inspect 看看模型文件。

    -> {"seconds": 整个命令的秒数, "result": 最后的结果, "records": 日志的各行, "inspected": inspect 的结果}
    """
    with tempfile.TemporaryDirectory() as folder:
        files = RunFiles(Path(folder) / "model.pth")
        seconds, _ = run_program("pretrain.py", "--model_path", files.model, *arguments)
        records = list(map(json.loads, files.log.read_text(encoding="utf-8").splitlines()))
        result, inspected = json.loads(files.result.read_bytes()), inspect(files.model)
    return {"seconds": seconds, "result": result, "records": records, "inspected": inspected}


def seconds_to_output(command: list[object], after: bytes = b"") -> float:
    """从启动到标准输出上出现 after 之后的第一个字节。"""
    begin = time.perf_counter()
    process = subprocess.Popen(list(map(str, command)), stdout=subprocess.PIPE, bufsize=0, env=ENVIRONMENT)
    with process:
        output = b""
        while len(output) <= len(after):
            piece = process.stdout.read(4096)
            if not piece:
                break
            output += piece
        seconds = time.perf_counter() - begin
        while process.stdout.read(4096):
            pass
    check(command, process.returncode or not output.startswith(after), output.decode("utf-8", "replace"))
    return seconds


def check(command: list[object], failed: int, output: str) -> None:
    if failed:
        reason = f"没有成功（{(output.strip().splitlines() or [''])[-1]}）"
        raise RunError(" ".join(map(str, command[1:])), reason, "单独运行这条命令，看全部输出。")
