"""utils/peers.py：谁没了、谁停住了，由谁来说。真的杀掉进程在 test_distributed_faults.py。"""

import json
import sys

import pytest
import torch.distributed as dist

from utils import peers
from utils.peers import Peer, Register, Watch

GONE = {"silence": 30.0}


class Left(BaseException):
    """代替 os._exit：之后的事都不做了。"""


def peer(rank: int, **changes) -> Peer:
    values = {"silence": 0.0, "exit_code": None, "position": 9, "place": "utils/a.py 第 3 行"}
    return Peer(rank=rank, name=f"进程 {rank}", **{**values, **changes})


@pytest.fixture
def clock(monkeypatch) -> list[float]:
    """现在是第几秒；等待就是把它拨快。"""
    now = [1000.0]
    monkeypatch.setattr(peers.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(peers.time, "sleep", lambda seconds: now.__setitem__(0, now[0] + seconds))
    return now


@pytest.fixture
def watch(clock, monkeypatch) -> Watch:
    """三个进程里进程 0 的 Watch，消息存在自己的内存里，没有真的开始报平安。"""
    monkeypatch.setattr(peers.processes, "world_size", lambda: 3)
    watch = Watch()
    watch._patience, watch._store, watch._name = 600.0, dist.HashStore(), "test"
    watch._register = Register(watch._store)
    return watch


@pytest.fixture
def said(monkeypatch) -> list[str]:
    """离开之前说的。"""
    texts = []

    def leave(text: str) -> None:
        texts.append(text)
        raise Left

    monkeypatch.setattr(peers, "_print_and_leave", leave)
    return texts


def judge(watch: Watch, *others: Peer, is_long: bool = True) -> str | None:
    return watch._judge([peer(0), *others], silence=10.0, is_long=is_long)


def tell(watch: Watch, rank: int, beat: float, position: int = 0) -> None:
    news = {"beat": beat, "name": f"进程 {rank}", "exit_code": None, "position": position, "place": "x"}
    watch._store.set(f"news {rank}", json.dumps(news))


def live(watch: Watch, clock: list[float], seconds: int, silent: tuple[int, ...] = ()) -> None:
    """过 seconds 秒，每秒一拍；silent 的进程没有消息。"""
    for _ in range(seconds):
        for rank in {1, 2} - set(silent):
            tell(watch, rank, clock[0])
        watch._beat_once()
        clock[0] += 1


def test_process_without_news_is_named(watch):
    text = judge(watch, peer(1, **GONE), peer(2))
    assert text.startswith("错误：进程 1：没有消息了") and "--resume" in text
    assert json.loads(watch._store.get("verdict")) == [1]


def test_process_that_falls_behind_is_named_with_its_place(watch):
    text = judge(watch, peer(1), peer(2, position=4))
    assert text.startswith("错误：进程 2：停在 utils/a.py 第 3 行，别的进程等了 600 秒") and "--patience" in text
    assert judge(watch, peer(1), peer(2, position=4), is_long=False) is None


def test_process_without_news_matters_more_than_one_behind(watch):
    assert "进程 2：没有消息" in judge(watch, peer(1, position=1), peer(2, **GONE))


def test_it_is_said_once_and_the_others_leave_too(watch):
    assert judge(watch, peer(1, **GONE), peer(2))
    assert judge(watch, peer(1, **GONE), peer(2)) == ""


def test_processes_that_said_why_they_left_are_followed(watch):
    assert judge(watch, peer(1, exit_code=2, **GONE), peer(2)) == ""


def test_process_that_finished_is_not_missed(watch):
    assert judge(watch, peer(1, exit_code=0, **GONE), peer(2)) is None


def test_the_culprit_does_not_accuse_itself(watch):
    assert judge(watch, peer(1, position=12), peer(2, position=12)) is None


def test_nobody_is_named_when_all_move(watch):
    assert judge(watch, peer(1), peer(2)) is None


def test_dead_process_is_noticed_even_where_waiting_has_no_limit(watch, clock, said):
    with watch.resting():
        live(watch, clock, 500)
        assert said == []
        with pytest.raises(Left):
            live(watch, clock, 40, silent=(2,))
    assert len(said) == 1 and "进程 2：没有消息了" in said[0]


def test_busy_process_finishes_what_it_does_within_the_patience_of_the_user(watch, clock, said):
    live(watch, clock, 1)
    watch.mark()
    with watch.busy():
        live(watch, clock, 600, silent=(1,))
        assert said == []
        with pytest.raises(Left):
            live(watch, clock, 30, silent=(1,))
    assert len(said) == 1


def test_silence_does_not_matter_while_training_goes_on(watch, clock, said):
    for _ in range(100):
        watch.mark()
        live(watch, clock, 10, silent=(1,))
    assert said == []


def test_process_that_left_with_an_error_is_followed_from_its_last_news(watch, clock, said):
    watch.mark()
    live(watch, clock, 1)
    news = json.loads(watch._store.get("news 1"))
    watch._store.set("news 1", json.dumps({**news, "exit_code": 1}))
    with pytest.raises(Left):
        live(watch, clock, 40, silent=(1,))
    assert said == [""]


def test_leaving_is_part_of_the_last_news(watch, monkeypatch):
    monkeypatch.setattr(peers, "_in_time", lambda act: act())
    watch.leave(3)
    watch._report()  # 报平安的线程晚了一步，也不会把它盖掉
    assert json.loads(watch._store.get("news 0"))["exit_code"] == 3


def test_hanging_process_is_named_after_the_patience_of_the_user(watch, clock, said):
    watch.mark()
    live(watch, clock, 590)
    assert said == []
    with pytest.raises(Left):
        live(watch, clock, 30)
    assert "进程 1、进程 2：停在" in said[0]


def test_unreachable_store_is_named_when_training_has_stopped_too(watch, clock, said, monkeypatch):
    monkeypatch.setenv("MASTER_ADDR", "10.0.0.1")
    monkeypatch.setenv("MASTER_PORT", "29400")

    def refuse(*args) -> None:
        raise dist.DistNetworkError("refused")

    monkeypatch.setattr(peers, "connect", refuse)
    watch._store = type("Store", (), {"set": refuse})()
    with pytest.raises(Left):
        watch.run()
    assert said[0].startswith("错误：10.0.0.1:29400：联系不上") and clock[0] > 1000 + peers.STILL_SECONDS


def test_lost_connection_without_culprit_is_still_told(watch, clock, monkeypatch):
    def sleep(seconds: float) -> None:
        clock[0] += seconds
        for rank in range(3):
            tell(watch, rank, clock[0])

    monkeypatch.setattr(peers.time, "sleep", sleep)
    monkeypatch.setattr(peers, "_in_time", lambda act: act())
    assert watch.find_gone() == ""
    assert "看不出是哪一个的" in watch.explain() and watch.explain() == ""


def test_lost_process_is_found_soon_after_the_connection_broke(watch, clock, monkeypatch):
    for rank in range(3):
        tell(watch, rank, 1)

    def sleep(seconds: float) -> None:
        clock[0] += seconds
        tell(watch, 2, clock[0])

    monkeypatch.setattr(peers.time, "sleep", sleep)
    assert "进程 1：没有消息了" in watch._look_twice()


def test_place_is_the_innermost_line_of_ours():
    assert peers._place_of(sys._getframe()).startswith("tests/test_peers.py 第 ")
    assert peers._place_of(None) == "别处"


def test_only_lost_connections_count_as_lost():
    assert peers.is_lost(RuntimeError("[../third_party/gloo/gloo/transport/tcp/pair.cc] Connection closed by peer"))
    assert peers.is_lost(dist.DistNetworkError("x"))
    assert not peers.is_lost(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
