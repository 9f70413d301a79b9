"""几个进程连成一组，和离开这一组：连接、时限、谁没了，都用 torch.distributed 的。道理见 docs/多机训练.md。"""

import contextlib
import functools
import hashlib
import os
import sys
import threading
import time
from collections.abc import Callable
from datetime import timedelta

import psutil
import torch
import torch.distributed as dist
from torch.distributed.elastic.multiprocessing.errors import get_error_handler

from utils import processes
from utils.errors import RunError, Terminated, UserError, ignore_stop_signals, on_leaving

NOTICE_SECONDS, POLL_SECONDS = 5.0, 0.1  # 断了之后，等各个进程留下一句话；隔多久看一次
STORE_SECONDS = 15.0  # store 断了网不会自己超时，最多问这么久
WAITING = timedelta(hours=24)  # 等别的进程做完一件事（检查、分词）的时限
STORE_ERRORS = (RuntimeError, OSError)  # dist.DistError 是 RuntimeError 的一种
RESUME = "最近的检查点是完整的：照原样启动，加 --resume 继续。"
FRESH_STORE = "TORCH_DISABLE_SHARE_RDZV_TCP_STORE"


def is_on() -> bool:
    """是不是有几个进程在一起训练。"""
    return dist.is_available() and dist.is_initialized()


def start(device: torch.device, patience: float) -> None:
    """与其他进程连成一组；patience 是等别的进程最多几秒。CPU 上的张量走 gloo，显卡上的走 NCCL。"""
    if is_on():
        return
    _check_fresh_store()
    if not processes.spans_machines():  # 一台机器之内只用回环地址，别的机器连不上
        for variable in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"):
            os.environ.setdefault(variable, _loopback())
    limit, backend = timedelta(seconds=patience), "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    store = None
    try:
        store, rank, world_size = next(dist.rendezvous("env://", timeout=limit))
        if _is_store_shared():
            store = dist.PrefixStore(f"attempt {os.environ['TORCHELASTIC_RESTART_COUNT']}", store)
        on_leaving(functools.partial(leave, store))
        store.set(f"name {rank}", processes.name())
        _check_same_device(store, device.type)
        dist.init_process_group(backend, store=store, rank=rank, world_size=world_size, timeout=limit)
        waiting_group()
    except STORE_ERRORS as error:
        if isinstance(error, RuntimeError) and not is_lost(error):
            raise
        raise _describe_failed_start(error, store, patience) from None


def _is_store_shared() -> bool:
    """torchrun 重新启动进程时，是不是沿用原来的 TCPStore，里面还有上一批进程的地址。"""
    return os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"


def _check_fresh_store() -> None:
    """几台机器上的 torchrun 数的重启次数不一样，靠它分不出是哪一批，要请它们每次换一个 TCPStore。"""
    if processes.spans_machines() and _is_store_shared() and int(os.environ.get("TORCHELASTIC_MAX_RESTARTS", 0)):
        advice = f"各台机器上都先设环境变量 {FRESH_STORE}=1，再启动 torchrun。"
        raise UserError("--max_restarts", "几台机器一起重新启动，要每次换一个 TCPStore", advice)


def _check_same_device(store: dist.Store, kind: str) -> None:
    """连接的种类随设备而定，不同就连不起来，所以先比较。"""
    store.set(f"device {processes.rank()}", kind)
    kinds = [store.get(f"device {rank}").decode() for rank in range(processes.world_size())]  # get 会等
    other = next((rank for rank, found in enumerate(kinds) if found != kinds[0]), None)
    if other is not None:
        reason = f"各个进程不一致：进程 0 上是 {kinds[0]}，进程 {other} 上是 {kinds[other]}"
        raise UserError("--device", reason, "各台机器用同样的设备，或都加 --device cpu。")


def _describe_failed_start(error: Exception, store: dist.Store | None, patience: float) -> UserError:
    address = _address()
    if "EADDRINUSE" in str(error):
        return UserError(address, "端口已被占用", "换一个：torchrun --master_port，或设 MASTER_PORT。")
    if store and (missing := _in_time(lambda: _without(store, "name"))):
        reason = f"等了 {patience:g} 秒，进程 {'、'.join(map(str, missing))} 没有来"
        return RunError("torchrun", reason, "看各台机器上的 torchrun 是不是都在运行。")
    advice = "检查地址、端口和防火墙，各台机器的 torchrun 参数要一致；有几块网卡就设 GLOO_SOCKET_IFNAME。"
    return UserError(address, "连不上", advice)


def _loopback() -> str:
    """回环网卡的名字：Linux 上是 lo，macOS 上是 lo0。"""
    cards = psutil.net_if_addrs().items()
    return next((name for name, addresses in cards if any(a.address == "127.0.0.1" for a in addresses)), "lo")


