"""读配置文件：configs/*.json 里是模型配置，外加可选的 "training" 和 "tokenizer" 两节。"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from utils.errors import UserError
from utils.files import read_input_file
from utils.json_errors import json_error

CONFIGS_DIR = Path(__file__).resolve().parent.parent / "configs"
TOKENIZER_TYPES = ("gpt2", "bpe")
TOKENIZER_SPLITS = ("gpt2", "han")  # 与 text_utils.SPLIT_PATTERNS 的名字相同；那边要载入 torch，这里不等它
MIN_BPE_VOCAB_SIZE = 257  # 256 个字节和一个文本结束符
MAX_BPE_VOCAB_SIZE = 1_000_000  # 训练词表的库按它预留内存
MAX_DIGITS = 1000
BOOK_NAMES = {"n_heads": "num_heads", "n_layers": "num_layers"}  # 《从零构建大模型》里的叫法
EXAMPLE = "写法见 configs/pocket_config_3M.json。"


@dataclass(frozen=True)
class ConfigFile:
    """配置文件的内容。"""

    path: Path
    model: Any  # build_model_config 的结果
    tokenizer: dict  # {"type": "gpt2"} 或 {"type": "bpe", "vocab_size": N, "split": "gpt2" | "han"}
    training: dict  # 训练设置，还未检查


def read_config(path: Path, build_model_config: Callable[[dict], Any]) -> ConfigFile:
    """读出并检查配置文件；任何问题都抛出写明文件和字段的 UserError。"""
    return build_config(read_values(path), path, build_model_config)


def read_values(path: Path) -> dict:
    """读出配置文件里的各个字段，还未检查。"""
    available = "、".join(sorted(item.name for item in CONFIGS_DIR.glob("*.json")))
    values = _parse_json(read_input_file(path, "配置文件", f"configs/ 下可用：{available}。"), path)
    for theirs, ours in BOOK_NAMES.items():
        if theirs in values and ours in values:
            raise UserError(path, f"{theirs} 和 {ours} 是同一个字段", "只留一个。")
    return {BOOK_NAMES.get(name, name): value for name, value in values.items()}


def build_config(values: dict, path: Path, build_model_config: Callable[[dict], Any]) -> ConfigFile:
    """检查各个字段；path 是出错时的称呼。"""
    values = dict(values)
    training = values.pop("training", {})
    tokenizer = values.pop("tokenizer", {"type": "gpt2"})
    if not isinstance(training, dict):
        raise UserError(path, '"training" 应为一个对象 {…}', EXAMPLE)
    _check_tokenizer(tokenizer, path)
    try:
        return ConfigFile(path, build_model_config(values), tokenizer, training)
    except ValueError as error:
        raise UserError(path, str(error), "" if str(error).endswith("？") else EXAMPLE) from None


def _parse_json(data: bytes, path: Path) -> dict:
    hooks = {"object_pairs_hook": _without_duplicates, "parse_constant": _reject_constant, "parse_int": _parse_int}
    try:
        values = json.loads(data.decode("utf-8-sig"), **hooks)
    except UnicodeDecodeError as error:
        raise UserError(path, f"第 {error.start + 1} 字节不是 UTF-8", "请另存为 UTF-8。") from None
    except _FieldError as error:
        raise UserError(path, *error.args) from None
    except (json.JSONDecodeError, RecursionError) as error:
        raise json_error(path, error, f"改好这一处。{EXAMPLE}") from None
    if not isinstance(values, dict):
        raise UserError(path, "最外层应为一个对象 {…}", EXAMPLE)
    return values


class _FieldError(ValueError):
    """JSON 没错，里面的字段却不行：为什么、怎么办。"""


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict:
    values = {}
    for key, value in pairs:
        if key in values:
            raise _FieldError(f"字段 {key} 重复", "只留一个。")
        values[key] = value
    return values


def _reject_constant(name: str):
    raise _FieldError(f"{name} 不是合法的数值", "改成普通的数。")


def _parse_int(digits: str) -> int:
    if len(digits) > MAX_DIGITS:  # Python 也不肯转换几千位的整数
        raise _FieldError(f"{digits[:MAX_DIGITS]}… 不是合法的数值", "改成普通的数。")
    return int(digits)


def _check_tokenizer(tokenizer: Any, path: Path) -> None:
    if not isinstance(tokenizer, dict):
        example = '{"type": "gpt2"}'
        raise UserError(path, f'"tokenizer" 应为一个对象，如 {example}，收到 {json.dumps(tokenizer)}', EXAMPLE)
    kind = tokenizer.get("type")
    if kind not in TOKENIZER_TYPES:
        choices = " | ".join(TOKENIZER_TYPES)
        raise UserError(path, f'"tokenizer" 的 type 应为 {choices} 之一，收到 {json.dumps(kind)}', EXAMPLE)
    allowed = {"type", "vocab_size", "split"} if kind == "bpe" else {"type"}
    if unknown := set(tokenizer) - allowed:
        known = f"{kind} 可以有的：{'、'.join(sorted(allowed))}。"
        raise UserError(path, f'"tokenizer" 里有未知字段 {"、".join(sorted(unknown))}', known)
    if tokenizer.get("split", TOKENIZER_SPLITS[0]) not in TOKENIZER_SPLITS:
        choices = " | ".join(TOKENIZER_SPLITS)
        reason = f'"tokenizer" 的 split 应为 {choices} 之一，收到 {json.dumps(tokenizer["split"])}'
        raise UserError(path, reason, EXAMPLE)
    size = tokenizer.get("vocab_size")
    if kind == "bpe" and (type(size) is not int or not MIN_BPE_VOCAB_SIZE <= size <= MAX_BPE_VOCAB_SIZE):
        span = f"{MIN_BPE_VOCAB_SIZE} 到 {MAX_BPE_VOCAB_SIZE} 的整数"
        raise UserError(path, f'"tokenizer" 的 vocab_size 应为 {span}，收到 {json.dumps(size)}', EXAMPLE)
