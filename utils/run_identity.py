"""是不是同一次训练：接着训练之前，把检查点记下的与现在的逐项比较。"""

import hashlib
import json
from dataclasses import MISSING, asdict, dataclass, fields
from pathlib import Path

import torch
from torch import nn

from utils.device import processor_name
from utils.errors import UserError
from utils.settings import TrainingSettings

FIXED_SETTINGS = ("seed", "stride", "optimizer")  # 数据的顺序和优化器的状态由它们决定，中途不能换
QUIET_SETTINGS = ("save_minutes", "save_every", "sample_prompt")  # 不影响怎样训练，改了不必说
SHOWN_CHANGES = 3  # 至多列出几个变了的文件
IN_ENVIRONMENT = ("device", "dtype")  # 实际用的是什么记在环境里


@dataclass(frozen=True)
class RunIdentity:
    """决定一次训练结果的全部东西，都是能写进文件的基本类型。"""

    config: dict
    tokenizer: str  # 指纹
    data: str  # 指纹；许多个文件时每个一行：指纹、编码、名字
    settings: dict
    environment: dict  # {名字: 值}；不同时结果可能有细微差别
    defaults: dict  # {配置字段: 默认值}：比某个字段还早的检查点，那时的做法就是它

    @classmethod
    def of(
        cls, model: nn.Module, data_digest: str, settings: TrainingSettings, dtype: torch.dtype, details: dict
    ) -> "RunIdentity":
        """details 是这个程序自己的、不能中途改变的参数，如微调时训练哪些参数。"""
        device = next(model.parameters()).device
        environment = {
            "设备": device.type if device.type != "cuda" else torch.cuda.get_device_name(device),
            "精度": str(dtype).removeprefix("torch."),
            "线程数": torch.get_num_threads(),
            "torch": str(torch.__version__),
            "处理器": processor_name(),
            "编译": "关" if model._compiled_call_impl is None else "开",
        }
        tokenizer = _digest(model.tokenizer_state)
        effective = {**asdict(settings), "stride": settings.stride or model.cfg.context_length}
        defaults = {field.name: field.default for field in fields(model.cfg) if field.default is not MISSING}
        return cls({**model.cfg.to_dict(), **details}, tokenizer, data_digest, effective, environment, defaults)

    @property
    def data_digest(self) -> str:
        """一行的指纹。"""
        return _digest(self.data) if "\n" in self.data else self.data


def _digest(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def compare_runs(path: Path, recorded: dict, ours: RunIdentity, allow_data_change: bool) -> list[str]:
    """recorded 是检查点 path 里的 asdict(RunIdentity)。不能接着训练的差别抛出 UserError，可以的返回说明。"""
    for field, old, new in _differences({**ours.defaults, **recorded["config"]}, ours.config):
        raise UserError(path, f"{field} 是 {old}，现在是 {new}", "改回原来的，或去掉 --resume 从头训练。")
    if recorded["data"] != ours.data and not allow_data_change:
        named = all(len(line.split(" ")) > 2 for data in (recorded["data"], ours.data) for line in data.split("\n"))
        changes = _changed_files(recorded["data"], ours.data) if named else ""
        raise UserError(path, f"数据与检查点记录的不同{changes}", "换回原文件，或加 --allow_data_change。")
    if recorded["tokenizer"] != ours.tokenizer:
        raise UserError(path, "词表与检查点记录的不同", "换回原来的数据和配置，或去掉 --resume 从头训练。")
    notes = ["提示：数据换过了，还没做的轮次用新的"] if recorded["data"] != ours.data else []
    for field, old, new in _differences(recorded["settings"], ours.settings):
        if field in FIXED_SETTINGS:
            raise UserError(path, f"训练时 --{field} 是 {old}，现在是 {new}", f"改回 --{field} {old}。")
        if field not in QUIET_SETTINGS + IN_ENVIRONMENT:
            notes.append(f"提示：{field} 由 {_show(old)} 改为 {_show(new)}，从这里起用新的")
    changes = [
        f"{name}由 {old} 变为 {new}" for name, old, new in _differences(recorded["environment"], ours.environment)
    ]
    if changes:
        notes.append(f"提示：{'，'.join(changes)}，结果与不中断的训练可能不再逐位相同")
    return notes


def _changed_files(old: str, new: str) -> str:
    """“：某个文件改过了”；没有逐个记下文件的名字则为空。"""
    before, after = ({line.split(" ", 2)[2]: line for line in text.split("\n")} for text in (old, new))
    changes = [
        *(f"{name} 改过了" for name, line in after.items() if before.get(name, line) != line),
        *(f"少了 {name}" for name in before if name not in after),
        *(f"多了 {name}" for name in after if name not in before),
    ]
    more = f" 等 {len(changes):,} 处" if len(changes) > SHOWN_CHANGES else ""
    return f"：{'，'.join(changes[:SHOWN_CHANGES])}{more}" if changes else "：文件的次序变了"


def _differences(old: dict, new: dict) -> list[tuple[str, object, object]]:
    """[(名字, 旧值, 新值)]"""
    return [(name, old.get(name), value) for name, value in new.items() if old.get(name) != value]


def _show(value: object) -> str:
    return "未指定" if value is None else str(value)
