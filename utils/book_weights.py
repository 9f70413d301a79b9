"""别的项目的权重换成我们的名字：《从零构建大模型》(LLMs-from-scratch) 的 GPTModel，和 PocketLLM 的早期版本。

它们只有权重，没有自述：配置由来历和形状得出，头数看不出，按每头 64 维，或由 --config 给出。
"""

import dataclasses
import re
from dataclasses import dataclass

from torch import Tensor

from utils.config_file import ConfigFile
from utils.errors import UserError
from utils.model_file import ModelFile, has_tied_weights

HEAD_DIM = 64  # 与 GPT-2 的四种大小相同
DROP_RATE = 0.1
BLOCK = re.compile(r"(trf_blocks\.\d+\.)(.+)")
ONLY_LANGUAGE_MODELS = "只能读取语言模型的权重；换了分类的头、加了 LoRA、改了结构的都不行。"


@dataclass(frozen=True)
class Project:
    """一个项目怎样给权重起名：{它的名字: 我们的名字}，None 表示不是权重；和形状看不出的配置。"""

    name: str
    outside: dict[str, str]
    inside: dict[str, str | None]  # 一个块里的
    config: dict


def _renamed(theirs: str, ours: str, kinds: tuple[str, ...] = ("weight", "bias")) -> dict[str, str]:
    """一个部件的参数；scale 和 shift 是归一化的 weight 和 bias。"""
    ours_of = {"scale": "weight", "shift": "bias"}
    return {f"{theirs}.{kind}": f"{ours}.{ours_of.get(kind, kind)}" for kind in kinds}


def _attention(theirs: str) -> dict[str, str | None]:
    layers = ("W_query", "W_key", "W_value", "out_proj")
    names = {name: ours for layer in layers for name, ours in _renamed(f"{theirs}.{layer}", f"attn.{layer}").items()}
    return {**names, f"{theirs}.mask": None}  # 因果掩码


def _feed_forward(theirs: str) -> dict[str, str]:
    return _renamed(f"{theirs}.layers.0", "ff.layers.0") | _renamed(f"{theirs}.layers.2", "ff.layers.2")


OUTSIDE = {
    "tok_emb.weight": "tok_emb.weight",
    "pos_emb.weight": "position.pos_emb.weight",
    "out_head.weight": "out_head.weight",
}
BOOK_NORM = ("scale", "shift")
BOOK = Project(
    "《从零构建大模型》的 GPTModel",
    OUTSIDE | _renamed("final_norm", "final_norm", BOOK_NORM),
    _attention("att")
    | _feed_forward("ff")
    | _renamed("norm1", "norm1", BOOK_NORM)
    | _renamed("norm2", "norm2", BOOK_NORM),
    {"activation": "gelu", "norm_eps": 1e-5},
)
EARLY_NORM = ("scale", "shift", "weight", "bias")  # 起先与书里相同，后来改了名
EARLY = Project(
    "PocketLLM 的早期版本",
    OUTSIDE | _renamed("final_norm", "final_norm", EARLY_NORM),
    _attention("attn")
    | _feed_forward("ff")
    | _feed_forward("ffn")
    | _renamed("norm1", "norm1", EARLY_NORM)
    | _renamed("norm2", "norm2", EARLY_NORM),
    {"activation": "gelu_exact", "norm_eps": 1e-12},
)


def project_of(names: list[str]) -> Project | None:
    """从权重的名字看是哪个项目的；我们自己的和 Hugging Face 的是 None。"""
    if any(".att." in name for name in names):
        return BOOK
    return EARLY if "pos_emb.weight" in names else None


def convert(file: ModelFile, project: Project) -> ModelFile:
    """名字换成我们的，认出配置（头数除外）；有不认识的权重就抛出 UserError，说出它的名字。"""
    weights = {}
    for name, tensor in file.weights.items():
        prefix, table, inner = "", project.outside, name
        if block := BLOCK.fullmatch(name):
            prefix, table, inner = block[1], project.inside, block[2]
        if inner not in table or f"{prefix}{table[inner]}" in weights:
            raise UserError(file.path, f"像是{project.name}，但不认识其中的 {name}", ONLY_LANGUAGE_MODELS)
        if table[inner]:
            weights[f"{prefix}{table[inner]}"] = tensor
    converted = dataclasses.replace(file, weights=weights, project=project.name)
    return dataclasses.replace(converted, config={**_recognize(converted), **project.config})


def _recognize(file: ModelFile) -> dict:
    """看形状就知道的配置。"""
    weights = file.weights
    vocab_size, emb_dim = _shape(file, "tok_emb.weight")
    if weights.get("out_head.weight") is None or weights["out_head.weight"].shape != (vocab_size, emb_dim):
        raise UserError(file.path, "没有给词表打分的 out_head.weight", ONLY_LANGUAGE_MODELS)
    return {
        "vocab_size": vocab_size,
        "context_length": _shape(file, "position.pos_emb.weight")[0],
        "emb_dim": emb_dim,
        "num_layers": len({name.split(".")[1] for name in weights if name.startswith("trf_blocks.")}),
        "hidden_dim": _shape(file, "trf_blocks.0.ff.layers.0.weight")[0],
        "qkv_bias": "trf_blocks.0.attn.W_query.bias" in weights,
        "out_proj": any(".out_proj." in name for name in weights),
        "tie_weights": has_tied_weights(file),
    }


def _shape(file: ModelFile, name: str) -> tuple[int, int]:
    tensor: Tensor | None = file.weights.get(name)
    if tensor is None or tensor.dim() != 2:
        raise UserError(file.path, f"像是{file.project}，但没有 {name} 这个矩阵", ONLY_LANGUAGE_MODELS)
    return tuple(tensor.shape)


def complete_config(file: ModelFile, given: ConfigFile | None) -> dict:
    """convert 认出的配置，补上头数；given 只能与它一致，没写的字段以权重为准。"""
    emb_dim = file.config["emb_dim"]
    if given is None:
        if emb_dim % HEAD_DIM:
            reason = f"是{file.project}的权重，emb_dim={emb_dim} 不是 {HEAD_DIM} 的倍数，看不出有几个头"
            raise UserError(file.path, reason, "用 --config 给出训练时的配置，书里的 n_heads、n_layers 也认识。")
        return {**file.config, "num_heads": emb_dim // HEAD_DIM, "drop_rate": DROP_RATE}
    num_heads = given.model.num_heads
    config = {**file.config, "num_heads": num_heads, "drop_rate": given.model.drop_rate}
    defaults = {field.name: field.default for field in dataclasses.fields(given.model)}
    actual = {**defaults, **config, "num_kv_heads": num_heads}
    for name, value in given.model.to_dict().items():
        if value not in (actual[name], defaults[name]):
            reason = f"{given.path} 的 {name} 是 {value}，{file.path} 的权重是 {actual[name]}"
            raise UserError("--config", reason, "改成与权重一致的，或换一个模型文件。")
    return config
