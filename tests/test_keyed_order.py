"""utils/keyed_order.py：每个数恰好出现一次，看起来是随机的，从哪里都能接着算，不占内存。"""

import tracemalloc
from itertools import islice

import numpy as np
import pytest

from utils import keyed_order
from utils.keyed_order import KeyedOrder

BILLION = 10**9


def whole(count: int, key: str = "1 1", start: int = 0) -> np.ndarray:
    return np.concatenate([np.empty(0, dtype=np.int64), *KeyedOrder(count, key).blocks_from(start)])


def chi_square(table: np.ndarray) -> float:
    """与均匀相差多少；除以了自由度，均匀时在 1 左右。"""
    expected = table.sum() / table.size
    freedom = np.prod([size - 1 for size in table.shape])
    return float(((table - expected) ** 2 / expected).sum() / freedom)


@pytest.mark.parametrize("count", [*range(70), 100, 255, 256, 257, 999, 1000, 1023, 10_000, 65_535, 65_537, 200_003])
def test_every_number_comes_exactly_once(count):
    assert np.array_equal(np.sort(whole(count)), np.arange(count))


def test_seed_and_epoch_decide_the_order():
    assert np.array_equal(whole(1000, "1 2"), whole(1000, "1 2"))
    orders = [whole(1000, key) for key in ("1 2", "1 3", "2 2", "12 ", "2 1")]
    for index, order in enumerate(orders):
        for other in orders[:index]:
            assert np.count_nonzero(order == other) < 10  # 随机的两个顺序大约有一处相同


def test_any_position_is_where_the_whole_order_has_it(monkeypatch):
    monkeypatch.setattr(keyed_order, "BLOCK", 64)
    order = whole(5000)
    for start in (0, 1, 63, 64, 65, 4321, 4999, 5000):
        assert np.array_equal(whole(5000, start=start), order[start:])
    places = np.array([4999, 0, 77])
    assert np.array_equal(KeyedOrder(5000, "1 1").at(places), order[places])


@pytest.mark.parametrize("count", [6, 10, 24])
def test_every_number_is_equally_likely_at_every_position(count):
    table = np.zeros((count, count))
    for seed in range(2000):
        table[np.arange(count), whole(count, f"{seed} 1")] += 1
    assert 0.5 < chi_square(table) < 1.7


def test_stretches_of_the_order_cover_everything_evenly():
    table = np.zeros((10, 10))
    for seed in range(100):
        np.add.at(table, (np.arange(1000) // 100, whole(1000, f"{seed} 1") // 100), 1)
    assert 0.6 < chi_square(table) < 1.5


def test_neighbours_in_a_huge_order_are_unrelated():
    order = np.concatenate(list(islice(KeyedOrder(BILLION, "1 1").blocks_from(123_456_789), 4)))
    assert len(np.unique(order)) == len(order) and 0 <= order.min() and order.max() < BILLION
    counts, _ = np.histogram(order, bins=1000, range=(0, BILLION))
    assert 0.8 < ((counts - len(order) / 1000) ** 2 / (len(order) / 1000)).sum() / 999 < 1.2
    assert abs(np.abs(np.diff(order)).mean() / BILLION - 1 / 3) < 0.005
    assert abs(np.corrcoef(order[:-1], order[1:])[0, 1]) < 0.01


def test_memory_does_not_grow_with_the_count():
    peaks = []
    for count in (10**6, 10**12):
        tracemalloc.start()
        next(KeyedOrder(count, "1 1").blocks_from(count // 2))
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert max(peaks) < 1e7 and peaks[1] < 1.2 * peaks[0]
