"""utils/rendezvous.py：全部进程到齐才有名字，上一批留下的不算。"""

import json
import threading

import pytest
import torch.distributed as dist

from utils import rendezvous
from utils.errors import RunError


@pytest.fixture
def two(monkeypatch):
    """两个线程扮演两个进程；-> 让两边到齐，返回各自得到的名字。"""
    own = threading.local()
    monkeypatch.setattr(rendezvous.processes, "rank", lambda: own.rank)
    monkeypatch.setattr(rendezvous.processes, "is_main", lambda: own.rank == 0)
    monkeypatch.setattr(rendezvous.processes, "world_size", lambda: 2)
    monkeypatch.setattr(rendezvous, "POLL_SECONDS", 0.001)
    early = dist.HashStore()
    monkeypatch.setattr(rendezvous, "connect", lambda name: early)

    def meet(store: dist.Store, ranks=(0, 1), max_seconds: float = 30.0) -> dict[int, object]:
        names = {}

        def act(rank: int) -> None:
            own.rank = rank
            try:
                names[rank] = rendezvous.meet(store, max_seconds)
            except RunError as error:
                names[rank] = error

        threads = [threading.Thread(target=act, args=(rank,)) for rank in ranks]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
        return names

    return meet


def test_everyone_gets_the_same_name_and_each_start_a_new_one(two):
    store = dist.HashStore()
    first, second = two(store), two(store)
    assert first[0] == first[1] and second[0] == second[1] and first[0] != second[0]


def test_stale_confirmation_of_a_dead_process_does_not_count(two):
    """上一批的进程 1 留下了号和确认，这一批的没有来：进程 0 不能就这样开始。"""
    store = dist.HashStore()
    store.set("hello 1", "dead")
    store.set("seen 1", json.dumps(["old", "dead"]))
    (error,) = two(store, ranks=(0,), max_seconds=0.2).values()
    assert isinstance(error, RunError) and "没有来" in str(error)


def test_missing_process_is_named(two):
    (error,) = two(dist.HashStore(), ranks=(0,), max_seconds=0.2).values()
    assert "进程 1 没有来" in str(error)


def leave_early(rank: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rendezvous.processes, "rank", lambda: rank)
        patch.setattr(rendezvous.processes, "name", lambda: f"进程 {rank}")
        rendezvous.give_up()


def test_process_that_left_before_the_others_came_is_not_waited_for(two, monkeypatch):
    monkeypatch.setattr(rendezvous, "COMING_BACK_SECONDS", 0.1)
    leave_early(1)
    leave_early(0)  # 受连累的，不算
    (error,) = two(dist.HashStore(), ranks=(0,)).values()
    assert "错误：进程 1：还没有开始训练就离开了" in str(error)


def test_process_that_comes_back_is_welcome(two, monkeypatch):
    leave_early(1)
    names = two(dist.HashStore())
    assert names[0] == names[1] and not rendezvous.connect("early").check([rendezvous.GAVE_UP])
