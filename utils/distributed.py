"""进程之间交换信息：梯度以外的都在这里，全用 torch.distributed。只有一个进程时，每个函数都当场返回，什么也不交换。

约定：除了写文件和说话，每个进程做同样的事，次序也相同；与时间有关的决定由进程 0 来做。道理见 docs/多机训练.md。
"""

import io
import itertools
import math
import pickle
from collections.abc import Callable, Iterable, Sequence
from typing import Any, BinaryIO, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils.data import DataLoader

from utils import processes
from utils.data_loader import batches_at
from utils.errors import UserError
from utils.process_group import is_on, waiting_group

Item, Result = TypeVar("Item"), TypeVar("Result")


def from_main(value: Any) -> Any:
    """进程 0 的 value。"""
    if not is_on():
        return value
    box = [value]
    dist.broadcast_object_list(box, src=0)
    return box[0]


def state_from_main(state: Any) -> Any:
    """进程 0 的 state，同 from_main；里面的张量（都在内存里）一个一个地传，不必一起装进一大段字节里。"""
    if not is_on():
        return state
    stream = io.BytesIO()
    pickler = _TensorPickler(stream)
    if processes.is_main():
        pickler.dump(state)
    data, kinds = from_main((stream.getvalue(), [(tensor.shape, tensor.dtype) for tensor in pickler.tensors]))
    own = pickler.tensors or [torch.empty(shape, dtype=dtype) for shape, dtype in kinds]
    for tensor in own:
        dist.broadcast(tensor, src=0)
    unpickler = pickle.Unpickler(io.BytesIO(data))
    unpickler.persistent_load = own.__getitem__
    return unpickler.load()


class _TensorPickler(pickle.Pickler):
    """张量留在外面，里面只有它的编号。"""

    def __init__(self, file: BinaryIO):
        super().__init__(file)
        self.tensors: list[Tensor] = []

    def persistent_id(self, value: Any) -> int | None:
        if not isinstance(value, Tensor):
            return None
        self.tensors.append(value.contiguous())
        return len(self.tensors) - 1


def number_from_main(number: float) -> float:
    """进程 0 的 number；比 from_main 快，每一步都用得起。"""
    return max_over([float(number) if processes.is_main() else -math.inf])[0] if is_on() else number


def gather(value: Any) -> list[Any]:
    """各个进程的 value，依次序。"""
    if not is_on():
        return [value]
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


def in_turns(make: Callable[[], Result]) -> Result:
    """进程 0 先做，再是别的机器上的第一个进程，最后是其余的：先做的写好文件，后做的直接用。"""
    if not is_on():
        return make()
    turn = 0 if processes.is_main() else 1 if processes.local_rank() == 0 else 2
    for number in range(3):
        if number == turn:
            result = make()
        barrier()
    return result


def once_per_machine(make: Callable[[], Result]) -> Result:
    """每台机器上只由第一个进程做，结果交给同一台机器上的其余进程。"""
    own = make() if processes.local_rank() == 0 else None
    barrier()
    return gather(own)[processes.rank() - processes.local_rank()]


def barrier() -> None:
    """等全部进程走到这里，时限很长：有的还在检查、分词、读检查点。"""
    if is_on():
        dist.barrier(group=waiting_group())


def check_same(facts: dict[str, Any]) -> None:
    """facts 是 {名字: 值}，各个进程应当相同；不同就抛出 UserError，说出是哪一项、哪个进程。"""
    everyone = gather((processes.name(), facts))
    main_name, expected = everyone[0]
    for other_name, found in everyone[1:]:
        for key in expected | found:
            if found.get(key) != expected.get(key):
                reason = f"{main_name} 上是 {expected.get(key)}，{other_name} 上是 {found.get(key)}"
                raise UserError(key, f"各个进程不一致：{reason}", "各台机器用同样的命令、配置、数据、代码和 torch。")
