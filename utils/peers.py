"""别的进程还在不在：每个进程每秒报一次平安；有人没了或停住了，由一个活着的进程说出是谁，全体停下。

消息经 torchrun 的 TCPStore 传，不经过训练用的连接：那些连接断了、堵了，正是要查的事。道理见 docs/多机训练.md。
"""

import contextlib
import functools
import hashlib
import json
import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

import torch.distributed as dist

from utils import processes
from utils.errors import EXIT_FAILED, RunError
from utils.rendezvous import CONNECT_SECONDS, connect, give_up

BEAT_SECONDS = 1.0
STILL_SECONDS = 10.0  # 自己停了这么久，才看是不是因为别人；torchrun 发现有谁没了，30 秒后就杀掉其余的，要赶在它前面
LOOK_BEATS = 5  # 停着的时候，隔几拍看一次
LOOKERS = 2  # 每台机器上只有前几个进程看：TCPStore 只有一个线程
SILENT_SECONDS = 10.0  # 看着的时候，这么久没有新消息就算没了
LOST_SECONDS = 3.0  # 同上，但连接已经断了，不必看那么久
STORE_ERRORS = (RuntimeError, dist.DistError, OSError)
RESUME = "最近的检查点是完整的：照原样启动，加 --resume 继续"
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
        keys = [f"news {rank}" for rank in range(processes.world_size())]
        if not self._store.check(keys):  # 刚到齐，还有没说过话的
            return []
        return [self._peer(rank, value.decode()) for rank, value in enumerate(self._store.multi_get(keys))]

    def _peer(self, rank: int, news: str) -> Peer:
        now = time.monotonic()
        if self._seen.get(rank, ("", 0.0))[0] != news:
            self._seen[rank] = news, now
        told = json.loads(news)
        del told["beat"]
        return Peer(rank=rank, silence=now - self._seen[rank][1], **told)


