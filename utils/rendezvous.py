"""到齐：全部进程都启动了，才约定一个新的名字，往后的消息都带着它。

torchrun 重新启动进程时沿用原来的 TCPStore，里面还有上一批进程的地址；照着去连，连的是已经没了的进程。
"""

import json
import time
import uuid
from collections.abc import Iterator

import torch.distributed as dist

from utils import processes
from utils.errors import RunError

POLL_SECONDS = 0.1
JOIN_SECONDS = 900.0  # 多台机器先后启动，等最慢的


def meet(store: dist.Store) -> str:
    """等全部进程到齐，返回这一批的名字；太久没有到齐就抛出 RunError，说出还缺谁。

    每个进程报上自己的新号；进程 0 公布全部的号，人人确认里面是自己现在的号，才算数。上一批留下的旧号没有人确认。
    """
    rank, own = processes.rank(), uuid.uuid4().hex
    store.set(f"hello {rank}", own)
    for _ in _until(time.monotonic() + JOIN_SECONDS):
        if processes.is_main() and (everyone := _values(store, "hello")):
            store.set("roll", json.dumps(everyone))
            if _values(store, "seen") == [json.dumps(everyone)] * len(everyone):
                store.set("go", json.dumps(everyone))
        roll = _value(store, "roll")
        if roll and own in json.loads(roll):
            store.set(f"seen {rank}", roll)
            if _value(store, "go") == roll:
                return str(uuid.uuid5(uuid.NAMESPACE_OID, roll))
    missing = [str(number) for number, value in enumerate(_values(store, "hello", partial=True)) if not value]
    reason = f"等了 {JOIN_SECONDS:.0f} 秒，进程 {'、'.join(missing) or '（不明）'} 没有来"
    raise RunError("torchrun", reason, "看各台机器上的 torchrun 是不是都在运行。")


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
