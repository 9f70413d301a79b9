"""比较的对象：transformers 的 GPT-2，形状与 ModelConfig 相同。它只在这里和测试里用到。"""

import importlib.util
from pathlib import Path

from model.config import ModelConfig
from utils.config_file import read_config
from utils.errors import UserError


def require() -> None:
    """没有安装就抛出 UserError。"""
    if importlib.util.find_spec("transformers") is None:
        raise UserError("transformers", "没有安装", "先运行 python -m pip install -r requirements-dev.txt。")


def build(cfg: ModelConfig):
    """随机权重的 GPT2LMHeadModel。"""
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(
        vocab_size=cfg.vocab_size,
        n_positions=cfg.context_length,
        n_embd=cfg.emb_dim,
        n_layer=cfg.num_layers,
        n_head=cfg.num_heads,
        attn_pdrop=cfg.drop_rate,
        resid_pdrop=cfg.drop_rate,
        embd_pdrop=cfg.drop_rate,
    )
    return GPT2LMHeadModel(config)


def save(config: str, path: str) -> dict:
    """把随机权重存成 transformers 的文件夹。"""
    build(read_config(Path(config), ModelConfig.from_dict).model).save_pretrained(path)
    return {}
