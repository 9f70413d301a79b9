"""一次比较里有哪几种配置：几个配置文件，几个字段的几种取值，全部搭配起来。不引用 torch，写错了立刻有回应。"""

import argparse
import copy
import difflib
import itertools
import json
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from utils.config_file import ConfigFile, build_config, read_values
from utils.errors import UserError
from utils.settings import TrainingSettings

TRAINING_FIELDS = tuple(item.name for item in fields(TrainingSettings))
TOKENIZER_FIELDS = ("tokenizer.type", "tokenizer.vocab_size", "tokenizer.split")
BUDGET_FIELDS = ("epochs", "max_steps", "max_minutes")
FILE_COLUMN = "配置"


@dataclass(frozen=True)
class Choice:
    """几个字段一起取的几组值，如 num_layers:emb_dim=2:256,8:144。"""

    names: tuple[str, ...]
    options: tuple[tuple[str, ...], ...]  # 照命令行上写的


@dataclass(frozen=True)
class Variation:
    """表里的一行：label 说明它与别的有什么不同，config 是检查过的配置，values 是能写成配置文件的字段。"""

    label: tuple[str, ...]
    config: ConfigFile
    settings: TrainingSettings
    values: dict


def parse_choice(text: str) -> Choice:
    """num_layers=2,4 或 num_layers:emb_dim=2:256,8:144"""
    names, equals, options = text.partition("=")
    choice = Choice(tuple(names.split(":")), tuple(tuple(option.split(":")) for option in options.split(",")))
    if not equals or not all(choice.names) or not all(map(all, choice.options)):
        raise argparse.ArgumentTypeError(f"应写成 字段=值1,值2,…，收到 {text or '空的文字'}")
    for option in choice.options:
        if len(option) != len(choice.names):
            reason = f"{names} 是 {len(choice.names)} 个字段，{':'.join(option)} 是 {len(option)} 个值"
            raise argparse.ArgumentTypeError(f"{reason}，个数应相同")
    return choice


def parse_assignment(text: str) -> Choice:
    """drop_rate=0.1，只有一个值。"""
    choice = parse_choice(text)
    if len(choice.options) > 1:
        raise argparse.ArgumentTypeError(f"只能有一个值，收到 {text}；比较几个值用 --vary")
    return choice


def check_names(fixed: list[Choice], varied: list[Choice], model_fields: list[str]) -> None:
    """每个字段都要存在，至多变一次，也不能是预算。fixed 来自 --set，varied 来自 --vary。"""
    known = [*model_fields, *TRAINING_FIELDS, *TOKENIZER_FIELDS]
    flags = [("--set", name) for choice in fixed for name in choice.names]
    flags += [("--vary", name) for choice in varied for name in choice.names]
    names = [name for _, name in flags]
    for flag, name in flags:
        if name in BUDGET_FIELDS:
            raise UserError(flag, f"不能改 {name}", "训练多久由 --minutes 或 --flops 决定，各配置相同。")
        if name not in known:
            close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
            advice = f"是否想写 {close[0]}？" if close else f"可用的有：{'、'.join(known)}。"
            raise UserError(flag, f"没有字段 {name}", advice)
        if names.count(name) > 1:
            raise UserError(flag, f"{name} 给了不止一次", "同一个字段写在一个 --set 或 --vary 里。")


def expand(
    paths: list[Path], fixed: list[Choice], varied: list[Choice], build_model_config: Callable[[dict], Any]
) -> list[Variation]:
    """每个配置文件 × 每组取值，逐个检查；任何一个不成立都抛出 UserError。"""
    variations = []
    for path in paths:
        base = read_values(path)
        build_config(base, path, build_model_config)
        for options in itertools.product(*(choice.options for choice in varied)):
            changes = [("--set", choice.names, choice.options[0]) for choice in fixed]
            changes += [("--vary", choice.names, option) for choice, option in zip(varied, options, strict=True)]
            label = ((_name_of(path, paths),) if len(paths) > 1 else ()) + tuple(map(":".join, options))
            variations.append(_vary(base, path, changes, label or (path.stem,), build_model_config))
    labels = [variation.label for variation in variations]
    for label in labels:
        if labels.count(label) > 1:
            flag = "--vary" if varied else "--configs"
            raise UserError(flag, f"{' '.join(label)} 给了不止一次", "去掉重复的。")
    return variations


def label_header(paths: list[Path], varied: list[Choice]) -> tuple[str, ...]:
    """Variation.label 各项的名字。"""
    names = ((FILE_COLUMN,) if len(paths) > 1 else ()) + tuple(":".join(choice.names) for choice in varied)
    return names or (FILE_COLUMN,)


def _name_of(path: Path, paths: list[Path]) -> str:
    """不带文件夹和后缀的名字；有重名的就用整个路径。"""
    return path.stem if sum(other.stem == path.stem for other in paths) == 1 else str(path)


def _vary(
    base: dict, path: Path, changes: list[tuple], label: tuple[str, ...], build_model_config: Callable[[dict], Any]
) -> Variation:
    values = {"training": {}, "tokenizer": {"type": "gpt2"}, **copy.deepcopy(base)}
    for _, names, option in changes:
        for name, text in zip(names, option, strict=True):
            _set_field(values, name, _parse_value(text))
    changed = " ".join(f"{flag} {':'.join(names)}={':'.join(option)}" for flag, names, option in changes)
    subject = Path(f"{changed}（{path}）") if changed else path
    config = build_config(values, subject, build_model_config)
    settings = TrainingSettings.from_sources(config.training, argparse.Namespace(), subject)
    return Variation(label, config, settings, values)


def _set_field(values: dict, name: str, value: Any) -> None:
    """词表的大小写一处就够：模型的和分词器的总是一起变。"""
    if name in TRAINING_FIELDS:
        values["training"][name] = value
    elif name == "tokenizer.type" and value == "gpt2":
        values["tokenizer"] = {"type": value}
    elif name in ("vocab_size", "tokenizer.vocab_size"):
        values["vocab_size"] = value
        if values["tokenizer"]["type"] == "bpe" or name != "vocab_size":
            values["tokenizer"]["vocab_size"] = value
    elif name in TOKENIZER_FIELDS:
        values["tokenizer"][name.removeprefix("tokenizer.")] = value
    else:
        values[name] = value


def _parse_value(text: str) -> Any:
    """照配置文件里的写法；不是 JSON 的就是文字，如 muon。"""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text
