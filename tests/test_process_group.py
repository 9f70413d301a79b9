"""utils/process_group.py：离开时由谁来说、说什么。真的杀掉进程在 test_distributed_faults.py。"""

import pytest
import torch
import torch.distributed as dist

from utils import process_group
from utils.errors import RunError, Terminated, UserError
from utils.process_group import is_lost, leave, start

CONNECTION = RuntimeError("[../third_party/gloo/gloo/transport/tcp/pair.cc] Connection closed by peer")


class Left(BaseException):
    """代替 os._exit：之后的事都不做了。"""


@pytest.fixture
def store() -> dist.Store:
    """三个进程的名字；消息存在自己的内存里。"""
    store = dist.HashStore()
    for rank in range(3):
        store.set(f"name {rank}", f"进程 {rank}")
    return store


@pytest.fixture
def leave_as(store, monkeypatch, capsys):
    """三个进程里的第 rank 个离开；-> 它说的话。"""
    monkeypatch.setattr("utils.processes.world_size", lambda: 3)
    monkeypatch.setattr("utils.processes.spans_machines", lambda: False)
    monkeypatch.setattr(process_group, "NOTICE_SECONDS", 0.2)
    monkeypatch.setattr(process_group, "ignore_stop_signals", lambda: None)

    def exit_now(code: int) -> None:
        raise Left

    monkeypatch.setattr(process_group.os, "_exit", exit_now)

    def act(rank: int, error: BaseException, text: str = "") -> str:
        monkeypatch.setattr("utils.processes.rank", lambda: rank)
        with pytest.raises(Left):
            leave(store, error, 1, text)
        return capsys.readouterr().err

    return act


def test_only_lost_connections_count_as_lost():
    assert is_lost(CONNECTION) and is_lost(dist.DistNetworkError("x"))
    assert not is_lost(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))


def test_main_process_names_the_one_that_left_nothing(store, leave_as):
    store.set("left 2", "lost")
    assert leave_as(0, CONNECTION).startswith("错误：进程 1：没有消息了")
    assert leave_as(2, CONNECTION) == ""  # 进程 0 已经说过


def test_another_process_tells_when_the_main_one_is_gone(store, leave_as):
    store.set("left 1", "lost")
    assert leave_as(2, CONNECTION).startswith("错误：进程 0：没有消息了")
    assert leave_as(1, CONNECTION) == ""


def test_lost_connection_without_culprit_is_still_told(store, leave_as):
    for rank in (1, 2):
        store.set(f"left {rank}", "lost")
    assert "看不出是哪一个的" in leave_as(0, CONNECTION)


def test_nobody_accuses_those_that_were_told_to_stop(store, leave_as):
    store.set("left 1", "signal")
    store.set("left 2", "lost")
    assert leave_as(0, CONNECTION) == ""


def test_signal_because_of_a_lost_process_names_it(store, leave_as):
    store.set("left 2", "signal")
    assert leave_as(0, Terminated()).startswith("错误：进程 1：没有消息了")


def test_reason_told_by_one_process_silences_the_others(leave_as):
    reason = RunError("磁盘", "满了", "腾出空间。")
    assert leave_as(1, reason, str(reason)) == f"{reason}\n"
    assert leave_as(0, CONNECTION) == ""  # 进程 2 没有留下什么，也不算没了：原因已经知道


def test_same_error_is_told_once(leave_as):
    error = UserError("--a", "不对", "换一个。")
    assert [leave_as(rank, error, str(error)) for rank in (2, 0, 1)] == [f"{error}\n", "", ""]


def test_restarts_of_several_machines_need_a_new_store_each_time(monkeypatch):
    variables = {"RANK": 0, "WORLD_SIZE": 2, "LOCAL_RANK": 0, "LOCAL_WORLD_SIZE": 1, "MASTER_ADDR": "127.0.0.1"}
    variables |= {"MASTER_PORT": 1, "TORCHELASTIC_USE_AGENT_STORE": "True", "TORCHELASTIC_MAX_RESTARTS": 2}
    for name, value in variables.items():
        monkeypatch.setenv(name, str(value))
    with pytest.raises(UserError, match="TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1"):
        start(torch.device("cpu"), patience=1)
