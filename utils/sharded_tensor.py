"""分片的张量 (DTensor) 与普通的一样用：取这个进程的那一份，或合成整个的。没有分片的原样返回。

FSDP 把每个参数按行分给各个进程；别处只靠这里的几个函数，不必知道有没有分。
"""

import torch
from torch import Tensor


def is_sharded(tensor: Tensor) -> bool:
    return hasattr(tensor, "full_tensor")


def local(tensor: Tensor) -> Tensor:
    """这个进程的那一份，与原来的是同一处内存。"""
    return tensor.to_local() if is_sharded(tensor) else tensor


def whole(tensor: Tensor) -> Tensor:
    """合成整个的；分片时每个进程都要调用。"""
    return tensor.full_tensor() if is_sharded(tensor) else tensor


def own_rows(tensor: Tensor, like: Tensor) -> Tensor:
    """整个的 tensor 里，属于这个进程的那几行；怎样分与 like 相同。"""
    if not is_sharded(like):
        return tensor
    number, count = like.device_mesh.get_local_rank(), like.device_mesh.size()
    rows = -(-len(tensor) // count)  # 每份一样多，末尾的少些，或没有
    return tensor[rows * number : rows * (number + 1)]


def split_like(tensor: Tensor, like: Tensor) -> Tensor:
    """整个的 tensor 照 like 的样子分片；like 没有分片，或 tensor 已经分好，就是它自己。"""
    if not is_sharded(like) or is_sharded(tensor):
        return tensor
    parts = torch.zeros_like(like, requires_grad=False)
    copy_rows(parts, tensor)
    return parts


@torch.no_grad()
def copy_rows(target: Tensor, tensor: Tensor) -> None:
    """把整个的 tensor 里属于这个进程的那几行，复制进 target。"""
    local(target).copy_(own_rows(tensor, target))
