"""别的进程还在不在：每个进程每秒报一次平安；有人没了或停住了，由一个活着的进程说出是谁，全体停下。

消息经 torchrun 的 TCPStore 传，不经过训练用的连接：那些连接断了、堵了，正是要查的事。道理见 docs/多机训练.md。
"""

import contextlib
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
STILL_SECONDS = 20.0  # 自己停了这么久，才看是不是因为别人
LOOK_BEATS = 5  # 停着的时候，隔几拍看一次
SILENT_SECONDS = 10.0  # 看着的时候，这么久没有新消息就算没了
LOST_SECONDS = 3.0  # 同上，但连接已经断了，不必看那么久
STORE_SECONDS = 5.0  # TCPStore 这么久不答应，就是连不上了
STORE_ERRORS = (RuntimeError, dist.DistError)
ADVICE = "最近的检查点是完整的：照原样启动，加 --resume 继续。"
PROJECT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


@dataclass(frozen=True)
class Peer:
    """一个进程报来的情况。"""

    rank: int
    name: str
    silence: float  # 看着它这么多秒，没有新消息
    exit_code: int | None  # 离开之前说的；没有离开是 None
    position: int  # 走到第几次交换
    place: str  # 正在做哪一行


class Register:
    """名册：各个进程在 store 里报来的消息，和从什么时候起没有变过。"""

    def __init__(self, store: dist.Store):
        self._store = store
        self._seen: dict[int, tuple[str | None, float]] = {}  # {第几个: (消息, 什么时候第一次看到)}

    def look(self) -> list[Peer]:
        """看一遍；至少看两遍，才看得出谁没有新消息。"""
        return [self._peer(rank) for rank in range(processes.world_size())]

    def _peer(self, rank: int) -> Peer:
        news, now = self._value(f"news {rank}"), time.monotonic()
        if self._seen.get(rank, ("", 0.0))[0] != news:
            self._seen[rank] = news, now
        known, code = json.loads(news or "{}"), self._value(f"left {rank}")
        return Peer(
            rank=rank,
            name=known.get("name", f"进程 {rank}"),
            silence=now - self._seen[rank][1],
            exit_code=None if code is None else int(code),
            position=known.get("position", 0),
            place=known.get("place", "开头"),
        )

    def _value(self, key: str) -> str | None:
        return self._store.get(key).decode() if self._store.check([key]) else None


