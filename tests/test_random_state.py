"""utils/random_state.py：装回去之后，随机数接着原来的序列。"""

import torch

from utils.random_state import get_random_state, set_random_state

CPU = torch.device("cpu")


def test_sequence_continues_after_restoring():
    state = get_random_state(CPU)
    expected = torch.rand(5)
    torch.rand(100)
    set_random_state(CPU, state)
    assert torch.equal(torch.rand(5), expected)


def test_state_of_another_device_is_left_out():
    state = {**get_random_state(CPU), "cuda": torch.zeros(16, dtype=torch.uint8)}
    set_random_state(CPU, state)
