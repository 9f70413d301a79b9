"""分片的张量 (DTensor) 与普通的一样用；没有分片的原样返回。FSDP 把每个参数按行分给各个进程。"""

from torch import Tensor


def is_sharded(tensor: Tensor) -> bool:
    return hasattr(tensor, "full_tensor")


def local(tensor: Tensor) -> Tensor:
    """这个进程的那一份，与原来的是同一处内存。"""
    return tensor.to_local() if is_sharded(tensor) else tensor


def whole(tensor: Tensor) -> Tensor:
    """合成整个的；分片时每个进程都要调用。"""
    return tensor.full_tensor() if is_sharded(tensor) else tensor


def split_like(tensor: Tensor, like: Tensor) -> Tensor:
    """整个的 tensor 照 like 的样子分片，各进程取自己的那几行；like 没有分片，或 tensor 已经分好，就是它自己。"""
    if not is_sharded(like) or is_sharded(tensor):
        return tensor
    from torch.distributed.tensor import distribute_tensor  # 只有一个进程时不必载入

    return distribute_tensor(tensor, like.device_mesh, like.placements, src_data_rank=None)
