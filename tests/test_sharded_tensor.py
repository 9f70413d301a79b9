"""utils/sharded_tensor.py：没有分片的张量原样返回。分片的在 test_distributed.py。"""

import torch
from torch.nn import Parameter

from utils import sharded_tensor


class Rows:
    """第 number 个进程（共 count 个）的那几行，像 DTensor 那样。"""

    def __init__(self, whole: torch.Tensor, number: int, count: int):
        self.whole, self.number, self.count = whole, number, count
        chunks = whole.chunk(count)
        self.own = chunks[number].clone() if number < len(chunks) else whole[:0].clone()
        self.device_mesh = self

    def full_tensor(self):
        return self.whole

    def to_local(self):
        return self.own

    def get_local_rank(self):
        return self.number

    def size(self):
        return self.count


def test_plain_tensors_pass_through():
    tensor, other = torch.ones(3, 2), torch.zeros(3, 2)
    assert not sharded_tensor.is_sharded(tensor)
    for result in (sharded_tensor.local(tensor), sharded_tensor.whole(tensor), sharded_tensor.own_rows(tensor, other)):
        assert result is tensor
    assert sharded_tensor.split_like(tensor, other) is tensor
    sharded_tensor.copy_rows(other, tensor)
    assert torch.equal(other, tensor)


def test_rows_are_cut_as_torch_chunks_them():
    for length in (1, 2, 5, 7, 8):
        whole = torch.arange(length * 3.0).view(length, 3)
        for number in range(4):
            part = Rows(whole, number, 4)
            assert torch.equal(sharded_tensor.own_rows(whole, part), part.own)
            sharded_tensor.copy_rows(part, whole + 1)
            assert torch.equal(part.own, sharded_tensor.own_rows(whole + 1, part))


def test_copying_into_a_parameter_needs_no_gradient():
    parameter = Parameter(torch.zeros(2))
    sharded_tensor.copy_rows(parameter, torch.ones(2))
    assert parameter.tolist() == [1, 1] and parameter.grad_fn is None
