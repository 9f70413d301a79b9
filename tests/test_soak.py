"""tests/soak.py 的每一项都能跑，各做一小份，种子固定；做到底的结果见 docs/可靠性.md。"""

import subprocess
import sys

import pytest

from conftest import ROOT

pytest.importorskip("fcntl", reason="只用于 POSIX：要用 fork")

import soak  # noqa: E402

SHARES = {
    "随机 kill -9": 3,
    "每个磁盘操作之前 kill -9": 6,
    "随机 SIGTERM": 3,
    "每一处停下再续": 2,
    "改了再接着训练": 3,
    "翻转一位": 60,
    "截断": 60,
    "随机文件": 40,
    "恶意 pickle": 60,
    "改动的检查点": 60,
    "写坏的配置": 40,
    "乱拼的命令行": 40,
    "任意的语料": 30,
    "任意的开头": 200,
    "保存占的时间": 1,
}
MEASURES = {name: measure for name, _, measure in soak.measures()}


def test_every_measure_has_its_share():
    assert MEASURES.keys() == SHARES.keys()


@pytest.mark.parametrize("name", SHARES)
def test_share(name, tmp_path, one_thread):
    assert MEASURES[name](SHARES[name], 20_261_125, tmp_path)


def test_program_prints_a_table():
    command = [sys.executable, ROOT / "tests" / "soak.py", "截断", "--scale", "0.002"]
    done = subprocess.run(command, capture_output=True, encoding="utf-8", check=True)
    title, _, row = done.stdout.splitlines()
    assert title == "| 项目 | 个数 | 结果 | 秒 |" and row.startswith("| 截断 | 10 | 10 次，全部拒绝 | ")
