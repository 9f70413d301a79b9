"""训练设置：有哪些、默认值、取值范围。命令行参数优先，其次配置文件的 "training" 一节，最后是这里的默认值。"""

import argparse
import json
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from utils import cli
from utils.errors import UserError

ONLY_PRETRAINING = ("stride", "sample_prompt")  # 微调用不上的设置


def _setting(default: Any, parse: Callable[[str], Any], help: str) -> Any:
    return field(default=default, metadata={"parse": parse, "help": help})


@dataclass(frozen=True)
class TrainingSettings:
    """所有训练程序共用的设置；字段名就是命令行参数名。"""

    epochs: int = _setting(10, cli.positive_int, "最多训练几轮，一轮是把训练数据看一遍")
    max_steps: int | None = _setting(None, cli.positive_int, "最多训练几步（默认不限）")
    max_minutes: float | None = _setting(None, cli.positive_float, "整个命令约用几分钟，学习率按时间衰减（默认不限）")
    batch_size: int = _setting(2, cli.positive_int, "一批几个样本")
    accumulation_steps: int = _setting(1, cli.positive_int, "累积几批的梯度再更新一次参数")
    optimizer: str = _setting("adamw", cli.one_of("adamw", "muon"), "优化器：adamw | muon")
    learning_rate: float = _setting(4e-4, cli.positive_float, "AdamW 的学习率")
    muon_learning_rate: float = _setting(0.02, cli.positive_float, "Muon 更新隐藏层矩阵的学习率")
    warmup_steps: int = _setting(0, cli.non_negative_int, "预热：头几步学习率由小升起，同时照常衰减")
    weight_decay: float = _setting(0.1, cli.non_negative_float, "权重衰减，只作用于矩阵")
    grad_clip: float = _setting(1.0, cli.positive_float, "梯度范数的上限")
    stride: int | None = _setting(None, cli.positive_int, "相邻窗口的距离（默认等于上下文长度，不重叠）")
    eval_freq: int | None = _setting(None, cli.positive_int, "每几步评估一次（默认全程至少 20 次，开头密些）")
    eval_iter: int | None = _setting(
        None, cli.positive_int, "评估用几批，每批总是 16 个样本（默认使评估至多占时间的 3%%）"
    )
    sample_prompt: str | None = _setting(None, cli.plain_text, "训练后用这段文字开头写一段（默认取验证部分的开头）")
    seed: int = _setting(123, cli.seed_int, "随机种子")
    dtype: str = _setting("auto", cli.dtype_name, f"计算精度：{cli.DTYPES}")
    device: str = _setting("auto", cli.device_name, f"设备：{cli.DEVICES}")
    save_minutes: float | None = _setting(
        None, cli.positive_float, "每几分钟存一次检查点（默认 5；存得太慢时拉长，不超过训练时间的 1/50）"
    )
    save_every: int | None = _setting(None, cli.positive_int, "每几步存一次检查点（默认只看时间）")
    keep: str = _setting("best", cli.one_of("best", "last"), "保存验证损失最低的权重还是最后的：best | last")

    @classmethod
    def from_sources(cls, section: dict, args: argparse.Namespace, config_path: Path) -> "TrainingSettings":
        """section 是配置文件的 "training" 一节，args 里没有给出的参数为 None。"""
        known = {item.name: item for item in fields(cls)}
        values = {}
        for name, value in section.items():
            if name not in known:
                raise UserError(config_path, f'"training" 里有未知字段 {name}', f"可用的有：{'、'.join(known)}。")
            values[name] = _check_json_value(known[name], value, config_path)
        given = {name: getattr(args, name) for name in known if getattr(args, name, None) is not None}
        settings = cls(**{**values, **given})
        if "muon_learning_rate" in given and settings.optimizer != "muon":
            advice = "加上 --optimizer muon，或去掉 --muon_learning_rate。"
            raise UserError("--muon_learning_rate", "只与 --optimizer muon 同用", advice)
        return settings


def _check_json_value(item: Any, value: Any, config_path: Path) -> Any:
    """配置文件里的值与命令行用同一个检查，但数字就要写成数字，不能写成字符串。"""
    if value is None and item.default is None:
        return None
    text = value if isinstance(value, str) else str(value)
    is_text_setting = isinstance(item.default, str) or item.name == "sample_prompt"
    place = f'"training" 的 {item.name}'
    if isinstance(value, bool) or isinstance(value, str) != is_text_setting:
        kind, advice = ("文字", "加上引号。") if is_text_setting else ("数字", "去掉引号。")
        reason = f"{place} 类型不对，应写成{kind}，收到 {json.dumps(value, ensure_ascii=False)}"
        raise UserError(config_path, reason, advice if isinstance(value, str) or is_text_setting else f"改成{kind}。")
    try:
        return item.metadata["parse"](text)
    except argparse.ArgumentTypeError as error:
        default = "" if item.default is None else f" {item.default}"
        raise UserError(config_path, f"{place} {error}", f"改掉它，或删去这一项用默认值{default}。") from None


def add_training_arguments(
    parser: argparse.ArgumentParser, defaults: dict | None = None, leave_out: tuple[str, ...] = ()
) -> None:
    """把训练设置变成命令行参数；没有给出的为 None，好让配置文件说话。

    defaults 是程序自己的默认值；leave_out 里的设置这个程序用不上。
    """
    for item in fields(TrainingSettings):
        if item.name in leave_out:
            continue
        value = (defaults or {}).get(item.name, item.default)
        default = "" if value is None else f"（默认 {value}）"
        parser.add_argument(f"--{item.name}", type=item.metadata["parse"], help=item.metadata["help"] + default)
    add = parser.add_argument
    add("--resume", action="store_true", help="从上次的检查点继续，其余参数要与上次写得一样（默认从头训练）")
    add("--allow_data_change", action="store_true", help="数据改过也继续（默认不许）")
    add("--allow_process_change", action="store_true", help="进程数或并行方式变了也继续（默认不许）")
    modes = f"几个进程怎样一起训练，用 torchrun 启动才有：{cli.PARALLEL_MODES}（默认 %(default)s）"
    add("--parallel", type=cli.parallel_mode, default="auto", help=modes)
    add("--patience", type=cli.positive_float, default=600.0, help="等别的进程最多几秒，再久就停下（默认 %(default)g）")
    add("--compile", action="store_true", help="用 torch.compile 编译：开头慢，之后快（默认不编译）")
    add("--dry_run", action="store_true", help="只算不练：试跑几步，报出内存和时间，什么也不写（默认不用）")
