"""每个注意力头在看什么：权重平均有多少落在前一个、自己、首个、同字、标点上。"""

import unicodedata

import torch
from torch import Tensor

HABITS = ("前一个", "自己", "首个", "同字", "标点")
CLEAR = 0.25  # 比平均分配多出这么多，才算有这个习惯


def habit_masks(token_ids: list[int], texts: list[str]) -> Tensor:
    """(len(HABITS), seq, seq) 的布尔表：第 i 行看第 j 列，算不算这种习惯。"""
    seq = len(token_ids)
    rows, columns = torch.arange(seq)[:, None], torch.arange(seq)[None, :]
    ids = torch.tensor(token_ids)
    is_same = (ids[:, None] == ids[None, :]) & (columns < rows)
    is_punctuation = torch.tensor([_is_punctuation(text) for text in texts]).expand(seq, seq) & (columns <= rows)
    first = (columns == 0).expand(seq, seq)
    return torch.stack((columns == rows - 1, columns == rows, first, is_same, is_punctuation))


def measure_habits(weights: Tensor, masks: Tensor) -> Tensor:
    """(num_heads, seq, seq) -> (num_heads, len(HABITS))，各习惯占的权重，对第二个 token 起的各行平均。

    第一个 token 只能看自己，不说明什么；只有一个 token 时全是 0。
    """
    if weights.shape[-1] == 1:
        return weights.new_zeros(weights.shape[0], len(masks))
    return torch.einsum("hij,kij->hik", weights[:, 1:], masks[:, 1:].to(weights.dtype)).mean(dim=1)


def name_habits(shares: Tensor, masks: Tensor) -> list[str]:
    """(num_heads, len(HABITS)) -> 每个头的习惯；与平均分配权重的头相比，没有一种明显多出来的是“分散”。"""
    seq = masks.shape[-1]
    uniform = torch.ones(seq, seq).tril() / torch.arange(1, seq + 1)[:, None]
    excess = shares - measure_habits(uniform[None], masks)
    return [HABITS[row.argmax()] if row.max() > CLEAR else "分散" for row in excess]


def _is_punctuation(text: str) -> bool:
    return bool(text) and all(unicodedata.category(character)[0] in "PZC" for character in text)
