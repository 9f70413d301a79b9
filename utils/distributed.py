"""进程之间交换信息：梯度以外的都在这里，全用 torch.distributed。只有一个进程时，每个函数都当场返回，什么也不交换。

约定：除了写文件和说话，每个进程做同样的事，次序也相同；与时间有关的决定由进程 0 来做。道理见 docs/多机训练.md。
"""

import itertools
import math
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from datetime import timedelta
from typing import Any, TypeVar

import psutil
import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils.data import DataLoader

from utils import processes
from utils.data_loader import batches_at
from utils.errors import UserError
from utils.peers import is_lost, watch
from utils.rendezvous import meet

POLL_SECONDS = 0.05, 1.0  # 隔多久问一次：开头，和久等之后
LAST_RESORT = 60.0  # 交换的时限比 patience 多这么久：先由 Watch 说出是谁，NCCL 超时只会中止进程

Item, Result = TypeVar("Item"), TypeVar("Result")


def is_on() -> bool:
    """是不是有几个进程在一起训练。"""
    return dist.is_available() and dist.is_initialized()


def start(device: torch.device, patience: float) -> None:
    """与其他进程连成一组；patience 是等别的进程最多几秒。CPU 上的张量走 gloo，显卡上的走 NCCL。"""
    if is_on():
        return
    if not processes.spans_machines():  # 一台机器之内只用回环地址，别的机器连不上
        for variable in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"):
            os.environ.setdefault(variable, _loopback())
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    where = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
    try:
        limit = timedelta(seconds=patience + LAST_RESORT)
        store, rank, world_size = next(dist.rendezvous("env://", timeout=limit))
        name = meet(store, limit.total_seconds())
        store = dist.PrefixStore(name, store)
        _check_same_device(store, device.type)
        watch().begin(patience, name)
        dist.init_process_group(backend, store=store, rank=rank, world_size=world_size, timeout=limit)
    except (RuntimeError, OSError) as error:
        if isinstance(error, RuntimeError) and not is_lost(error):
            raise
        watch().is_reachable = watch().has_begun
        if "EADDRINUSE" in str(error):
            raise UserError(where, "端口已被占用", "换一个：torchrun --master_port，或设 MASTER_PORT。") from None
        advice = "检查地址、端口和防火墙，各台机器的 torchrun 参数要一致；有几块网卡就设 GLOO_SOCKET_IFNAME。"
        raise UserError(where, "连不上", advice) from None


def _check_same_device(store: dist.Store, kind: str) -> None:
    """连接的种类随设备而定，不同就连不起来，所以先比较。"""
    store.set(f"device {processes.rank()}", kind)
    kinds = [store.get(f"device {rank}").decode() for rank in range(processes.world_size())]  # get 会等
    other = next((rank for rank, found in enumerate(kinds) if found != kinds[0]), None)
    if other is not None:
        reason = f"各个进程不一致：进程 0 上是 {kinds[0]}，进程 {other} 上是 {kinds[other]}"
        raise UserError("--device", reason, "各台机器用同样的设备，或都加 --device cpu。")


def _loopback() -> str:
    """回环网卡的名字：Linux 上是 lo，macOS 上是 lo0。"""
    cards = psutil.net_if_addrs().items()
    return next((name for name, addresses in cards if any(a.address == "127.0.0.1" for a in addresses)), "lo")


def from_main(value: Any) -> Any:
    """进程 0 的 value。"""
    if not is_on():
        return value
    watch().mark()
    box = [value]
    dist.broadcast_object_list(box, src=0)
    return box[0]


def tensors_from_main(tensors: dict[str, Tensor] | None) -> Iterator[tuple[str, Tensor]]:
    """进程 0 的 {名字: 张量}（都在内存里），一个一个地传，收到就用，用完就放掉；别的进程给 None。"""
    if not is_on():
        yield from tensors.items()
        return
    named = tensors if processes.is_main() else {}
    for name, shape, dtype in from_main([(name, tensor.shape, tensor.dtype) for name, tensor in named.items()]):
        tensor = named[name].contiguous() if processes.is_main() else torch.empty(shape, dtype=dtype)
        dist.broadcast(tensor, src=0)
        yield name, tensor


def state_from_main(state: Any) -> Any:
    """进程 0 的 state，同 from_main；里面的张量一个一个地传，不必装进一大段字节里。"""
    taken = {}

    def take(tensor: Tensor) -> _Slot:
        number = str(len(taken))
        taken[number] = tensor
        return _Slot(number)

    skeleton = from_main(_replace(state, Tensor, take))
    received = dict(tensors_from_main(taken))
    return _replace(skeleton, _Slot, lambda slot: received[slot.number])


@dataclass(frozen=True)
class _Slot:
    """这里本来是第 number 个张量。"""

    number: str


def _replace(value: Any, kind: type, change: Callable[[Any], Any]) -> Any:
    """字典、列表、dataclass 里面的每个 kind 换成 change(它)。"""
    if isinstance(value, kind):
        return change(value)
    if isinstance(value, dict):
        return {key: _replace(item, kind, change) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_replace(item, kind, change) for item in value)
    if is_dataclass(value):
        return replace(value, **{f.name: _replace(getattr(value, f.name), kind, change) for f in fields(value)})
    return value


