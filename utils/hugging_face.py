"""GPT-2 在 Hugging Face 的权重文件，与我们的互相转换。

它的 Conv1D 把矩阵存成 (输入, 输出)，是 nn.Linear 的转置；查询、键、值的投影并排放在 c_attn 里。
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from utils.adapter import LORA_PREFIX
from utils.archive import NOT_A_MODEL
from utils.book_weights import convert, project_of
from utils.errors import UserError
from utils.hugging_face_config import (
    CONFIG_NAME,
    PREFIX,
    TEMPLATE_FIELD,
    read_settings,
    recognize_config,
    with_plain_names,
)
from utils.hugging_face_tokenizer import read_tokenizer
from utils.model_file import ModelFile, load_state, model_file_of
from utils.weights_file import (
    DOWNLOAD_AGAIN,
    HUGGING_FACE_NAMES,
    LENGTH_BYTES,
    check_weights_file,
    find_weights_file,
    is_safetensors,
)

QKV = ("W_query", "W_key", "W_value")
OUTSIDE = {"tok_emb": "wte", "position.pos_emb": "wpe", "final_norm": "ln_f", "out_head": "lm_head"}
INSIDE = {
    "norm1": "ln_1",
    "attn.out_proj": "attn.c_proj",
    "norm2": "ln_2",
    "ff.layers.0": "mlp.c_fc",
    "ff.layers.2": "mlp.c_proj",
}
WITHOUT_BIAS = ("wte", "wpe", "lm_head")
DTYPE_NAMES = {torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}
ALIGNMENT = 8  # 文件头补到 8 的倍数，后面的数才都在整字的位置上


def read_weights_file(path: Path) -> ModelFile:
    """检查并读出权重文件，或装着它的文件夹：自己的、Hugging Face 的、别的项目的；有任何不对都抛出 UserError。"""
    return open_weights_file(check_weights_file(path))


def open_weights_file(path: Path) -> ModelFile:
    """read_weights_file 的后一半，用在 check_weights_file 已经通过之后。不必转置的权重都映射在文件上。"""
    path = find_weights_file(path)
    state = _load_tensors(path)
    state = state.get("model", state.get("model_state_dict", state))  # 也可以是续练用的检查点
    if isinstance(state, dict) and (project := project_of([str(name) for name in state])):
        return convert(model_file_of(path, state), project)
    if not isinstance(state, dict) or not is_hugging_face(state):
        if path.name in HUGGING_FACE_NAMES or is_safetensors(path):
            raise UserError(path, "不是 GPT-2 的权重", "只能读取 GPT-2 的结构，和自己训练的模型。")
        return _without_lora(model_file_of(path, state))
    weights = model_file_of(path, with_plain_names(state)).weights
    settings = read_settings(path.parent / CONFIG_NAME)
    config = recognize_config(path, {name: tuple(tensor.shape) for name, tensor in weights.items()}, settings)
    config |= _read_choices(weights, settings)
    ours, tokenizer = from_hugging_face(weights, config), read_tokenizer(path.parent)
    return ModelFile(path, ours, config, tokenizer, origin=None, template=settings.get(TEMPLATE_FIELD))


def _without_lora(file: ModelFile) -> ModelFile:
    """file 本身；里面有没合并的 LoRA 就抛出 UserError，说明该怎么用它。"""
    if any(f".{LORA_PREFIX}" in name for name in file.weights):
        advice = "适配器用 --adapter_path 给出；检查点用 --resume 接着训练，要用模型就给出与它同名的 .pth。"
        raise UserError(file.path, "是 LoRA 的适配器或检查点，修正还没有合并进权重", advice)
    return file


def _load_tensors(path: Path) -> dict:
    is_mappable = str(path).isprintable()  # 文件名里有孤立的代理字符时映射不了
    if not is_safetensors(path):
        return load_state(path, mmap=is_mappable)
    try:
        if not is_mappable:
            return safetensors.torch.load(path.read_bytes())
        with safetensors.safe_open(path, framework="pt") as file:
            return {name: _aligned(file.get_tensor(name)) for name in file.keys()}
    except (safetensors.SafetensorError, ValueError, RuntimeError):
        raise UserError(path, NOT_A_MODEL, DOWNLOAD_AGAIN) from None


def _aligned(tensor: Tensor) -> Tensor:
    """早期的文件头没有补齐，后面的数不在整字的位置上，有些处理器不能直接算，要复制一份。"""
    return tensor if tensor.data_ptr() % tensor.element_size() == 0 else tensor.clone()


def is_hugging_face(weights: dict) -> bool:
    """是不是 Hugging Face 的 GPT-2 的名字。"""
    return f"{PREFIX}wte.weight" in weights or "wte.weight" in weights


def _read_choices(weights: dict[str, Tensor], settings: dict) -> dict:
    """形状看不出的几个字段。偏置总在文件里：config.json 说本来没有，数值也都是 0，才是没有。"""
    biases = {"qkv_bias": [], "bias": []}
    for name, tensor in weights.items():
        if name.endswith(".bias"):
            biases["qkv_bias" if name.endswith(".c_attn.bias") else "bias"].append(tensor)
    choices = {
        field: settings.get(field) is not False or any(bool(tensor.any()) for tensor in tensors)
        for field, tensors in biases.items()
    }
    head = weights.get("lm_head.weight")
    is_separate = head is not None and settings.get("tie_word_embeddings") is False
    return {**choices, "tie_weights": head is None or not is_separate and torch.equal(head, weights["wte.weight"])}


def from_hugging_face(weights: dict[str, Tensor], config: dict) -> dict[str, Tensor]:
    """它的 {名字: 张量}（见 with_plain_names） -> 我们的 {名字: 张量}，每个都是连续的。"""
    ours = {}
    for our, their in _names(config["num_layers"]):
        for kind in _kinds(their, config["bias"]):
            if f"{their}.{kind}" in weights:  # 共用的 lm_head 可以没有
                ours[f"{our}.{kind}"] = _transpose(their, weights[f"{their}.{kind}"]).contiguous()
    for layer in range(config["num_layers"]):
        for kind in _kinds("c_attn", config["qkv_bias"]):
            parts = weights[f"h.{layer}.attn.c_attn.{kind}"].t().chunk(3)
            for name, part in zip(QKV, parts, strict=True):  # 各自复制，不共用一处存储
                ours[f"trf_blocks.{layer}.attn.{name}.{kind}"] = part.clone(memory_format=torch.contiguous_format)
    if config["tie_weights"]:
        ours["out_head.weight"] = ours["tok_emb.weight"]
    return ours


def to_hugging_face(weights: dict[str, Tensor], config: dict) -> dict[str, Tensor]:
    """我们的 {名字: 张量} -> 它的；没有的偏置补 0。转置的只是视图，写的时候才逐个复制。"""
    theirs = {}
    for our, their in _names(config["num_layers"]):
        for kind in _kinds(their, has_bias=True):
            theirs[f"{their}.{kind}"] = _transpose(their, _get(weights, f"{our}.{kind}"))
    for layer in range(config["num_layers"]):
        for kind in _kinds("c_attn", has_bias=True):
            parts = [_get(weights, f"trf_blocks.{layer}.attn.{name}.{kind}") for name in QKV]
            theirs[f"h.{layer}.attn.c_attn.{kind}"] = torch.cat(parts).t()
    head = theirs.pop("lm_head.weight")
    shared = {} if config["tie_weights"] else {"lm_head.weight": head}
    return {f"{PREFIX}{name}": tensor for name, tensor in theirs.items()} | shared


def _names(num_layers: int) -> Iterator[tuple[str, str]]:
    """(我们的层, 它的层)，查询、键、值的投影除外。"""
    yield from OUTSIDE.items()
    for layer in range(num_layers):
        for our, their in INSIDE.items():
            yield f"trf_blocks.{layer}.{our}", f"h.{layer}.{their}"


def _kinds(their: str, has_bias: bool) -> tuple[str, ...]:
    return ("weight", "bias") if has_bias and their not in WITHOUT_BIAS else ("weight",)


def _transpose(their: str, tensor: Tensor) -> Tensor:
    """Conv1D 的名字都以 c_ 开头；偏置转置也还是自己。"""
    return tensor.t() if their.rpartition(".")[2].startswith("c_") else tensor


def _get(weights: dict[str, Tensor], name: str) -> Tensor:
    """没有的偏置是 0，与权重的行数相同。"""
    if name in weights:
        return weights[name]
    weight = weights[f"{name.removesuffix('bias')}weight"]
    return weight.new_zeros(len(weight))


def write_safetensors(file: BinaryIO, tensors: dict[str, Tensor]) -> None:
    """写出 safetensors 格式；逐个张量地写，不像库里的函数那样先在内存里拼出整个文件。"""
    header, end = {"__metadata__": {"format": "pt"}}, 0
    for name, tensor in tensors.items():
        start, end = end, end + tensor.numel() * tensor.element_size()
        header[name] = {"dtype": DTYPE_NAMES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [start, end]}
    data = json.dumps(header).encode()
    data += b" " * (-len(data) % ALIGNMENT)
    file.write(len(data).to_bytes(LENGTH_BYTES, "little") + data)
    for tensor in tensors.values():
        file.write(tensor.detach().contiguous().flatten().view(torch.uint8).numpy())
