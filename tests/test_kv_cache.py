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