def number_from_main(number: float) -> float:
    """进程 0 的 number；比 from_main 快，每一步都用得起。"""
    return max_over([float(number) if processes.is_main() else -math.inf])[0] if is_on() else number


def gather(value: Any) -> list[Any]:
    """各个进程的 value，依次序。"""
    if not is_on():
        return [value]
    watch().mark()
    values = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values


def sum_over(numbers: Sequence[float]) -> list[float]:
    """各个进程的 numbers 逐项相加；类型不变。"""
    return _reduce(numbers, dist.ReduceOp.SUM)


def max_over(numbers: Sequence[float]) -> list[float]:
    """各个进程的 numbers 逐项取最大；类型不变。"""
    return _reduce(numbers, dist.ReduceOp.MAX)


def _reduce(numbers: Sequence[float], operation: Any) -> list[float]:
    if not is_on():
        return list(numbers)
    watch().mark()
    tensor = torch.tensor(numbers, dtype=torch.float64)  # 到 2⁵³ 的整数都准确
    dist.all_reduce(tensor, operation)
    return [type(number)(value) for number, value in zip(numbers, tensor.tolist(), strict=True)]


def map_batches(
    function: Callable[[Item], Result], batches: Iterable[Item], before_batch: Callable[[], None] = lambda: None
) -> list[Result]:
    """[function(批)]，依批的次序，每个进程都得到全部的结果；各批轮流分给各个进程，一批总由一个进程算完。

    结果因此与一个进程时逐位相同。before_batch 在每一批之前调用，次数在各个进程上相同。
    """
    if not is_on():
        return [_after(before_batch, function, batch) for batch in batches]
    mine = [_after(before_batch, function, batch) for batch in _own_batches(batches)]
    in_order = itertools.chain.from_iterable(zip(*gather(mine), strict=True))
    return list(itertools.islice(in_order, len(batches)))


def _after(before: Callable[[], None], function: Callable[[Item], Result], item: Item) -> Result:
    before()
    return function(item)


def _own_batches(loader: DataLoader) -> Iterable[Any]:
    """第 rank、rank + world_size……批；轮空的进程把最后一批再算一遍，大家算的批数便相同。"""
    total, size = len(loader), dist.get_world_size()
    rounds = range(dist.get_rank(), dist.get_rank() + size * -(-total // size), size)
    return batches_at(loader, [min(index, total - 1) for index in rounds])


def in_turns(name: str, make: Callable[[], Result]) -> Result:
    """进程 0 先做，再是别的机器上的第一个进程，最后是其余的：先做的写好文件，后做的直接用。

    还在做就等，多久都可以。name 是这件事的名字，每件不同。
    """
    if not is_on():
        return make()
    is_first = processes.local_rank() == 0
    turn = 0 if processes.is_main() else 1 if is_first else 2
    with watch().resting():
        for number in range(3):
            if number == turn:
                result = make()
            _wait_for_all(f"{name} {number}")
    return result


def once_per_machine(name: str, make: Callable[[], Result]) -> Result:
    """每台机器上只由第一个进程做，结果交给同一台机器上的其余进程。name 同上。"""
    if not is_on():
        return make()
    own = _alone(name, processes.local_rank() == 0, make)
    return gather(own)[processes.rank() - processes.local_rank()]


def only_on_main(name: str, make: Callable[[], Result]) -> Result | None:
    """进程 0 做，别的进程等它做完，得到 None。name 同上。"""
    if not is_on():
        return make()
    return _alone(name, processes.is_main(), make)


def _alone(name: str, is_mine: bool, make: Callable[[], Result]) -> Result | None:
    """is_mine 的进程做，全部做完才往下走；别的得到 None。"""
    with watch().resting():
        result = make() if is_mine else None
        _wait_for_all(name)
    return result


def _wait_for_all(key: str) -> None:
    """等全部进程走到这里，没有时限；用 store 而不用 barrier，后者有时限。有谁没了，由 Watch 说。"""
    store, size = dist.distributed_c10d._get_default_store(), dist.get_world_size()
    number = store.add(key, 1)
    everyone = -(-number // size) * size  # 同一个 key 用过几次也数得清
    interval, longest = POLL_SECONDS
    while store.add(key, 0) < everyone:
        time.sleep(interval)
        interval = min(longest, 1.5 * interval)


def wait_for_all() -> None:
    """等全部进程走到这里。"""
    max_over([0])


def check_same(facts: dict[str, Any]) -> None:
    """facts 是 {名字: 值}，各个进程应当相同；不同就抛出 UserError，说出是哪一项、哪个进程。"""
    everyone = gather((processes.name(), facts))
    main_name, expected = everyone[0]
    for other_name, found in everyone[1:]:
        for key in expected | found:
            if found.get(key) != expected.get(key):
                reason = f"{main_name} 上是 {expected.get(key)}，{other_name} 上是 {found.get(key)}"
                raise UserError(key, f"各个进程不一致：{reason}", "各台机器用同样的命令、配置、数据、代码和 torch。")
