"""由模型文件建立模型：配置以文件里记的为准，检查之后才占内存。"""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from utils.book_weights import complete_config
from utils.compact_weights import compact_weights
from utils.config_file import ConfigFile
from utils.device import check_memory
from utils.errors import UserError
from utils.hugging_face import open_weights_file
from utils.memory import estimate_generation_bytes
from utils.model_file import ModelFile, build_model, check_config, has_tied_weights, tokenizer_of
from utils.text_utils import Tokenizer
from utils.weight_speed import fastest_format


def open_language_model(path: Path) -> ModelFile:
    """打开能续写的模型，可以是 Hugging Face 的（已经过 check_weights_file）；分类模型不能续写，抛出 UserError。"""
    file = open_weights_file(path)
    if file.labels is not None:
        raise UserError(path, "是分类模型，不能续写", "用 python classify.py --model_path 指向它。")
    return file


def load_model(
    file: ModelFile,
    read_config: Callable[[dict], Any],
    make_model: Callable[[Any], nn.Module],
    config: ConfigFile | None = None,
    bytes_per_weight: int = 4,
) -> tuple[nn.Module, Tokenizer]:
    """-> (make_model(配置) 的模型, 分词器)。bytes_per_weight 是将要用的格式一个权重占几个字节。

    文件说明了自己就以它为准，config 只能与它一致；别的项目的权重见 book_weights.py；否则必须给出 config。
    """
    recorded = complete_config(file, config) if file.project else file.config
    if recorded is None and config is None:
        raise UserError(file.path, "里面只有权重，没有记录配置", "用 --config 给出训练时的配置文件。")
    try:
        cfg = config.model if recorded is None else read_config(recorded)
    except (ValueError, TypeError) as error:
        raise UserError(file.path, f"记录的配置不成立（{error}）", "更新 PocketLLM，或换一个模型文件。") from None
    if recorded is None:  # 没有自述的文件也没有说明是否共用矩阵，看权重便知
        cfg = dataclasses.replace(cfg, tie_weights=has_tied_weights(file))
    elif config and not file.project:
        _check_same_config(config, cfg, file)
    tokenizer = tokenizer_of(file, config.tokenizer if config else None)
    if cfg.vocab_size < tokenizer.vocab_size:
        reason = f"vocab_size={cfg.vocab_size} 小于分词器词表 {tokenizer.vocab_size}"
        raise UserError(file.path, reason, "换一个完好的模型文件。")
    config_name = config.path if config else "认出的配置" if file.project else "它记录的配置"
    check_config(file, cfg, config_name)
    needed = estimate_generation_bytes(cfg, cfg.num_parameters, bytes_per_weight)
    check_memory(needed, torch.device("cpu"), "换一个更小的模型。")
    return build_model(lambda: make_model(cfg), file, config_name), tokenizer


def load_to_train(
    path: Path,
    read_config: Callable[[dict], Any],
    make_model: Callable[[Any], nn.Module],
    config: ConfigFile | None = None,
) -> tuple[nn.Module, Tokenizer]:
    """接着训练或微调的起点（path 已经过 check_weights_file）：同 load_model，权重一律变成 float32。"""
    model, tokenizer = load_model(open_language_model(path), read_config, make_model, config)
    return model.float(), tokenizer


def move_model(model: nn.Module, device: torch.device, number_format: str) -> nn.Module:
    """把模型搬到设备上，换成要用的数的格式。CPU 上只换线性层的权重；auto 挑这台机器上最快的，别的设备用 float32。"""
    if device.type != "cpu":
        return model.to(device, torch.float32 if number_format == "auto" else getattr(torch, number_format))
    model = model.float()
    if number_format == "auto":
        number_format = fastest_format(model)
    if number_format != "float32":
        compact_weights(model, number_format)
    return model


def _check_same_config(given: ConfigFile, cfg: Any, file: ModelFile) -> None:
    """--config 与模型文件的自述不同就报错，指出第一个不同的字段。"""
    recorded = {**cfg.to_dict(), "tokenizer": file.tokenizer["type"]}
    for name, ours in {**given.model.to_dict(), "tokenizer": given.tokenizer["type"]}.items():
        if ours != recorded[name]:
            reason = f"{given.path} 的 {name} 是 {ours}，{file.path} 训练时是 {recorded[name]}"
            raise UserError("--config", reason, "去掉 --config，模型文件里记着配置。")
