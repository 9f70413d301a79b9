"""utils/parallel.py：样本怎样分给各个进程。真的一起训练在 test_distributed.py。"""

import pytest
import torch

from conftest import tiny_config
from model.language_model import LanguageModel
from utils.cross_entropy import IGNORE_INDEX
from utils.data_loader import EpochSampler, WindowDataset, create_dataloader, with_batches
from utils.parallel import CollateOrEmpty, OneProcess, OwnShares, Replicated
from utils.settings import TrainingSettings
from utils.train_utils import calc_loss_batch
from utils.training_memory import TrainingMemory


def shares_of(num_samples: int, world_size: int, batch_size: int, accumulation_steps: int) -> list[list[list[int]]]:
    """各个进程的各批。"""
    everyone = []
    for rank in range(world_size):
        shares = OwnShares(EpochSampler(num_samples, seed=7), batch_size, accumulation_steps)
        shares.rank, shares.world_size = rank, world_size
        everyone.append(list(shares))
    return everyone


@pytest.mark.parametrize("world_size", [1, 2, 3, 4, 7])
@pytest.mark.parametrize(
    ("num_samples", "batch_size", "accumulation_steps"), [(23, 4, 3), (24, 4, 1), (5, 8, 2), (1, 2, 1)]
)
def test_every_sample_goes_to_one_process_in_its_own_update(world_size, num_samples, batch_size, accumulation_steps):
    everyone = shares_of(num_samples, world_size, batch_size, accumulation_steps)
    used = sorted(index for own in everyone for batch in own for index in batch)
    assert used == list(range(num_samples))
    assert len({len(own) for own in everyone}) == 1  # 批数相同，交换的次数才相同
    assert max(len(batch) for own in everyone for batch in own) <= batch_size
    shares = OwnShares(EpochSampler(num_samples, seed=7), batch_size, accumulation_steps)
    shares.world_size = world_size
    count = shares.num_batches(min(num_samples, batch_size * accumulation_steps))
    first_update = [index for own in everyone for batch in own[:count] for index in batch]
    assert sorted(first_update) == sorted(list(EpochSampler(num_samples, seed=7))[: batch_size * accumulation_steps])


def test_more_processes_accumulate_less():
    assert len(shares_of(24, 1, 4, 3)[0]) == 6  # 两次更新，各累积三批
    assert len(shares_of(24, 3, 4, 3)[0]) == 2  # 三个进程，各算一批


def test_batches_are_read_only_by_their_process():
    read = []

    class Dataset(WindowDataset):
        def __getitem__(self, index):
            read.append(index)
            return super().__getitem__(index)

    dataset = Dataset(torch.arange(161), 16, 16)
    loader = create_dataloader(dataset, 2, EpochSampler(len(dataset), 1))
    list(with_batches(loader, [[3, 1], [4]]))
    assert read == [3, 1, 4]


def test_empty_share_gives_zero_gradients_for_every_parameter():
    inputs, targets = CollateOrEmpty(lambda samples: None)([])
    assert (targets == IGNORE_INDEX).all()
    model = LanguageModel(tiny_config())
    loss = calc_loss_batch(model, inputs, targets)
    loss.backward()
    assert loss.item() == 0 and all((parameter.grad == 0).all() for parameter in model.parameters())


def test_memory_of_one_process_counts_its_own_share(monkeypatch):
    settings = TrainingSettings(batch_size=8, accumulation_steps=2)
    memory = TrainingMemory(tiny_config(), settings, torch.device("cpu"), 1000, 1000)
    monkeypatch.setattr("utils.parallel.processes.world_size", lambda: 4)
    assert OneProcess().own_memory(memory).batch_size == 8
    assert Replicated().own_memory(memory).batch_size == 4
