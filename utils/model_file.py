"""模型文件：写出权重和自述，读回之前先检查。"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from utils import sharded_tensor
from utils.archive import NOT_A_MODEL, ONLY_OURS, RESTORE, check_archive, write_sealed
from utils.checkpoint_files import size_of
from utils.errors import UserError, is_out_of_memory
from utils.files import write_atomically
from utils.processes import is_main
from utils.text_utils import Tokenizer, load_gpt2_tokenizer

SAME_CONFIG = "换用训练它时的配置，或换一个模型文件。"
DESCRIPTION_KEY = "_extra_state"  # LanguageModel.get_extra_state 的结果在 state_dict 里的名字
DESCRIPTION_FIELDS = ("config", "tokenizer", "origin", "labels", "template")
WEIGHT_DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.bool)  # bool 是早期版本的因果掩码


@dataclass(frozen=True)
class ModelFile:
    """模型文件的内容。没有自述的文件（只有权重）其余各项为 None。"""

    path: Path
    weights: dict[str, Tensor]
    config: dict | None
    tokenizer: dict | None
    origin: dict | None  # 第几步的权重，验证损失多少
    labels: list[str] | None = None  # 分类模型的标签
    template: str | None = None  # 指令模型的提示语模板
    project: str | None = None  # 别的项目的权重：哪个项目；config 里没有头数，见 book_weights.py


def save_state(path: Path, state: dict, keep_old: bool = False) -> Path | None:
    """把装着张量的字典写成带封印的文件；keep_old 同 write_atomically。"""
    num_bytes = count_bytes(state)
    return write_atomically(path, lambda file: write_sealed(file, partial(torch.save, state)), keep_old, num_bytes)


def count_bytes(state: object) -> int:
    """里面的张量一共多少字节；共用的存储只算一次。"""
    sizes = {}

    def visit(value: object) -> None:
        if isinstance(value, Tensor):
            sizes[sharded_tensor.local(value).data_ptr()] = value.numel() * value.element_size()
        for item in value.values() if isinstance(value, dict) else value if isinstance(value, (list, tuple)) else ():
            visit(item)

    visit(state)
    return sum(sizes.values())


def save_model(path: Path, model: nn.Module, keep_old: bool = False, origin: dict | None = None) -> Path | None:
    """把 state_dict 写成谁都能用 torch.load(path, weights_only=True) 读的文件；origin 见 ModelFile。"""
    if any(map(sharded_tensor.is_sharded, model.parameters())):
        from utils.full_state import gather_full_state  # 只有一个进程时不必载入

        state = gather_full_state(model)
    else:
        state = model.plain_state_dict()
    if not is_main():
        return None
    if origin:
        state[DESCRIPTION_KEY] = {**state[DESCRIPTION_KEY], "origin": origin}
    return save_state(path, state, keep_old)


def read_model_file(path: Path) -> ModelFile:
    """检查并读出模型文件到 CPU；有任何不对都抛出 UserError，不执行文件里的任何代码。"""
    check_archive(path)
    return open_model_file(path)


def open_model_file(path: Path) -> ModelFile:
    """read_model_file 的后一半，用在 check_archive 已经通过之后。权重映射在文件上，用到哪里才读到哪里。"""
    state = load_state(path, mmap=str(path).isprintable())  # 文件名里有孤立的代理字符时 torch 映射不了
    return model_file_of(path, state.get("model", state))  # 也可以是续练用的检查点


def load_state(path: Path, mmap: bool) -> dict:
    """读出 check_archive 已经通过的文件里的字典。"""
    try:
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    except Exception as error:  # 内容不可信，读取器抛出什么都可能
        if is_out_of_memory(error):
            raise
        raise UserError(path, f"{NOT_A_MODEL}（含有权重以外的内容，已拒绝读取）", ONLY_OURS) from None
    if not isinstance(state, dict):
        raise UserError(path, NOT_A_MODEL, ONLY_OURS)
    return state


def model_file_of(path: Path, state: Any) -> ModelFile:
    """检查 path 里读出的 state_dict。"""
    description = state.pop(DESCRIPTION_KEY, None) or {} if isinstance(state, dict) else None
    if not isinstance(description, dict):
        raise UserError(path, NOT_A_MODEL, ONLY_OURS)
    if not _is_description(description):
        raise UserError(path, NOT_A_MODEL, ONLY_OURS)
    check_tensors(path, state)
    return ModelFile(path, dict(state), *(description.get(name) for name in DESCRIPTION_FIELDS))


def _is_description(description: dict) -> bool:
    """自述里各项的类型都对；配置和词表由用到它们的地方检查。"""
    labels, template, origin = (description.get(name) for name in ("labels", "template", "origin"))
    has_labels = isinstance(labels, list) and labels and all(isinstance(label, str) for label in labels)
    has_origin = isinstance(origin, dict) and isinstance(origin.get("step"), int) and "validate_loss" in origin
    has_loss = has_origin and isinstance(origin["validate_loss"], (float, type(None)))
    return (labels is None or has_labels) and isinstance(template, (str, type(None))) and (origin is None or has_loss)


def check_tensors(path: Path, weights: dict[Any, Any]) -> None:
    """path 里读出的 {名字: 张量} 都是普通、完整、有限的数。"""
    size = size_of(path)
    for name, tensor in weights.items():
        if not isinstance(name, str) or not isinstance(tensor, Tensor):
            raise UserError(path, NOT_A_MODEL, ONLY_OURS)
        # 步长为 0 的张量几个字节就能冒充天文数字的大小，先查形状再碰数值
        is_dense = tensor.layout == torch.strided and tensor.is_contiguous()
        if not is_dense or tensor.numel() * tensor.element_size() > size:
            raise UserError(path, f"{NOT_A_MODEL}（张量 {name} 的存储方式不对）", ONLY_OURS)
        if tensor.dtype not in WEIGHT_DTYPES:
            raise UserError(path, f"{NOT_A_MODEL}（权重 {name} 的类型是 {tensor.dtype}）", ONLY_OURS)
        if not _all_finite(tensor):
            raise UserError(path, f"权重 {name} 里有 NaN 或无穷大", "换用训练正常时保存的模型。")
    if not weights:
        raise UserError(path, f"{NOT_A_MODEL}（没有权重）", ONLY_OURS)


def _all_finite(tensor: Tensor) -> bool:
    """和是有限数，各项就都是；和溢出时再逐个看。求和只读一遍，不建立同样大的布尔表。"""
    return bool(torch.isfinite(tensor.sum(dtype=torch.float32))) or bool(torch.isfinite(tensor).all())


class _SkipInit(TorchFunctionMode):
    """nn.init 的函数什么也不做：马上要装进现成的权重，不必先抽一亿个随机数。"""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if getattr(func, "__module__", None) == nn.init.__name__:
            return None
        return func(*args, **(kwargs or {}))


def build_model(make_model: Callable[[], nn.Module], file: ModelFile, config_name: object) -> nn.Module:
    """建立只有形状的模型，再把文件里的张量直接放上去：不抽随机数，也不复制权重。"""
    with torch.device("meta"), _SkipInit():
        model = make_model()
    model.position = type(model.position)(model.cfg)  # RoPE 的正弦和余弦不在文件里
    load_weights(model, file, config_name, assign=True)
    if model.cfg.tie_weights:
        model.out_head.weight = model.tok_emb.weight
    return model


def load_weights(model: nn.Module, file: ModelFile, config_name: object, assign: bool = False) -> None:
    """把权重装进模型；形状不符时抛出 UserError，说明是哪个配置字段不对。config_name 是配置在消息里的称呼。

    assign 时直接用文件里的张量代替模型的，不复制。
    """
    check_config(file, model.cfg, config_name)
    weights = file.weights
    expected = {name: value for name, value in model.state_dict().items() if name != DESCRIPTION_KEY}
    for name in expected.keys() | weights.keys():
        ours, theirs = (f"是 {tuple(w[name].shape)}" if name in w else "没有" for w in (expected, weights))
        if ours != theirs:
            reason = f"与 {config_name} 不符：{name} 在文件里{theirs}，按配置应{ours}"
            raise UserError(file.path, reason, SAME_CONFIG)
    if model.cfg.tie_weights and not _same_matrix(weights["tok_emb.weight"], weights["out_head.weight"]):
        advice = '在配置里写上 "tie_weights": false。'
        raise UserError(file.path, f"与 {config_name} 不符：tok_emb.weight 与 out_head.weight 不同", advice)
    description = {"config": file.config, "tokenizer": file.tokenizer, "template": file.template}
    weights = {name: sharded_tensor.split_like(weights[name], target) for name, target in expected.items()}
    model.load_state_dict({**weights, DESCRIPTION_KEY: description}, assign=assign)


def check_config(file: ModelFile, cfg: Any, config_name: object) -> None:
    """能由权重的形状反推的配置字段都要一致；在建立模型之前调用，写错的配置就不会先占满内存。"""
    for field, (actual, configured) in _compare_fields(file.weights, cfg).items():
        if actual != configured:
            reason = f"与 {config_name} 不符：{field} 权重为 {actual}，配置为 {configured}"
            raise UserError(file.path, reason, SAME_CONFIG)


def _compare_fields(weights: dict[str, Tensor], cfg: Any) -> dict[str, tuple[Any, Any]]:
    """由权重的形状反推配置字段：{字段: (权重里的, 配置里的)}"""
    fields = {}
    if (embedding := weights.get("tok_emb.weight")) is not None and embedding.dim() == 2:
        fields["vocab_size"] = (embedding.shape[0], cfg.vocab_size)
        fields["emb_dim"] = (embedding.shape[1], cfg.emb_dim)
    if (positions := weights.get("position.pos_emb.weight")) is not None:
        fields["context_length"] = (positions.shape[0], cfg.context_length)
    blocks = {name.split(".")[1] for name in weights if name.startswith("trf_blocks.")}
    return {**fields, "num_layers": (len(blocks), cfg.num_layers)}


def has_tied_weights(file: ModelFile) -> bool:
    """输出层与 token 嵌入是不是同一个矩阵。"""
    pair = [file.weights.get(name) for name in ("tok_emb.weight", "out_head.weight")]
    return all(matrix is not None for matrix in pair) and _same_matrix(*pair)


def _same_matrix(one: Tensor, other: Tensor) -> bool:
    """共用的矩阵在文件里只存一份，读出来就在同一处内存，不必逐个比较。"""
    return one.data_ptr() == other.data_ptr() or torch.equal(one, other)


def tokenizer_of(file: ModelFile, spec: dict | None) -> Tokenizer:
    """模型文件里带的分词器；没有带就按配置的 "tokenizer" 一节，默认是 GPT-2 的。"""
    if file.tokenizer is not None:
        try:
            return Tokenizer.from_state(file.tokenizer)
        except (ValueError, TypeError, KeyError, AttributeError):
            raise UserError(file.path, f"{NOT_A_MODEL}（里面的词表不完整）", RESTORE) from None
    if spec is not None and spec["type"] != "gpt2":
        raise UserError(file.path, "里面没有词表，而配置要求语料自己的词表", "换用带词表的模型文件。")
    return load_gpt2_tokenizer()
