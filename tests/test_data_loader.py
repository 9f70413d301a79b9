"""utils/data_loader.py：划分、窗口、顺序。"""

import pytest
import torch

from utils.data_loader import EpochSampler, WindowDataset, create_dataloader, split_text


def test_split_is_by_position():
    train, validate = split_text("0123456789" * 10)
    assert len(train) == 90 and train + validate == "0123456789" * 10


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

    assert order(1, 1) == order(1, 1)
    assert sorted(order(1, 1)) == list(range(100))
    assert order(1, 1) != order(1, 2) and order(1, 1) != order(2, 1)


def test_loaders_do_not_move_the_global_random_state():
    dataset = WindowDataset(torch.arange(60), context_length=5, stride=5)
    before = torch.get_rng_state()
    for loader in (create_dataloader(dataset, 4), create_dataloader(dataset, 4, EpochSampler(len(dataset), 1))):
        list(loader)
    assert torch.equal(torch.get_rng_state(), before)
