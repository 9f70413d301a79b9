"""原文照抄：样文里哪些片段与原文一字不差，占多少。用后缀数组找，建一次，查几毫秒。"""

from bisect import bisect_left
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch

from utils.device import check_memory
from utils.text_file import TextFile

MIN_CHARACTERS = 10  # 相同的片段至少这么长才算照抄：没见过的文字里也有短的相同，见 docs/采样.md
BYTES_PER_CHARACTER = 100  # 建后缀数组时每个字符占的内存，实测的峰值取整
FIRST_LOOK = 32  # 先看这么长一段；整段都相同才看更长的
BRACKETS = ("【】", "「」", "〔〕", "⟦⟧")  # 用样文里没有的第一对


@dataclass(frozen=True)
class Copies:
    """一段样文里与原文相同的片段。"""

    text: str
    spans: list[tuple[int, int]]  # 从前到后、互不重叠的 [开始, 结束)
    longest: str  # 最长的一处相同，不足 MIN_CHARACTERS 的也算；一个字也没有相同则为空

    @property
    def num_copied(self) -> int:
        return sum(end - start for start, end in self.spans)

    @property
    def rate(self) -> float:
        """照抄的字符占多少；没有文字则为 0。"""
        return self.num_copied / max(1, len(self.text))

    def pieces(self) -> list[tuple[str, bool]]:
        """[(片段, 是不是照抄)]，依次相连就是 text。"""
        cuts = [0, *(position for span in self.spans for position in span), len(self.text)]
        parts = [(self.text[start:end], index % 2 == 1) for index, (start, end) in enumerate(pairwise(cuts))]
        return [part for part in parts if part[0]]

    def summary(self) -> str:
        """照抄率和最长的相同，一行。"""
        counted = f"{self.num_copied} / {len(self.text)} 字，{MIN_CHARACTERS} 字以上与原文相同的才算"
        text = f"原文照抄率 {self.rate:.1%}（{counted}）"
        longest = self.longest.replace("\n", "↵")
        return f"{text}，最长的相同 {len(longest)} 字：{longest}" if longest else text

    def marked(self) -> str:
        """照抄的片段加上括号。"""
        opening, closing = next((pair for pair in BRACKETS if not set(pair) & set(self.text)), BRACKETS[-1])
        return "".join(f"{opening}{piece}{closing}" if is_copy else piece for piece, is_copy in self.pieces())


class CopyIndex:
    """原文的后缀数组 (Manber & Myers 1993)：从每个字开始到结尾的那一段，按字典序排好，二分就能找到任何片段。"""

    def __init__(self, text: str):
        self.text = text
        self._order = suffix_array(text)

    def longest_match(self, sample: str, start: int) -> int:
        """sample 从 start 起最多有几个字在原文里连续出现。"""
        width = FIRST_LOOK
        while True:
            piece = sample[start : start + width]
            length = self._longest_prefix(piece)
            if length < len(piece) or start + width >= len(sample):
                return length
            width *= 2

    def _longest_prefix(self, piece: str) -> int:
        """piece 的开头最多有几个字在原文里出现；最像它的就排在它的两旁。"""
        size = len(piece)
        slot = bisect_left(self._order, piece, key=lambda position: self.text[position : position + size])
        beside = self._order[max(0, slot - 1) : slot + 1]
        return max((count_common(self.text[position : position + size], piece) for position in beside), default=0)

    def find_copies(self, sample: str) -> Copies:
        """sample 里每一处至少 MIN_CHARACTERS 个字的相同；重叠的合成一片。"""
        spans, longest = [], ""
        for start in range(len(sample)):
            length = self.longest_match(sample, start)
            end = start + length
            if length > len(longest):
                longest = sample[start:end]
            if length < MIN_CHARACTERS:
                continue
            if spans and start < spans[-1][1]:
                spans[-1] = spans[-1][0], max(end, spans[-1][1])
            else:
                spans.append((start, end))
        return Copies(sample, spans, longest)


def index_file(source: TextFile) -> CopyIndex:
    """整个文件的索引；内存放不下就抛出 RunError。"""
    check_memory(source.num_characters * BYTES_PER_CHARACTER, torch.device("cpu"), "换一份小些的语料。")
    return CopyIndex("".join(source.pieces(0, source.num_characters)))


def count_common(first: str, second: str) -> int:
    """两段文字开头有几个字相同。"""
    pairs = enumerate(zip(first, second, strict=False))
    return next((index for index, (one, other) in pairs if one != other), min(len(first), len(second)))


def suffix_array(text: str) -> np.ndarray:
    """各个后缀的开头，按后缀的字典序 -> (字符数,) int64。

    倍增：前 width 个字排好了名次，(自己的名次, 后面 width 处的名次) 就排好了前 2·width 个；只有并列的要再排。
    """
    count = len(text)
    key, width = _first_keys(np.frombuffer(text.encode("utf-32-le"), dtype=np.uint32))
    order = np.argsort(key)
    key, slots, rank = key[order], np.arange(count), np.empty(count, dtype=np.int64)
    while len(slots):
        is_first = np.concatenate(([True], key[1:] != key[:-1]))  # 一组并列的第一个，名次就是它的位置
        groups = np.maximum.accumulate(np.where(is_first, np.arange(len(slots)), 0))
        rank[order[slots]] = slots[groups]
        slots = slots[~(is_first & np.concatenate((is_first[1:], [True])))]
        positions = order[slots]
        following = positions + width
        beyond = np.where(following < count, rank[np.minimum(following, count - 1)] + 1, 0)  # 到头的排在前面
        key = rank[positions] * (count + 1) + beyond
        by_key = np.argsort(key)
        order[slots], key = positions[by_key], key[by_key]
        width *= 2
    return order


def _first_keys(codes: np.ndarray) -> tuple[np.ndarray, int]:
    """(各处开头几个字拼成的一个整数, 拼了几个)：几千种字，一个 64 位整数放得下四个，省去头两轮排序。"""
    present = np.zeros(int(codes.max(initial=0)) + 1, dtype=np.int64)
    present[codes] = 1
    numbers = present.cumsum()  # 字 -> 从 1 数起的编号，次序不变；0 是到头
    key, base, width = numbers[codes], int(numbers[-1]) + 1, 1
    while base ** (2 * width) < 2**63 and width < len(codes):
        following = np.concatenate((key[width:], np.zeros(width, dtype=np.int64)))
        key, width = key * base**width + following, 2 * width
    return key, width
