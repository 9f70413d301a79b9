"""打乱 0 到 count-1，不必把顺序存下来：第几个是谁，现算。

多轮 Feistel 网络 (Black & Rogaway 2002，广义 Feistel)：把编号写成 left × 列数 + right，轮流用一个数的散列去转动另一个。
每一轮都能倒着转回来，所以是一一对应；落在 count 之外的再算一次，总会落回来。
"""

import hashlib
import math
from collections.abc import Iterator

import numpy as np

NUM_ROUNDS = 6
BLOCK = 65_536  # 一次算出这么多个


class KeyedOrder:
    """由 key 决定的顺序；内存与 count 无关。"""

    def __init__(self, count: int, key: str):
        self.count = count
        self._rows = max(1, math.isqrt(count))
        self._columns = -(-count // self._rows) or 1  # rows × columns 刚好不小于 count
        digests = [hashlib.sha256(f"{key} {number}".encode()).digest() for number in range(NUM_ROUNDS)]
        self._keys = [np.uint64(int.from_bytes(digest[:8], "little")) for digest in digests]

    def at(self, positions: np.ndarray) -> np.ndarray:
        """第 positions 个各是谁。(数量,) -> (数量,) int64"""
        values = self._turn(positions.astype(np.uint64))
        while len(outside := np.flatnonzero(values >= self.count)):
            values[outside] = self._turn(values[outside])
        return values.astype(np.int64)

    def blocks_from(self, start: int) -> Iterator[np.ndarray]:
        """从第 start 个起，一块一块地交出。"""
        for first in range(start, self.count, BLOCK):
            yield self.at(np.arange(first, min(first + BLOCK, self.count)))

    def _turn(self, values: np.ndarray) -> np.ndarray:
        rows, columns = np.uint64(self._rows), np.uint64(self._columns)
        left, right = values // columns, values % columns
        for number, key in enumerate(self._keys):
            if number % 2 == 0:
                left = (left + _scramble(right ^ key) % rows) % rows
            else:
                right = (right + _scramble(left ^ key) % columns) % columns
        return left * columns + right


def _scramble(values: np.ndarray) -> np.ndarray:
    """SplitMix64 (Steele et al. 2014) 的散列：输入差一位，输出大约一半的位都变。"""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))
