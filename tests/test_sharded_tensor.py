"""utils/sharded_tensor.py：没有分片的张量原样返回。分片的在 test_distributed.py。"""

import torch

from utils import sharded_tensor


def test_plain_tensors_pass_through():
    tensor, other = torch.ones(3, 2), torch.zeros(3, 2)
    assert not sharded_tensor.is_sharded(tensor)
    for result in (sharded_tensor.local(tensor), sharded_tensor.whole(tensor)):
        assert result is tensor
    assert sharded_tensor.split_like(tensor, other) is tensor
