"""适配器文件：LoRA 学到的那一小部分单独存放，用时加到原来的模型上。"""

import math
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor, nn

from utils.archive import check_archive
from utils.cli import LORA_PROJECTIONS
from utils.errors import UserError
from utils.model_file import DESCRIPTION_KEY, check_tensors, load_state, save_state
from utils.processes import is_main

LORA_PREFIX = "lora_"  # 与 model/lora.py 的 PREFIX 相同
NOT_AN_ADAPTER = "已损坏或不是适配器文件"
FIND_ADAPTER = "用 --trainable lora 微调时写出，在模型文件旁边，名字以 .lora 结尾。"
KINDS = {
    "rank": int,
    "alpha": float,
    "projections": str,
    "base": str,
    "labels": (list, type(None)),
    "template": (str, type(None)),
}


@dataclass(frozen=True)
class AdapterFile:
    """适配器文件的内容。"""

    path: Path
    state: dict  # model.adapter_state_dict() 的结果
    labels: list[str] | None  # 分类模型的标签
    template: str | None  # 指令模型的提示语模板


def save_adapter(path: Path, model: nn.Module) -> None:
    """model 加过 LoRA 就把适配器写进 path，没有就什么也不做。"""
    if (state := model.adapter_state_dict()) and is_main():
        save_state(path, state)


def read_adapter(path: Path) -> AdapterFile:
    """检查并读出适配器；有任何不对都抛出 UserError。"""
    check_archive(path, "适配器文件", FIND_ADAPTER)
    state = load_state(path, mmap=False)
    description = state.get(DESCRIPTION_KEY)
    if not isinstance(description, dict) or description.keys() != KINDS.keys():
        raise UserError(path, NOT_AN_ADAPTER, FIND_ADAPTER)
    tensors = {name: value for name, value in state.items() if name != DESCRIPTION_KEY}
    check_tensors(path, tensors)
    if not _is_description(description, tensors):
        raise UserError(path, NOT_AN_ADAPTER, FIND_ADAPTER)
    return AdapterFile(path, state, description["labels"], description["template"])


def _is_description(description: dict, tensors: dict[str, Tensor]) -> bool:
    """各项的类型和范围都对，秩与张量相同：照它建立适配器，占的内存才不会比文件大多少。"""
    if not all(isinstance(description[name], kind) for name, kind in KINDS.items()):
        return False
    ranks = {len(tensor) for name, tensor in tensors.items() if name.endswith(f".{LORA_PREFIX}A") and tensor.dim() == 2}
    return (
        all(isinstance(label, str) for label in description["labels"] or [])
        and type(description["rank"]) is int  # True 也是 int
        and ranks == {description["rank"]}
        and math.isfinite(description["alpha"])
        and description["projections"] in LORA_PROJECTIONS
    )


def apply_adapter(model: nn.Module, file: AdapterFile) -> None:
    """把适配器合并进 model；它修正的不是这个模型就抛出 UserError。"""
    try:
        model.merge_adapter(file.state)
    except ValueError as error:
        raise UserError(file.path, f"适配器{error}", "用 --model_path 给出微调时开始的那个模型。") from None
