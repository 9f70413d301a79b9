"""几段 token 首尾相接，当作一长串来取；各段映射着不同的文件，合成一个张量就要整个读进内存。"""

from bisect import bisect_right
from collections.abc import Iterator
from itertools import accumulate

import torch
from torch import Tensor


class TokenSequence:
    """像一维张量那样用：len、切片、split。切片不复制，long() 才取出来。"""

    def __init__(self, parts: list[Tensor]):
        self._parts = [part for part in parts if len(part)]
        self._ends = list(accumulate(map(len, self._parts)))

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def __getitem__(self, place: slice) -> "TokenSequence":
        start, stop, _ = place.indices(len(self))
        first, last = bisect_right(self._ends, start), bisect_right(self._ends, max(start, stop - 1))
        offset = self._ends[first - 1] if first else 0
        pieces = []
        for part in self._parts[first : last + 1]:
            pieces.append(part[max(0, start - offset) : max(0, stop - offset)])
            offset += len(part)
        return TokenSequence(pieces)

    def split(self, size: int) -> Iterator[Tensor]:
        """依次取出 size 个，int64；最后的可以不足。"""
        for start in range(0, len(self), size):
            yield self[start : start + size].long()

    def long(self) -> Tensor:
        """-> (seq,) int64"""
        if len(self._parts) == 1:
            return self._parts[0].long()
        return torch.cat([part.long() for part in self._parts]) if self._parts else torch.empty(0, dtype=torch.long)

    def tolist(self) -> list[int]:
        return self.long().tolist()
