"""微调时训练哪些参数：头、最后一块、全部，或低秩适配器。"""

from collections.abc import Callable

from torch import nn

from model.lora import LoRAConfig, add_lora


def _head(model: nn.Module, lora: LoRAConfig) -> None:
    """只训练输出层和最后的归一化：最快，主干学到的东西原样保留。"""
    model.requires_grad_(False)
    for module in (model.final_norm, model.out_head):
        module.requires_grad_(True)


def _last_block(model: nn.Module, lora: LoRAConfig) -> None:
    """再加上最后一个块。"""
    _head(model, lora)
    model.trf_blocks[-1].requires_grad_(True)


def _all(model: nn.Module, lora: LoRAConfig) -> None:
    model.requires_grad_(True)


def _lora(model: nn.Module, lora: LoRAConfig) -> None:
    """各块的投影用低秩适配器；分类的头是新的，也要训练。"""
    add_lora(model, lora)
    if hasattr(model, "labels"):
        model.out_head.requires_grad_(True)


TRAINABLE: dict[str, Callable[[nn.Module, LoRAConfig], None]] = {
    "head": _head,
    "last_block": _last_block,
    "all": _all,
    "lora": _lora,
}


def set_trainable(model: nn.Module, mode: str, lora: LoRAConfig) -> None:
    """按 TRAINABLE 的名字冻结其余的参数；lora 只在 mode 为 lora 时有用。"""
    TRAINABLE[mode](model, lora)
