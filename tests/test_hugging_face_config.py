"""utils/hugging_face_config.py：由形状认出四种大小；算不出的结构说清楚是哪个字段。"""

from pathlib import Path

import pytest
from transformers import GPT2Config, GPT2LMHeadModel

from conftest import ROOT, tiny_config
from model.config import ModelConfig
from utils.config_file import read_config
from utils.errors import UserError
from utils.hugging_face_config import check_exportable, read_settings, recognize_config, to_settings, with_plain_names

PATH = Path("model.safetensors")
SIZES = ("124M", "355M", "774M", "1558M")


def published(size: str) -> ModelConfig:
    return read_config(ROOT / "configs" / f"gpt2_config_{size}.json", ModelConfig.from_dict).model


def shapes_of(**changes) -> dict:
    """transformers 的 GPT-2 有哪些权重。"""
    import torch

    settings = {"vocab_size": 300, "n_positions": 16, "n_embd": 128, "n_layer": 2, "n_head": 2, **changes}
    with torch.device("meta"):
        state = GPT2LMHeadModel(GPT2Config(**settings)).state_dict()
    return with_plain_names({name: tuple(tensor.shape) for name, tensor in state.items()})


@pytest.mark.parametrize("size", SIZES)
def test_every_published_size_is_recognized_from_its_shapes(size):
    cfg = published(size)
    settings = to_settings(cfg.to_dict(), 50256)
    shapes = shapes_of(
        **{name: settings[name] for name in ("vocab_size", "n_positions", "n_embd", "n_layer", "n_head")}
    )
    assert ModelConfig.from_dict(recognize_config(PATH, shapes, {})) == cfg


def test_settings_mean_the_same_to_transformers():
    cfg = tiny_config(hidden_dim=96, tie_weights=False, drop_rate=0.3)
    theirs = GPT2Config.from_dict(to_settings(cfg.to_dict(), 299))
    assert (theirs.n_embd, theirs.n_head, theirs.n_inner, theirs.n_positions) == (32, 4, 96, 16)
    assert (theirs.attn_pdrop, theirs.tie_word_embeddings, theirs.eos_token_id) == (0.3, False, 299)
    assert theirs.activation_function == "gelu_new"
    theirs = GPT2Config.from_dict(to_settings(tiny_config(activation="gelu_exact", norm_eps=1e-12).to_dict(), 299))
    assert (theirs.activation_function, theirs.layer_norm_epsilon) == ("gelu", 1e-12)


def test_head_count_comes_from_the_config_when_it_says_so():
    assert recognize_config(PATH, shapes_of(), {})["num_heads"] == 2
    assert recognize_config(PATH, shapes_of(), {"n_head": 8})["num_heads"] == 8
    with pytest.raises(UserError, match="看不出有几个头.*config.json"):
        recognize_config(PATH, shapes_of(n_embd=96), {})


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"wte.weight": ...}, "不是 GPT-2 的结构"),
        ({"wte.weight": (3,)}, "不是 GPT-2 的结构"),
        ({"h.1.ln_2.bias": ...}, r"h.1.ln_2.bias 在文件里没有"),
        ({"h.1.attn.c_attn.weight": (128, 128)}, r"c_attn.weight 在文件里是 \(128, 128\)，GPT-2 应是 \(128, 384\)"),
        ({"h.3.ln_1.weight": (128,)}, r"h.2.* 在文件里没有|h.3.* GPT-2 应没有"),
        ({"lm_head.weight": (299, 128)}, "lm_head.weight"),
        ({"score.weight": (2, 128)}, "score.weight 在文件里是.*应没有"),
    ],
)
def test_other_structures_are_refused_naming_the_tensor(change, words):
    shapes = {name: shape for name, shape in {**shapes_of(), **change}.items() if shape is not ...}
    with pytest.raises(UserError, match=words):
        recognize_config(PATH, shapes, {})


def test_config_of_another_model_is_noticed():
    with pytest.raises(UserError, match="n_embd 权重为 128，它写的是 768"):
        recognize_config(PATH, shapes_of(), {"n_embd": 768, "n_head": 12})


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"vocab_size": 299}, "model.safetensors：与旁边的 config.json 不符：vocab_size 权重为 300，它写的是 299"),
        ({"n_positions": 1024}, "n_positions 权重为 16"),
        ({"n_layer": 3}, "n_layer 权重为 2"),
        ({"n_inner": 128}, "n_inner 权重为 512"),
        ({"n_head": 3}, "config.json：n_head 应能整除 n_embd=128，收到 3"),
        ({"n_head": "2"}, "config.json：n_head 应"),
        ({"resid_pdrop": 1.5}, r"config.json：resid_pdrop 应在 \[0, 1\) 内，收到 1.5"),
        ({"resid_pdrop": None}, "config.json：resid_pdrop 应"),
        ({"layer_norm_epsilon": 0}, r"config.json：layer_norm_epsilon 应在 \(0, 1\) 内，收到 0"),
        ({"layer_norm_epsilon": "1e-5"}, "config.json：layer_norm_epsilon 应"),
        ({"attn_pdrop": -1}, "config.json：attn_pdrop 应"),
        ({"resid_pdrop": 0.0}, "resid_pdrop 是 0.0、embd_pdrop 是 0.1、attn_pdrop 是 0.1，这里只能有一个 dropout"),
    ],
)
def test_field_that_contradicts_the_weights_is_named(settings, words):
    with pytest.raises(UserError, match=words):
        recognize_config(PATH, shapes_of(), settings)


def test_dropout_of_the_config_is_honoured():
    settings = {"resid_pdrop": 0.3, "embd_pdrop": 0.3, "attn_pdrop": 0.3}
    assert recognize_config(PATH, shapes_of(), settings)["drop_rate"] == 0.3


def test_empty_inner_size_means_four_times():
    assert recognize_config(PATH, shapes_of(), {"n_inner": None})["hidden_dim"] == 512


@pytest.mark.parametrize(
    "text",
    [
        '{"model_type": "llama"}',
        '{"activation_function": "relu"}',
        '{"scale_attn_weights": false}',
        '{"scale_attn_by_inverse_layer_idx": true}',
        '{"add_cross_attention": true}',
        '{"dropout": 0.3}',
        '{"activation_function": {"a": [1]}}',
        '{"prompt_template": ["zh"]}',
    ],
)
def test_settings_that_change_the_computation_are_refused(tmp_path, text):
    path = tmp_path / "config.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match=text.split('"')[1]):
        read_settings(path)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("position", "rope"),
        ("norm", "rms_norm"),
        ("activation", "swiglu"),
        ("qk_norm", True),
        ("num_kv_heads", 2),
        ("out_proj", False),
    ],
)
def test_what_gpt2_lacks_cannot_be_exported(field, value):
    check_exportable(PATH, tiny_config().to_dict())
    with pytest.raises(UserError, match=f"{field}="):
        check_exportable(PATH, tiny_config(**{field: value}).to_dict())


def test_every_problem_is_listed_at_once():
    config = read_config(ROOT / "configs" / "pocket_config_3M.json", ModelConfig.from_dict).model.to_dict()
    with pytest.raises(UserError, match="position=.*norm=.*qk_norm="):
        check_exportable(PATH, config)
