"""utils/peers.py：谁没了、谁停住了，由谁来说。真的杀掉进程在 test_distributed.py。"""

import json

import pytest
import torch.distributed as dist

from utils import peers
from utils.peers import Peer, Watch


def peer(rank: int, **changes) -> Peer:
    values = {"is_gone": False, "has_left": False, "position": 9, "place": "utils/a.py 第 3 行"}
    return Peer(rank=rank, name=f"进程 {rank}", **{**values, **changes})


@pytest.fixture
def watch() -> Watch:
    """进程 0 的 Watch，消息存在自己的内存里。"""
    watch = Watch()
    watch._store = dist.HashStore()
    return watch


def test_process_without_news_is_named(watch):
    text = watch._judge([peer(0), peer(1, is_gone=True), peer(2)])
    assert text.startswith("错误：进程 1：没有消息了") and "--resume" in text
    assert json.loads(watch._store.get("verdict")) == [1]


def test_process_that_falls_behind_is_named_with_its_place(watch):
    text = watch._judge([peer(0), peer(1), peer(2, position=4)])
    assert text.startswith("错误：进程 2：停在 utils/a.py 第 3 行，别的进程都在等它")


def test_process_without_news_matters_more_than_one_behind(watch):
    assert "进程 2：没有消息" in watch._judge([peer(0), peer(1, position=1), peer(2, is_gone=True, position=9)])


def test_it_is_said_once(watch):
    state = [peer(0), peer(1, is_gone=True)]
    assert watch._judge(state) and watch._judge(state) == ""


def test_nothing_is_said_about_processes_that_said_why_they_left(watch):
    assert watch._judge([peer(0), peer(1, is_gone=True, has_left=True), peer(2)]) == ""


def test_the_culprit_does_not_accuse_itself(watch):
    assert watch._judge([peer(0, position=1), peer(1), peer(2)]) == ""


def test_nobody_is_named_when_all_move(watch):
    assert watch._judge([peer(0), peer(1)]) == ""


def test_news_that_do_not_change_mean_a_lost_process(watch, monkeypatch):
    monkeypatch.setattr(peers.processes, "world_size", lambda: 3)
    store = watch._store
    for rank in range(3):
        store.set(f"news {rank}", json.dumps({"beat": 1, "name": f"进程 {rank}", "position": 5, "place": "x"}))
    beats = iter(range(2, 9))

    def beat(_) -> None:
        store.set("news 1", json.dumps({"beat": next(beats), "name": "进程 1", "position": 5, "place": "x"}))

    monkeypatch.setattr(peers.time, "sleep", beat)
    store.set("left 2", "1")
    seen = peers._look(store)
    assert [(item.is_gone, item.has_left) for item in seen] == [(False, False), (False, False), (True, True)]


def test_place_is_the_innermost_line_of_ours():
    import sys

    assert peers._place_of(sys._getframe()).startswith("tests/test_peers.py 第 ")
    assert peers._place_of(None) == "别处"


def test_only_lost_connections_count_as_lost():
    assert peers.is_lost(RuntimeError("[../third_party/gloo/gloo/transport/tcp/pair.cc] Connection closed by peer"))
    assert peers.is_lost(dist.DistNetworkError("x"))
    assert not peers.is_lost(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
