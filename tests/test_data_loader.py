"""utils/data_loader.py：划分、窗口、顺序。"""

import tracemalloc
from itertools import islice

import pytest
import torch

from utils import data_loader
from utils.data_loader import EpochSampler, WindowDataset, create_dataloader, split_point


def test_split_is_by_position():
    assert [split_point(n) for n in (0, 1, 9, 10, 11, 100)] == [0, 0, 8, 9, 9, 90]


def test_target_is_the_next_token():
    dataset = WindowDataset(torch.arange(100, dtype=torch.int32), context_length=8, stride=8)
    for inputs, targets in (dataset[0], dataset[5]):
        assert torch.equal(targets, inputs + 1)
        assert inputs.dtype == targets.dtype == torch.long and inputs.shape == (8,)


@pytest.mark.parametrize(("num_tokens", "expected"), [(8, 0), (9, 1), (16, 1), (17, 2), (24, 2), (25, 3)])
def test_every_full_window_counts(num_tokens, expected):
    dataset = WindowDataset(torch.arange(num_tokens), context_length=8, stride=8)
    assert len(dataset) == expected


def test_windows_without_overlap_use_each_token_once_as_target():
    dataset = WindowDataset(torch.arange(50), context_length=8, stride=8)
    targets = torch.cat([dataset[index][1] for index in range(len(dataset))])
    assert torch.equal(targets, torch.arange(1, 49))
    assert torch.equal(targets, dataset.target_ids())


def test_stride_sets_the_distance():
    dataset = WindowDataset(torch.arange(30), context_length=8, stride=3)
    assert [dataset[index][0][0].item() for index in range(len(dataset))] == [0, 3, 6, 9, 12, 15, 18, 21]


def test_validation_order_is_fixed_and_complete():
    dataset = WindowDataset(torch.arange(60), context_length=5, stride=5)
    loader = create_dataloader(dataset, batch_size=4)
    batches = [inputs for inputs, _ in loader]
    assert [len(batch) for batch in batches] == [4, 4, 3]  # 最后不满的一批也在
    assert torch.equal(torch.cat(batches)[:, 0], torch.arange(0, 55, 5))


def test_training_order_depends_only_on_seed_and_epoch():
    def order(seed, epoch):
        sampler = EpochSampler(100, seed)
        sampler.epoch = epoch
        torch.rand(3)  # 全局的随机状态不影响它
        return list(sampler)

    generator = torch.Generator().manual_seed((1 + 0x9E3779B97F4A7C15) % 2**63)
    assert order(1, 1) == order(1, 1) == torch.randperm(100, generator=generator).tolist()
    assert sorted(order(1, 1)) == list(range(100))
    assert order(1, 1) != order(1, 2) and order(1, 1) != order(2, 1)


@pytest.mark.parametrize("num_starts", [1, 7, 8, 9, 15, 16, 1000])
def test_each_epoch_starts_at_another_place_and_stays_inside(num_starts):
    sampler, phases = EpochSampler(num_starts, 5, stride=8), set()
    for sampler.epoch in range(40):
        starts = sorted(sampler)
        assert len(starts) == len(sampler) == max(1, num_starts // 8)
        assert starts[0] >= 0 and starts[-1] < num_starts
        assert all(after - before == 8 for before, after in zip(starts, starts[1:], strict=False))
        phases.add(starts[0])
    assert len(phases) > 1 or num_starts == 1
    assert phases <= set(range(8))


def test_order_handed_out_in_blocks_is_complete(monkeypatch):
    whole = list(EpochSampler(1000, 7))
    monkeypatch.setattr(data_loader, "ORDER_BLOCK", 64)
    assert list(EpochSampler(1000, 7)) == whole and all(type(index) is int for index in whole)
    assert list(EpochSampler(0, 7)) == []


def test_order_of_a_corpus_that_is_not_huge_is_the_stored_one():
    """以前的检查点要靠它接上，所以写法不能变。"""
    sampler = EpochSampler(1_000_000, 123, stride=64)
    sampler.epoch, sampler.done = 3, 15_000
    generator = torch.Generator().manual_seed((123 + 0x9E3779B97F4A7C15 * 3) % 2**63)
    order = torch.randperm(15_625, generator=generator)
    phase = torch.randint(64, (), generator=generator)
    assert list(sampler) == (phase + 64 * order[15_000:]).tolist()
    assert data_loader.STORED_ORDER == 1 << 23


@pytest.mark.parametrize("stride", [1, 8])
def test_long_order_is_computed_and_can_be_entered_anywhere(monkeypatch, stride):
    monkeypatch.setattr(data_loader, "STORED_ORDER", 99)
    monkeypatch.setattr(torch, "randperm", lambda *args, **options: pytest.fail("存了整个顺序"))
    orders = []
    for seed, epoch in ((1, 1), (1, 2), (2, 1)):
        sampler = EpochSampler(1000 * stride, seed, stride)
        sampler.epoch = epoch
        order = list(sampler)
        phase = min(order)
        assert sorted(order) == list(range(phase, phase + 1000 * stride, stride)) and max(order) < 1000 * stride
        for sampler.done in (1, 500, 999, 1000):
            assert list(sampler) == order[sampler.done :]
        orders.append(order)
    assert orders[0] != orders[1] and orders[0] != orders[2]


def test_billion_windows_take_no_memory():
    sampler = EpochSampler(10**9 * 128, 1, stride=128)
    sampler.done = 900_000_000
    tracemalloc.start()
    starts = list(islice(sampler, 1000))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(set(starts)) == 1000 and max(starts) < 10**9 * 128 and peak < 2e7


def test_windows_are_slices_of_the_smallest_integers():
    token_ids = torch.arange(65_500, 65_536, dtype=torch.int32).to(torch.uint16)
    inputs, targets = WindowDataset(token_ids, context_length=8, stride=8)[3]
    assert inputs.tolist() == list(range(65_524, 65_532)) and torch.equal(targets, inputs + 1)
    assert WindowDataset(token_ids, 8, 8).target_ids().data_ptr() == token_ids.data_ptr() + 2  # 没有复制


def test_read_pages_are_released_every_so_many_windows(monkeypatch):
    monkeypatch.setattr(data_loader, "RELEASE_WINDOWS", 10)
    released = []
    dataset = WindowDataset(torch.arange(100), 8, 1, release=lambda: released.append(len(seen)))
    seen = []
    for index in range(25):
        seen.append(dataset[index])
    assert released == [9, 19]


def test_loaders_do_not_move_the_global_random_state():
    dataset = WindowDataset(torch.arange(60), context_length=5, stride=5)
    before = torch.get_rng_state()
    for loader in (create_dataloader(dataset, 4), create_dataloader(dataset, 4, EpochSampler(len(dataset), 1))):
        list(loader)
    assert torch.equal(torch.get_rng_state(), before)