class Watch(threading.Thread):
    """报平安的线程。主线程每次与别人交换之前调用 mark。"""

    def __init__(self):
        super().__init__(daemon=True)
        self._main = threading.main_thread().ident
        self._beat, self._position, self._moved_at = 0, 0, time.monotonic()
        self._is_resting, self._is_busy, self._store = False, False, None
        self._lock = threading.Lock()

    def begin(self, patience: float, name: str) -> None:
        """开始报平安；patience 秒没有往前走，就看看是不是别人停住了。name 是这一批进程的名字。"""
        self._patience, self._name = patience, name
        self._store = _connect(name)
        self._register = Register(self._store)
        super().start()

    @property
    def has_begun(self) -> bool:
        return self._store is not None

    def store(self) -> dist.Store:
        """传消息的地方；还没有到齐时用公共的。"""
        return self._store or _connect("early")

    def mark(self) -> None:
        """又要与别人交换一次了。"""
        self._position += 1
        self._moved_at = time.monotonic()

    @contextmanager
    def resting(self) -> Iterator[None]:
        """里面是等别人做完一件事：他还在，就等多久都可以。"""
        self._is_resting = True
        try:
            yield
        finally:
            self._is_resting = False
            self.mark()

    @contextmanager
    def busy(self) -> Iterator[None]:
        """里面是自己在做一件不能打断的事，如保存：别人没了，也等做完再说。"""
        self._is_busy = True
        try:
            yield
        finally:
            self._is_busy = False

    def run(self) -> None:
        """每秒报一次平安；连不上就再连，一直连不上、主线程也停着，才离开。"""
        reached_at = time.monotonic()
        while True:
            try:
                self._beat_once()
                reached_at = time.monotonic()
            except STORE_ERRORS:
                self._reconnect()
                silence = time.monotonic() - reached_at
                if silence > self._limit(SILENT_SECONDS) and self._is_still():
                    _print_and_leave(_unreachable())
            time.sleep(BEAT_SECONDS)

    def _beat_once(self) -> None:
        self._beat += 1
        place = _place_of(sys._current_frames().get(self._main))
        news = {"beat": self._beat, "name": processes.name(), "position": self._position, "place": place}
        self._store.set(f"news {processes.rank()}", json.dumps(news))
        if self._store.check(["verdict"]) and processes.rank() in json.loads(self._store.get("verdict")):
            os._exit(EXIT_FAILED)  # 别人都在等我，而我没有动
        if self._beat % LOOK_BEATS == 0 and self._is_still():
            is_long = self._still_seconds() > self._patience and not self._is_resting
            text = self._judge(self._register.look(), self._limit(SILENT_SECONDS), is_long)
            if text is not None:
                _print_and_leave(text)

    def _reconnect(self) -> None:
        """超时的连接里可能还有迟到的回答，不能再用。"""
        with contextlib.suppress(*STORE_ERRORS):
            self._store = _connect(self._name)
            self._register = Register(self._store)

    def _still_seconds(self) -> float:
        """主线程有多久没有与别人交换了。"""
        return time.monotonic() - self._moved_at

    def _is_still(self) -> bool:
        return self._still_seconds() > self._limit(STILL_SECONDS) and not self._is_busy

    def _limit(self, seconds: float) -> float:
        return min(seconds, self._patience)

    def leave(self, exit_code: int) -> None:
        """说一声再走：别人便知道不是没了。"""
        _in_time(lambda: self._store.set(f"left {processes.rank()}", str(exit_code)))

    def explain(self) -> str:
        """连接断了：谁没了、谁停住了，写成一行；不该由这个进程说，就是空的。"""
        with self._lock:
            text = _in_time(self._look_twice)
            return _unreachable() if text is None else text

    def _look_twice(self) -> str:
        register = Register(self._store)
        register.look()
        time.sleep(LOST_SECONDS)
        text = self._judge(register.look(), LOST_SECONDS, is_long=True)
        if text is None:
            text = self._say_once(RunError("进程之间的连接", "断了，看不出是哪一个的", ADVICE))
        return text

    def _judge(self, peers: list[Peer], silence: float, is_long: bool) -> str | None:
        """谁的错，写成一行；别人会说、已经说过，就是空的，也该离开；没有谁出事是 None。

        silence 秒没有新消息的算没了；is_long 时，交换次数落后的也算停住了。
        """
        here = [peer for peer in peers if peer.exit_code is None]
        gone = [peer for peer in here if peer.silence >= silence and peer.rank != processes.rank()]
        if not gone and any(peer.exit_code for peer in peers):
            return ""  # 离开的那个已经说过原因
        furthest = max(peer.position for peer in peers)
        culprits = gone or [peer for peer in here if is_long and peer.position < furthest]
        if not culprits or any(peer.rank == processes.rank() for peer in culprits):
            return None
        reason = "没有消息了（被杀、停住，或断网）" if gone else f"停在 {culprits[0].place}，别的进程都在等它"
        self._store.set("verdict", json.dumps([peer.rank for peer in culprits]))
        return self._say_once(RunError("、".join(peer.name for peer in culprits), reason, ADVICE))

    def _say_once(self, error: RunError) -> str:
        return str(error) if self._store.add("said lost", 1) == 1 else ""


def _unreachable() -> str:
    where = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
    advice = "看那台机器和网络；好了之后照原样启动，加 --resume。"
    return str(RunError(where, "联系不上，断网了，或 torchrun 已经退出", advice))


def _in_time(act):
    """做 act()；连不上、太久，就是 None。"""
    results = []

    def attempt() -> None:
        with contextlib.suppress(*STORE_ERRORS):
            results.append(act())

    thread = threading.Thread(target=attempt, daemon=True)
    thread.start()
    thread.join(LOST_SECONDS + 2 * STORE_SECONDS)
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
    if text:
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
