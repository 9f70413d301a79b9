"""分片的模型写成普通的 model.pth：一次只凑齐一个参数，写完就放掉，没有一个进程放得下整个模型也写得出。

torch.save 要全部张量都在内存里，所以这里照它的格式自己写；结果与 torch.save 写的一个字节也不差。
"""

import io
import pickle
import sys
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor
from torch.serialization import _get_storage_alignment

from utils import sharded_tensor
from utils.archive import PICKLE_PROTOCOL, write_sealed
from utils.files import write_atomically
from utils.processes import is_main


@dataclass(frozen=True, eq=False)
class _Place:
    """文件里的一处数据。"""

    key: str  # 第几处
    tensor: Tensor  # 分片的

    @property
    def storage_type(self) -> type:
        return getattr(torch, sharded_tensor.local(self.tensor)._typed_storage()._pickle_storage_type())


@dataclass(frozen=True, eq=False)
class _Late:
    """将来才凑齐的张量。"""

    place: _Place

    def reduce(self) -> tuple:
        """与 Tensor.__reduce_ex__ 相同。"""
        tensor = self.place.tensor
        arguments = self.place, 0, tuple(tensor.shape), tuple(tensor.stride()), False, OrderedDict()
        return torch._utils._rebuild_tensor_v2, arguments


class _Pickler(pickle.Pickler):
    def persistent_id(self, value: Any) -> tuple | None:
        if isinstance(value, _Place):
            return "storage", value.storage_type, value.key, "cpu", value.tensor.numel()
        return None

    def reducer_override(self, value: Any) -> Any:
        return value.reduce() if isinstance(value, _Late) else NotImplemented


def save_streamed(path: Path, state: dict, keep_old: bool = False) -> Path | None:
    """同 save_state，但 state 里的张量是分片的；每个进程都调用，进程 0 写。"""
    places, late = {}, {}
    for name, value in state.items():
        if isinstance(value, Tensor):
            storage = sharded_tensor.local(value).untyped_storage()._cdata  # 共用的矩阵在文件里只有一份
            place = places.setdefault(storage, _Place(str(len(places)), value))
            late[name] = _Late(place)
    whole = (sharded_tensor.whole(place.tensor).cpu() for place in places.values())
    if not is_main():
        for _ in whole:
            pass
        return None
    num_bytes = sum(place.tensor.numel() * place.tensor.element_size() for place in places.values())
    write_zip = partial(_write_zip, state={**state, **late}, tensors=whole)
    return write_atomically(path, lambda file: write_sealed(file, write_zip), keep_old, num_bytes)


def _write_zip(file: BinaryIO, state: dict, tensors: Iterator[Tensor]) -> None:
    buffer = io.BytesIO()
    _Pickler(buffer, PICKLE_PROTOCOL).dump(state)
    alignment = _get_storage_alignment()
    writer = torch._C.PyTorchFileWriter(file, True, alignment)
    records = {"data.pkl": buffer.getvalue(), ".format_version": b"1", ".storage_alignment": str(alignment).encode()}
    try:
        for name, data in {**records, "byteorder": sys.byteorder.encode()}.items():
            writer.write_record(name, data, len(data))
        for number, tensor in enumerate(tensors):
            storage = _tight(tensor).untyped_storage()
            writer.write_record(f"data/{number}", storage, storage.nbytes())
    finally:
        writer.write_end_of_file()  # 出了错也要：否则它在文件关上之后才写结尾，整个进程便垮掉


def _tight(tensor: Tensor) -> Tensor:
    """内存里只有它自己的：行数分不均时，凑齐的矩阵后面有补齐的几行。"""
    tensor = tensor.contiguous()
    return tensor if tensor.untyped_storage().nbytes() == tensor.nbytes else tensor.clone()
