"""到齐：全部进程都启动了，才约定一个新的名字，往后的消息都带着它。

torchrun 重新启动进程时沿用原来的 TCPStore，里面还有上一批进程的地址；照着去连，连的是已经没了的进程。
"""

import json
import os
import socket
import time
import uuid
from collections.abc import Iterator
from datetime import timedelta

import torch.distributed as dist

from utils import processes
from utils.errors import RunError

POLL_SECONDS = 0.1
CONNECT_SECONDS = 5.0  # TCPStore 这么久不答应，就是连不上了
COMING_BACK_SECONDS = 60.0  # 有谁没有来就离开了：这么久还没有重新启动，就不会来了
GAVE_UP = "gave up"


def connect(name: str) -> dist.Store:
    """到 torchrun 的 TCPStore 另开一条连接，里面的消息都带着 name。连不上抛出 OSError 或 torch 的错误。"""
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    socket.create_connection((address, port), CONNECT_SECONDS).close()  # TCPStore 连不上会打印几十行
    store = dist.TCPStore(address, port, is_master=False, timeout=timedelta(seconds=CONNECT_SECONDS))
    return dist.PrefixStore(f"{name} peers", store)


def give_up() -> None:
    """没有到齐就要出错离开，留下一句，别的进程不必再等；留着的是第一个离开的，后面的是受它连累。"""
    connect("early").compare_set(GAVE_UP, "", json.dumps([processes.rank(), processes.name()]))


def meet(store: dist.Store, max_seconds: float) -> str:
    """等全部进程到齐，返回这一批的名字；太久没有到齐就抛出 RunError，说出还缺谁。

    每个进程报上自己的新号；进程 0 公布全部的号，人人确认里面是自己现在的号，才算数。上一批留下的旧号没有人确认。
    """
    rank, own, started, early = processes.rank(), uuid.uuid4().hex, time.monotonic(), connect("early")
    store.set(f"hello {rank}", own)
    if _who_gave_up(early)[0] == rank:  # 是上一次的我
        early.delete_key(GAVE_UP)
    for _ in _until(started + max_seconds):
        if processes.is_main() and (everyone := _values(store, "hello")):
            store.set("roll", json.dumps(everyone))
            if _values(store, "seen") == [json.dumps(everyone)] * len(everyone):
                store.set("go", json.dumps(everyone))
        roll = _value(store, "roll")
        if roll and own in json.loads(roll):
            store.set(f"seen {rank}", roll)
            if _value(store, "go") == roll:
                return str(uuid.uuid5(uuid.NAMESPACE_OID, roll))
        if time.monotonic() > started + COMING_BACK_SECONDS and (name := _who_gave_up(early)[1]):
            raise RunError(name, "还没有开始训练就离开了", "原因在那台机器的输出里；改好之后重新启动。")
    missing = [str(number) for number, value in enumerate(_values(store, "hello", partial=True)) if not value]
    reason = f"等了 {max_seconds:.0f} 秒，进程 {'、'.join(missing) or '（不明）'} 没有来"
    raise RunError("torchrun", reason, "看各台机器上的 torchrun 是不是都在运行。")


def _who_gave_up(early: dist.Store) -> tuple[int, str]:
    """-> (第几个, 名字)；没有就是 (-1, "")"""
    text = _value(early, GAVE_UP)
    return tuple(json.loads(text)) if text else (-1, "")


def _until(end: float) -> Iterator[None]:
    while time.monotonic() < end:
        yield
        time.sleep(POLL_SECONDS)


def _value(store: dist.Store, key: str) -> str | None:
    return store.get(key).decode() if store.check([key]) else None


def _values(store: dist.Store, name: str, partial: bool = False) -> list[str | None]:
    """各个进程的 name，依次序；没有全就是空的 (partial 时缺的是 None)。"""
    keys = [f"{name} {rank}" for rank in range(processes.world_size())]
    if store.check(keys):
        return [value.decode() for value in store.multi_get(keys)]
    return [_value(store, key) for key in keys] if partial else []
