"""测量用的模型文件：写出随机权重的（量速度用不着训练过的），照 generate.py 那样读回来。"""

from pathlib import Path

import torch

from model.config import ModelConfig
from model.language_model import LanguageModel
from utils.config_file import read_config
from utils.model_file import save_model
from utils.model_loading import load_model, open_language_model
from utils.text_utils import Tokenizer, load_gpt2_tokenizer

SEED = 123


def save(config: str, path: str) -> dict:
    """按配置建立模型，连同 GPT-2 的词表存成 generate.py 能读的文件。"""
    torch.manual_seed(SEED)
    model = LanguageModel(read_config(Path(config), ModelConfig.from_dict).model)
    model.tokenizer_state = load_gpt2_tokenizer().state()
    save_model(Path(path), model)
    return {}


def load(path: Path) -> tuple[LanguageModel, Tokenizer]:
    return load_model(open_language_model(path), ModelConfig.from_dict, LanguageModel)
