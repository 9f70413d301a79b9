"""utils/head_summary.py：造几个习惯明摆着的头，看认不认得出。"""

import pytest
import torch

from utils.head_summary import HABITS, habit_masks, measure_habits, name_habits

TEXTS = list("猴，王猴道：“王")
IDS = [1, 2, 3, 1, 4, 5, 6, 3]
SEQ = len(IDS)


def look_at(choose) -> torch.Tensor:
    """(1, seq, seq)：第 i 行的权重平均分给 choose(i)，没有可看的就看自己。"""
    weights = torch.zeros(1, SEQ, SEQ)
    for row in range(SEQ):
        targets = [column for column in range(row + 1) if choose(row, column)] or [row]
        weights[0, row, targets] = 1 / len(targets)
    return weights


@pytest.mark.parametrize(
    ("choose", "name"),
    [
        (lambda row, column: column == row - 1, "前一个"),
        (lambda row, column: column == row, "自己"),
        (lambda row, column: column == 0, "首个"),
        (lambda row, column: TEXTS[column] in "，：“", "标点"),
        (lambda row, column: True, "分散"),
    ],
)
def test_plain_habit_is_named(choose, name):
    masks = habit_masks(IDS, TEXTS)
    assert name_habits(measure_habits(look_at(choose), masks), masks) == [name]


def test_same_token_counts_only_earlier_ones():
    masks = habit_masks(IDS, TEXTS)
    assert masks[HABITS.index("同字")].nonzero().tolist() == [[3, 0], [7, 2]]


def test_shares_are_averages_over_the_rows_after_the_first():
    masks = habit_masks([1, 2, 3], ["a", "b", "c"])
    weights = torch.tensor([[[1.0, 0, 0], [0.25, 0.75, 0], [0.5, 0.3, 0.2]]])
    expected = {"前一个": (0.25 + 0.3) / 2, "自己": (0.75 + 0.2) / 2, "首个": (0.25 + 0.5) / 2, "同字": 0, "标点": 0}
    shares = measure_habits(weights, masks)[0].tolist()
    assert dict(zip(HABITS, shares, strict=True)) == pytest.approx(expected)


def test_single_token_has_no_habit():
    masks = habit_masks([1], ["猴"])
    shares = measure_habits(torch.ones(2, 1, 1), masks)
    assert name_habits(shares, masks) == ["分散", "分散"]


def test_half_a_character_is_not_punctuation():
    assert not habit_masks([1, 2], ["", "猴"])[HABITS.index("标点")].any()