@functools.cache
def waiting_group() -> dist.ProcessGroup:
    """与默认的一组是同样的进程，时限却很长：等一个进程检查、分词用。"""
    return dist.new_group(backend="gloo", timeout=WAITING)


def is_lost(error: BaseException) -> bool:
    """是不是因为别的进程没了、停住了或没有来：gloo 和 NCCL 的错误没有统一的类型。"""
    kinds = (dist.DistBackendError, dist.DistNetworkError, dist.DistStoreError)
    return isinstance(error, kinds) or isinstance(error, RuntimeError) and "gloo" in str(error).lower()


def leave(store: dist.Store, error: BaseException | None, code: int, text: str) -> None:
    """这个进程以 code 结束，不返回。text 是自己要说的，几个进程要说同样的话时只说一遍；别的进程没了，就说出是谁。

    先断开自己的连接，还在等它的便也都到这里来；各在 store 里留下一句，没有留下的就是没了，或停住了。
    """
    if code:
        ignore_stop_signals()  # 有一个先走，torchrun 就给其余的发信号
        kind = "signal" if isinstance(error, (Terminated, KeyboardInterrupt)) else "lost" if is_lost(error) else "own"
        _disconnect()
        _in_time(lambda: store.set(f"left {processes.rank()}", kind))
        if kind == "own":
            _tell_own(store, error, text)
            _in_time(lambda: _wait_for_notes(store))
        else:
            gone = _in_time(lambda: _describe_gone(store))
            _tell(_unreachable() if gone is None else gone)
    sys.stderr.flush()
    os._exit(code)  # 断了的连接会让解释器退不出去


def _disconnect() -> None:
    if is_on():
        dist.group.WORLD.abort()
        waiting_group().abort()


def _tell_own(store: dist.Store, error: BaseException, text: str) -> None:
    key = f"said {hashlib.sha256(text.encode()).hexdigest()}"
    if _in_time(lambda: store.add(key, 1)) in (1, None):  # 问不到是不是最先，也说
        _tell(f"{text}（{processes.name()}）" if processes.spans_machines() else text)
    if not isinstance(error, UserError):  # 没有料到的错，torchrun 的报告里也写上
        try:
            raise error
        except type(error):
            get_error_handler().record_exception(error)


def _wait_for_notes(store: dist.Store) -> list[int]:
    """等各个进程留下一句，返回没有留下的。进程 0 等全部，其余的只等它：store 可能就在它那里，它要最后走。"""
    awaited = set(range(processes.world_size()) if processes.is_main() else [0])
    end = time.monotonic() + NOTICE_SECONDS
    while awaited.intersection(_without(store, "left")) and time.monotonic() < end:
        time.sleep(POLL_SECONDS)
    return _without(store, "left")


def _describe_gone(store: dist.Store) -> str:
    """谁没了，写成一行；不该由这个进程说，或没有谁没了，就是空的。"""
    gone = _wait_for_notes(store)
    if not processes.is_main() and 0 not in gone:
        return ""  # 由进程 0 说
    kinds = {store.get(f"left {rank}") for rank in range(processes.world_size()) if rank not in gone}
    is_explained = b"own" in kinds or not gone and b"signal" in kinds
    if is_explained or store.add("said gone", 1) > 1:
        return ""
    if not gone:
        return str(RunError("进程之间的连接", "断了，看不出是哪一个的", RESUME))
    names = "、".join(store.get(f"name {rank}").decode() for rank in gone)
    return str(RunError(names, "没有消息了（被杀、停住，或断网）", RESUME))


def _unreachable() -> str:
    """问不到谁没了：每台机器由第一个进程说一声。"""
    if processes.local_rank():
        return ""
    advice = "看那台机器和网络；好了之后照原样启动，加 --resume。"
    return str(RunError(_address(), "联系不上，断网了，或那边的进程没了", advice))


def _tell(text: str) -> None:
    if text:
        print(text, file=sys.stderr, flush=True)


def _address() -> str:
    return f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"


def _without(store: dist.Store, key: str) -> list[int]:
    """哪些进程没有留下 key。"""
    return [rank for rank in range(processes.world_size()) if not store.check([f"{key} {rank}"])]


def _in_time(act: Callable[[], object]) -> object:
    """做 act()；连不上、太久，就是 None。"""
    results = []

    def attempt() -> None:
        with contextlib.suppress(*STORE_ERRORS):
            results.append(act())

    thread = threading.Thread(target=attempt, daemon=True)
    thread.start()
    thread.join(STORE_SECONDS)
    return results[0] if results else None