class Watch(threading.Thread):
    """报平安的线程。主线程每次与别人交换之前调用 mark。"""

    def __init__(self):
        super().__init__(daemon=True)
        self._main = threading.main_thread().ident
        self._beat, self._position, self._moved_at = 0, 0, time.monotonic()
        self._is_resting, self._is_busy, self._exit_code = False, False, None
        self._store = None
        self.is_reachable = True  # torchrun 的 TCPStore 连不连得上；连不上过，就不再等它
        self._explaining, self._reporting = threading.Lock(), threading.Lock()

    def begin(self, patience: float, name: str) -> None:
        """开始报平安；patience 秒没有往前走，就看看是不是别人停住了。name 是这一批进程的名字。"""
        self._patience, self._name = patience, name
        self._store = connect(name)
        self._register = Register(self._store)
        self._report()
        super().start()

    @property
    def has_begun(self) -> bool:
        return self._store is not None

    def store(self) -> dist.Store:
        """传消息的地方；还没有到齐时用公共的。"""
        return self._store or connect("early")

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
            self.mark()
        finally:
            self._is_resting = False

    @contextmanager
    def busy(self) -> Iterator[None]:
        """里面在保存：别人没了，也先做完，只要不超过 patience。"""
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
        self._report()
        if self._store.check(["verdict"]) and processes.rank() in json.loads(self._store.get("verdict")):
            os._exit(EXIT_FAILED)  # 别人都在等我，而我没有动
        if self._beat % LOOK_BEATS == 0 and processes.local_rank() < LOOKERS and self._is_still():
            is_long = self._still_seconds() > self._patience and not self._is_resting
            text = self._judge(self._register.look(), self._limit(SILENT_SECONDS), is_long)
            if text is not None:
                _print_and_leave(text)

    def _report(self) -> None:
        with self._reporting:  # 离开时说的不能被晚到的一拍盖掉
            self._beat += 1
            place = _place_of(sys._current_frames().get(self._main))
            news = {"beat": self._beat, "name": processes.name(), "exit_code": self._exit_code}
            news |= {"position": self._position, "place": place}
            self._store.set(f"news {processes.rank()}", json.dumps(news))

    def _reconnect(self) -> None:
        """超时的连接里可能还有迟到的回答，不能再用。"""
        with contextlib.suppress(*STORE_ERRORS):
            self._store = connect(self._name)
            self._register = Register(self._store)

    def _still_seconds(self) -> float:
        """主线程有多久没有与别人交换了。"""
        return time.monotonic() - self._moved_at

    def _is_still(self) -> bool:
        patience = self._patience if self._is_busy else self._limit(STILL_SECONDS)
        return self._still_seconds() > patience

    def _limit(self, seconds: float) -> float:
        return min(seconds, self._patience)

    def leave(self, exit_code: int) -> None:
        """说一声再走：别人便知道不是没了。"""
        self._exit_code = exit_code
        _in_time(self._report)

    def explain(self) -> str:
        """连接断了：谁没了、谁停住了，写成一行；不该由这个进程说，就是空的。"""
        unknown = RunError("进程之间的连接", "断了，看不出是哪一个的", f"{RESUME}。")
        with self._explaining:
            text = _in_time(lambda: self._say_once(unknown) if (found := self._look_twice()) is None else found)
            return _unreachable() if text is None else text

    def find_gone(self) -> str:
        """有谁没了，写成一行；都在，或不该由这个进程说，就是空的。"""
        with self._explaining:
            return _in_time(lambda: self._look_twice(is_long=False)) or ""

    def _look_twice(self, is_long: bool = True) -> str | None:
        register = Register(self._store)
        register.look()
        time.sleep(LOST_SECONDS)
        return self._judge(register.look(), LOST_SECONDS, is_long)

    def _judge(self, peers: list[Peer], silence: float, is_long: bool) -> str | None:
        """谁的错，写成一行；别人会说、已经说过，就是空的，也该离开；没有谁出事是 None。

        silence 秒没有新消息的算没了；is_long 时，交换次数落后的也算停住了。
        """
        here = [peer for peer in peers if peer.exit_code is None]
        gone = [peer for peer in here if peer.silence >= silence and peer.rank != processes.rank()]
        if not gone and any(peer.exit_code for peer in peers):
            return ""  # 离开的那个已经说过原因
        furthest = max((peer.position for peer in peers), default=0)
        culprits = gone or [peer for peer in here if is_long and peer.position < furthest]
        if not culprits or any(peer.rank == processes.rank() for peer in culprits):
            return None
        names = "、".join(peer.name for peer in culprits)
        if gone:
            error = RunError(names, "没有消息了（被杀、停住，或断网）", f"{RESUME}。")
        else:
            reason = f"停在 {culprits[0].place}，别的进程等了 {self._patience:g} 秒"
            error = RunError(names, reason, f"{RESUME}；如果只是慢，如保存，加大 --patience。")
        self._store.set("verdict", json.dumps([peer.rank for peer in culprits]))
        return self._say_once(error)

    def _say_once(self, error: RunError) -> str:
        return str(error) if self._store.add("said lost", 1) == 1 else ""


def _unreachable() -> str:
    """连不上 TCPStore，问不到谁先说：每台机器由第一个进程说，其余的是空的。"""
    if processes.local_rank():
        return ""
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
    thread.join(LOST_SECONDS + 2 * CONNECT_SECONDS)
    return results[0] if results else None


def _place_of(frame: FrameType | None) -> str:
    """主线程正在做我们的哪一行。"""
    while frame and not frame.f_code.co_filename.startswith(PROJECT):
        frame = frame.f_back
    if frame is None:
        return "别处"
    return f"{os.path.relpath(frame.f_code.co_filename, PROJECT)} 第 {frame.f_lineno} 行"


def _print_and_leave(text: str) -> None:
    _say(text)
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
    """与别的进程断了：查清是谁，由一个进程说出来。"""
    _say(watch().explain())


def tell_gone() -> None:
    """要停下，多半是因为有谁没了，torchrun 才发来信号：是的话说出来。"""
    if watch().has_begun:
        _say(watch().find_gone())


def _say(text: str) -> None:
    if text:
        print(text, file=sys.stderr, flush=True)


def is_first_to_say(text: str) -> bool:
    """各个进程常有同样的错误（如写错的参数），只让最先说的那个说；问不到是不是最先，就说。"""
    key = hashlib.sha256(text.encode()).hexdigest()
    first = _in_time(lambda: watch().store().add(f"said {key}", 1) == 1) if watch().is_reachable else None
    watch().is_reachable = first is not None
    return first is not False


def leave(exit_code: int) -> None:
    """离开之前告诉别的进程；出错时还没有到齐，也留下一句。"""
    if watch().has_begun:
        watch().leave(exit_code)
    elif exit_code and watch().is_reachable:
        _in_time(give_up)
