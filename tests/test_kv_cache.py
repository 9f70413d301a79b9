"""model/kv_cache.py"""

import torch

from conftest import tiny_config
from model.kv_cache import KVCache


def test_append_returns_everything_so_far_per_layer():
    cache = KVCache(tiny_config(num_kv_heads=2), batch_size=3)
    first, second = torch.randn(2, 3, 2, 4, 8), torch.randn(2, 3, 2, 1, 8)
    for layer in range(2):
        cache.append(layer, first[layer], -first[layer])
    cache.length += 4
    keys, values = cache.append(1, second[1], -second[1])
    assert torch.equal(keys, torch.cat((first[1], second[1]), dim=2))
    assert torch.equal(values, -keys)


def test_copy_shares_nothing():
    cache = KVCache(tiny_config(), batch_size=1)
    cache.append(0, torch.ones(1, 4, 2, 8), torch.ones(1, 4, 2, 8))
    cache.length = 2
    other = cache.copy()
    other.append(0, torch.full((1, 4, 1, 8), 7.0), torch.zeros(1, 4, 1, 8))
    other.length += 1
    assert cache.length == 2 and cache.keys[0, 0, 0, 2].sum() == 0
    assert torch.equal(other.keys[:, :, :, :2], cache.keys[:, :, :, :2])
