"""utils/file_lock.py：两个进程不会同时写一处；进程一死，锁就没有了。"""

import errno
import os
import signal
import subprocess
import sys

import pytest

from conftest import ROOT
from utils.errors import UserError
from utils.file_lock import output_lock, try_lock

HOLDER = """
import sys, time
from pathlib import Path
from utils.file_lock import output_lock
with output_lock(Path(sys.argv[1])):
    print("锁住了", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def holder(tmp_path):
    """锁着 tmp_path/model.pth 的另一个进程；关掉它的输入，它就放开。"""
    command = [sys.executable, "-c", HOLDER, tmp_path / "model.pth"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONIOENCODING": "utf-8"}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    process = subprocess.Popen(command, env=environment, encoding="utf-8", **pipes)
    assert process.stdout.readline() == "锁住了\n"
    yield process
    process.kill()
    process.communicate()


def test_second_process_is_told_who_is_writing(holder, tmp_path):
    with (
        pytest.raises(UserError, match=rf"model.pth：另一个进程（PID {holder.pid}）正在写入"),
        output_lock(tmp_path / "model.pth"),
    ):
        pass
    with output_lock(tmp_path / "other.pth"):
        pass


def test_lock_ends_with_the_work_and_leaves_nothing(holder, tmp_path):
    holder.communicate("")
    assert list(tmp_path.iterdir()) == []
    with output_lock(tmp_path / "model.pth"):
        pass
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(os.name == "nt", reason="Windows 没有 SIGKILL")
def test_lock_of_a_killed_process_is_gone(holder, tmp_path):
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    assert (tmp_path / ".model.pth.lock").exists()
    with output_lock(tmp_path / "model.pth"):
        pass
    assert list(tmp_path.iterdir()) == []


def test_lock_is_released_after_an_error(tmp_path):
    with pytest.raises(ZeroDivisionError), output_lock(tmp_path / "model.pth"):
        raise ZeroDivisionError
    with output_lock(tmp_path / "model.pth"):
        pass


@pytest.mark.skipif(os.name == "nt", reason="Windows 没有 flock")
def test_file_system_without_locks_does_not_prevent_work(tmp_path, monkeypatch):
    def refuse(*args):
        raise OSError(errno.EOPNOTSUPP, "Operation not supported")

    monkeypatch.setattr("fcntl.flock", refuse)
    with (tmp_path / "a").open("wb") as file:
        assert try_lock(file)
    with output_lock(tmp_path / "model.pth"):
        pass
