"""utils/hugging_face.py：Hugging Face 的 GPT-2 读进来，与 transformers 逐数相同。"""

import json
import os
import shutil
import sys

import psutil
import pytest
import safetensors.torch
import torch
from gpt2_reference import assert_same_model, build_ours, build_reference, randomize, save_bin
from transformers import GPT2Config, GPT2LMHeadModel

from conftest import tiny_config
from model.config import ModelConfig
from model.language_model import LanguageModel
from model.layer_norm import EPS
from utils.errors import UserError
from utils.hugging_face import (
    from_hugging_face,
    is_hugging_face,
    open_weights_file,
    read_weights_file,
    to_hugging_face,
    write_safetensors,
)
from utils.hugging_face_config import NORM_EPS
from utils.model_file import read_model_file, save_model
from utils.weights_file import read_shapes

HEADER_START = 8


@pytest.fixture
def folder(tmp_path):
    """transformers 自己写出的文件夹。"""
    build_reference().save_pretrained(tmp_path)
    return tmp_path


def rewrite(folder, change):
    """改动 model.safetensors 里的张量。"""
    path = folder / "model.safetensors"
    tensors = safetensors.torch.load(path.read_bytes())
    change(tensors)
    safetensors.torch.save_file(tensors, path)
    return path


@pytest.mark.parametrize(
    "changes",
    [{}, {"n_inner": 48}, {"tie_word_embeddings": False}, {"layer_norm_epsilon": 1e-2, "activation_function": "gelu"}],
)
def test_safetensors_folder_equals_transformers(tmp_path, changes):
    reference = build_reference(**changes)
    reference.save_pretrained(tmp_path)
    ours = build_ours(read_weights_file(tmp_path))
    assert ours.cfg.tie_weights is reference.config.tie_word_embeddings
    assert_same_model(ours, reference)


def test_124m_shape_equals_transformers_in_both_directions(tmp_path):
    reference = randomize(GPT2LMHeadModel(GPT2Config()), std=0.05)
    reference.save_pretrained(tmp_path)
    file = read_weights_file(tmp_path)
    ours = build_ours(file)
    assert ours.cfg.num_parameters == 124_439_808
    assert_same_model(ours, reference)

    with (tmp_path / "again.safetensors").open("wb") as again:
        write_safetensors(again, to_hugging_face(ours.state_dict(), file.config))
    expected = reference.state_dict()
    del expected["lm_head.weight"]  # 与 wte 共用
    theirs = safetensors.torch.load_file(tmp_path / "again.safetensors")
    assert theirs.keys() == expected.keys() and all(torch.equal(theirs[name], expected[name]) for name in theirs)
    shutil.rmtree(tmp_path, ignore_errors=True)  # 一 GB，不必像别的测试那样留着


@pytest.mark.parametrize("has_prefix", [True, False])
def test_bin_with_masks_equals_transformers(tmp_path, has_prefix):
    reference = build_reference()
    path = save_bin(reference, tmp_path, has_prefix)
    assert_same_model(build_ours(read_weights_file(path)), reference)
    assert_same_model(build_ours(read_weights_file(tmp_path)), reference)


def test_published_layout_needs_no_config_and_no_head(tmp_path):
    """发布的 model.safetensors：没有前缀，掩码是浮点数，也没有 lm_head；单独一个文件，每头 64 维。"""
    reference = build_reference(n_embd=128, n_head=2)
    state = {name.removeprefix("transformer."): tensor for name, tensor in reference.state_dict().items()}
    del state["lm_head.weight"]
    state["h.0.attn.bias"] = torch.ones(1, 1, 128, 128).tril()
    safetensors.torch.save_file(state, tmp_path / "gpt2.safetensors")
    file = read_weights_file(tmp_path / "gpt2.safetensors")
    assert (file.config["num_heads"], file.tokenizer) == (2, {"type": "gpt2"})
    assert_same_model(build_ours(file), reference)


def test_unaligned_file_is_read(folder):
    """早期的文件头没有补齐，张量不在整字的位置上。"""
    expected = {name: tensor.clone() for name, tensor in read_weights_file(folder).weights.items()}
    path = folder / "model.safetensors"
    data = path.read_bytes()
    length = int.from_bytes(data[:HEADER_START], "little")
    header = json.dumps(json.loads(data[HEADER_START : HEADER_START + length])).encode()
    header += b" " * (3 - len(header) % 4)
    path.write_bytes(len(header).to_bytes(8, "little") + header + data[HEADER_START + length :])
    weights = read_weights_file(folder).weights
    assert all(torch.equal(weights[name], tensor) for name, tensor in expected.items())
    assert all(tensor.data_ptr() % 4 == 0 for tensor in weights.values())


def test_our_own_file_is_read_as_before(tmp_path):
    save_model(tmp_path / "model.pth", LanguageModel(tiny_config()))
    ours, expected = read_weights_file(tmp_path / "model.pth"), read_model_file(tmp_path / "model.pth")
    assert (ours.config, ours.tokenizer, ours.origin) == (expected.config, expected.tokenizer, expected.origin)
    assert all(torch.equal(ours.weights[name], tensor) for name, tensor in expected.weights.items())
    assert not is_hugging_face(ours.weights)


