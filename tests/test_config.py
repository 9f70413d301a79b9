"""model/config.py：字段的检查、由别的字段推出的默认值。"""

import dataclasses

import pytest

from conftest import TINY_MODEL, tiny_config
from model.config import ConfigError, ModelConfig


def test_defaults_mean_gpt2():
    cfg = tiny_config()
    assert (cfg.position, cfg.norm, cfg.activation) == ("learned", "layer_norm", "gelu")
    assert (cfg.num_kv_heads, cfg.hidden_dim, cfg.head_dim) == (4, 128, 8)
    assert cfg.tie_weights and cfg.bias and not cfg.qk_norm


def test_round_trip_through_a_dict():
    cfg = tiny_config(num_kv_heads=2, position="rope")
    assert ModelConfig.from_dict(cfg.to_dict()) == cfg


def test_cannot_be_changed_afterwards():
    with pytest.raises(dataclasses.FrozenInstanceError):
        tiny_config().emb_dim = 64


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"emb_dim": "768"}, 'emb_dim 应为正整数，收到 "768"'),
        ({"emb_dim": True}, "emb_dim 应为正整数"),
        ({"emb_dim": 768.0}, "emb_dim 应为正整数"),
        ({"num_layers": 0}, "num_layers 应为正整数"),
        ({"emb_dim": 30}, "emb_dim=30 不能被 num_heads=4 整除"),
        ({"num_kv_heads": 3}, "num_heads=4 不能被 num_kv_heads=3 整除"),
        ({"num_kv_heads": 0}, "num_kv_heads 应为正整数"),
        ({"drop_rate": 1.0}, r"drop_rate 应在 \[0, 1\) 内，收到 1.0"),
        ({"drop_rate": -0.1}, "drop_rate"),
        ({"drop_rate": float("nan")}, "drop_rate 应为有限的数"),
        ({"drop_rate": False}, "drop_rate 应为有限的数"),
        ({"qkv_bias": 1}, "qkv_bias 应为 true 或 false"),
        ({"position": "alibi"}, 'position 应为 learned | rope 之一，收到 "alibi"'),
        ({"norm": None}, "norm 应为"),
        ({"activation": ["gelu"]}, "activation 应为"),
        ({"position": "rope", "emb_dim": 36}, "为偶数，收到 9"),
        ({"rope_base": 1}, "rope_base"),
        ({"norm_eps": 0.0}, r"norm_eps 应在 \(0, 1\) 内，收到 0.0"),
        ({"norm_eps": "1e-5"}, "norm_eps 应为有限的数"),
        ({"out_proj": 1}, "out_proj 应为 true 或 false"),
        ({"n_head": 4}, "未知字段 n_head，是否想写 num_heads"),
    ],
)
def test_wrong_values_are_named(changes, message):
    with pytest.raises(ConfigError, match=message.replace("|", r"\|")):
        tiny_config(**changes)


@pytest.mark.parametrize("key", TINY_MODEL)
def test_missing_key_is_named(key):
    with pytest.raises(ConfigError, match=f"缺少字段 {key}"):
        ModelConfig.from_dict({name: value for name, value in TINY_MODEL.items() if name != key})
