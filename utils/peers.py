"""别的进程还在不在：每个进程每秒报一次平安；有人没了或停住了，由一个活着的进程说出是谁，全体停下。

消息经 torchrun 的 TCPStore 传，不经过训练用的连接：那些连接断了、堵了，正是要查的事。道理见 docs/多机训练.md。
"""

import functools
import hashlib
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from types import FrameType

import torch.distributed as dist

from utils import processes
from utils.errors import EXIT_FAILED, RunError, stop_signals

BEAT_SECONDS = 1.0
SILENT_BEATS = 3  # 连着几次没有消息就算没了
STORE_SECONDS = 5.0  # TCPStore 这么久不答应，就是连不上了
MARGIN_SECONDS = 5.0  # 多等一会儿，让正在等的那个调用自己先报错
PROJECT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


@dataclass(frozen=True)
class Peer:
    """一个进程报来的情况。"""

    rank: int
    name: str
    is_gone: bool  # 没有消息
    has_left: bool  # 离开之前说过一声
    position: int  # 走到第几次交换
    place: str  # 正在做哪一行


class Watch(threading.Thread):
    """报平安的线程。主线程每次与别人交换之前调用 mark。"""

    def __init__(self):
        super().__init__(daemon=True)
        self._main = threading.main_thread().ident
        self._beat, self._position, self._moved_at = 0, 0, time.monotonic()
        self._is_resting, self._store = False, None
        self._lock = threading.Lock()

    def begin(self, patience: float, name: str) -> None:
        """开始报平安；patience 秒没有往前走，就看看是不是别人停住了。name 是这一批进程的名字。"""
        self._patience, self._store = patience, _connect(name)
        super().start()

    def store(self) -> dist.Store:
        """传消息的地方；还没有到齐时用公共的。"""
        return self._store or _connect("early")

    def mark(self) -> None:
        """又要与别人交换一次了。"""
        self._position += 1
        self._moved_at = time.monotonic()

    @contextmanager
    def resting(self) -> Iterator[None]:
        """里面的事做多久都可以。"""
        self._is_resting = True
        try:
            yield
        finally:
            self._is_resting = False
            self.mark()

    def run(self) -> None:
        try:
            while True:
                self._report()
                if self._store.check(["verdict"]) and processes.rank() in json.loads(self._store.get("verdict")):
                    os._exit(EXIT_FAILED)  # 别人都在等我，而我没有动
                waited = time.monotonic() - self._moved_at
                if waited > self._patience + MARGIN_SECONDS and not self._is_resting:
                    if text := self.explain():
                        _print_and_leave(text)
                    self._moved_at = time.monotonic()
                time.sleep(BEAT_SECONDS)
        except (RuntimeError, dist.DistError):  # torchrun 已经走了，或连不上；主线程自己会发现
            return

    def _report(self) -> None:
        self._beat += 1
        place = _place_of(sys._current_frames().get(self._main))
        news = {"beat": self._beat, "name": processes.name(), "position": self._position, "place": place}
        self._store.set(f"news {processes.rank()}", json.dumps(news))

    def leave(self) -> None:
        """说一声再走：别人便知道不是出了事。"""
        _in_time(lambda: self._store.set(f"left {processes.rank()}", "1"))

    def explain(self) -> str | None:
        """谁没了、谁停住了，写成一行；该由这个进程说才返回，已经有人说过、或看不出来，就是 None。"""
        with self._lock:
            found = _in_time(lambda: self._judge(_look(self._store)))
            if found is None:
                where = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
                advice = "看那台机器和网络；好了之后照原样启动，加 --resume。"
                return str(RunError(where, "联系不上，断网了，或 torchrun 已经退出", advice))
            return found or None

    def _judge(self, peers: list[Peer]) -> str:
        furthest = max(peer.position for peer in peers)
        gone = [peer for peer in peers if peer.is_gone and not peer.has_left]
        behind = [peer for peer in peers if not peer.is_gone and not peer.has_left and peer.position < furthest]
        culprits = gone or behind
        if any(peer.has_left for peer in peers) and not gone:
            return ""  # 离开的那个已经说过原因
        is_me = any(peer.rank == processes.rank() for peer in culprits)
        if not culprits or is_me or self._store.add("said lost", 1) > 1:
            return ""
        self._store.set("verdict", json.dumps([peer.rank for peer in culprits]))
        names = "、".join(peer.name for peer in culprits)
        reason = "没有消息了（被杀、停住，或断网）" if gone else f"停在 {culprits[0].place}，别的进程都在等它"
        return str(RunError(names, reason, "最近的检查点是完整的：照原样启动，加 --resume 继续。"))


def _look(store: dist.Store) -> list[Peer]:
    """隔几拍看两次，没有变的就是没有消息了。"""
    ranks = range(processes.world_size())

    def news() -> list[dict]:
        keys = [f"news {rank}" for rank in ranks]
        return [json.loads(store.get(key)) if store.check([key]) else {} for key in keys]

    before = news()
    time.sleep(SILENT_BEATS * BEAT_SECONDS)
    return [
        Peer(
            rank=rank,
            name=new.get("name", f"进程 {rank}"),
            is_gone=new == old and rank != processes.rank(),
            has_left=store.check([f"left {rank}"]),
            position=new.get("position", 0),
            place=new.get("place", "开头"),
        )
        for rank, old, new in zip(ranks, before, news(), strict=True)
    ]


def _in_time(act):
    """做 act()；连不上、太久，就是 None。"""
    results = []

    def attempt() -> None:
        try:
            results.append(act())
        except (RuntimeError, dist.DistError):
            pass

    thread = threading.Thread(target=attempt, daemon=True)
    thread.start()
    thread.join(SILENT_BEATS * BEAT_SECONDS + 2 * STORE_SECONDS)
    return results[0] if results else None


def _connect(name: str) -> dist.Store:
    """到 torchrun 的 TCPStore 另开一条连接。"""
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    store = dist.TCPStore(address, port, is_master=False, timeout=timedelta(seconds=STORE_SECONDS))
    return dist.PrefixStore(f"{name} peers", store)


def _place_of(frame: FrameType | None) -> str:
    """主线程正在做我们的哪一行。"""
    while frame and not frame.f_code.co_filename.startswith(PROJECT):
        frame = frame.f_back
    if frame is None:
        return "别处"
    return f"{os.path.relpath(frame.f_code.co_filename, PROJECT)} 第 {frame.f_lineno} 行"


def _print_and_leave(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
    os._exit(EXIT_FAILED)


@functools.cache
def watch() -> Watch:
    """这个进程的 Watch，只有一个。"""
    return Watch()


def is_lost(error: Exception) -> bool:
    """是不是因为别的进程没了或没有来：gloo 和 NCCL 的错误没有统一的类型。"""
    kinds = (dist.DistBackendError, dist.DistNetworkError, dist.DistStoreError)
    return isinstance(error, kinds) or "gloo" in str(error).lower()


def tell_lost() -> None:
    """与别的进程断了：查清是谁，由一个进程说出来。torchrun 这时会发来停止的信号，查完再走。"""
    for signum in stop_signals():
        signal.signal(signum, signal.SIG_IGN)
    if text := watch().explain():
        print(text, file=sys.stderr, flush=True)


def is_first_to_say(text: str) -> bool:
    """各个进程常有同样的错误（如写错的参数），只让最先说的那个说。"""
    key = hashlib.sha256(text.encode()).hexdigest()
    first = _in_time(lambda: watch().store().add(f"said {key}", 1) == 1)
    return processes.is_main() if first is None else first