@pytest.mark.parametrize("changes", [{}, {"tie_weights": False}, {"qkv_bias": False}, {"bias": False}])
def test_there_and_back_is_bit_equal(changes):
    model = LanguageModel(tiny_config(**changes))
    weights = {name: tensor for name, tensor in model.state_dict().items() if name != "_extra_state"}
    theirs = to_hugging_face(weights, model.cfg.to_dict())
    again = from_hugging_face({name.removeprefix("transformer."): theirs[name] for name in theirs}, model.cfg.to_dict())
    assert again.keys() == weights.keys()
    assert all(torch.equal(again[name], tensor) and again[name].is_contiguous() for name, tensor in weights.items())


def test_trained_biases_are_not_dropped_because_the_config_says_none(folder):
    """别处接着训练过的偏置已经不是 0 了。"""
    settings = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    (folder / "config.json").write_text(json.dumps({**settings, "qkv_bias": False, "bias": False}), encoding="utf-8")
    config = read_weights_file(folder).config
    assert config["qkv_bias"] is True and config["bias"] is True


def test_written_file_is_what_the_library_reads(tmp_path):
    tensors = {"转置": torch.randn(3, 5).t(), "半": torch.randn(4).bfloat16(), "空": torch.zeros(0, 2)}
    with (tmp_path / "x.safetensors").open("wb") as file:
        write_safetensors(file, tensors)
    again = safetensors.torch.load_file(tmp_path / "x.safetensors")
    assert again.keys() == tensors.keys() and all(torch.equal(again[name], tensors[name]) for name in tensors)
    assert read_shapes(tmp_path / "x.safetensors") == {name: tuple(tensors[name].shape) for name in tensors}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions_are_kept(folder, dtype):
    rewrite(folder, lambda tensors: tensors.update({name: tensor.to(dtype) for name, tensor in tensors.items()}))
    assert {tensor.dtype for tensor in read_weights_file(folder).weights.values()} == {dtype}


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
def test_infinity_is_named(folder, name):
    def damage(tensors):
        tensors["transformer.ln_f.weight"][3] = torch.inf

    path = rewrite(folder, damage)
    if name != path.name:
        torch.save(safetensors.torch.load(path.read_bytes()), folder / name)
    with pytest.raises(UserError, match="ln_f.weight 里有 NaN 或无穷大"):
        read_weights_file(folder / name)


def private_memory() -> int:
    memory = psutil.Process().memory_info()
    return memory.rss - memory.shared


class RunsCode:
    def __init__(self, evidence):
        self.evidence = evidence

    def __reduce__(self):
        return (os.mkdir, (str(self.evidence),))


@pytest.mark.parametrize("is_zip", [True, False])
def test_code_in_a_bin_is_not_executed(tmp_path, is_zip):
    evidence, path = tmp_path / "executed", tmp_path / "pytorch_model.bin"
    torch.save({"wte.weight": RunsCode(evidence)}, path, _use_new_zipfile_serialization=is_zip)
    with pytest.raises(UserError):
        read_weights_file(path)
    assert not evidence.exists()


def test_legacy_bin_is_refused_with_a_way_out(tmp_path):
    path = save_bin(build_reference(), tmp_path, has_prefix=False, _use_new_zipfile_serialization=False)
    with pytest.raises(UserError, match="torch 1.6 以前的格式.*model.safetensors"):
        read_weights_file(path)


@pytest.mark.skipif(os.name == "nt", reason="Windows 的文件名没有孤立的代理字符")
def test_name_that_is_not_utf8_is_read(folder):
    strange = folder / "\udcff.safetensors"
    strange.write_bytes((folder / "model.safetensors").read_bytes())
    weights = read_weights_file(strange).weights
    assert torch.equal(weights["tok_emb.weight"], read_weights_file(folder).weights["tok_emb.weight"])


@pytest.mark.skipif(sys.platform != "linux", reason="别的系统不报告内存里哪些页属于文件")
def test_embeddings_stay_on_disk_until_used(tmp_path):
    """嵌入占小模型的大半；打开文件只映射，不复制。检查数值时读过的页属于文件，随时可以丢。"""
    reference = build_reference(vocab_size=400_000)
    reference.save_pretrained(tmp_path)
    num_bytes = reference.transformer.wte.weight.numel() * 4
    del reference
    before = private_memory()
    file = open_weights_file(tmp_path)
    assert private_memory() - before < num_bytes / 2
    assert file.weights["out_head.weight"] is file.weights["tok_emb.weight"]


def test_epsilon_is_ours():
    assert NORM_EPS == EPS == ModelConfig.norm_eps


def test_config_is_a_valid_model_config(folder):
    cfg = ModelConfig.from_dict(read_weights_file(folder).config)
    assert (cfg.num_heads, cfg.hidden_dim, cfg.drop_rate) == (4, 128, 0.1)
