"""整个的权重与各个进程的那一份互换：torch.distributed.checkpoint.state_dict 来做。整个的只在进程 0 的内存里。"""

from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict, set_model_state_dict

from utils import sharded_tensor


def gather_full_state(model: nn.Module) -> dict:
    """整个的 state_dict；进程 0 以外是空的。每个进程都要调用。"""
    full = get_model_state_dict(model, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
    first = {}
    for name, value in model.state_dict().items():
        if isinstance(value, Tensor) and full:  # 共用的矩阵仍是同一个，文件里才只有一份
            storage = sharded_tensor.local(value).untyped_storage()._cdata
            full[name] = full[first.setdefault(storage, name)]
    return full


def scatter_full_state(model: nn.Module, full: dict[str, Tensor] | None) -> None:
    """进程 0 的 {名字: 整个的张量} 装进每个进程的 model，分了片的各取自己的那几行；别的进程给 None。"""
    rest = {name: value for name, value in model.state_dict().items() if not isinstance(value, Tensor)}
    options = StateDictOptions(full_state_dict=True, broadcast_from_rank0=True, strict=False)
    set_model_state_dict(model, {**rest, **full} if full else {}, options=options)
