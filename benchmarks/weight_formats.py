"""压缩权重的误差：训练好的模型换成各种格式，分数和验证损失变了多少。"""

from itertools import islice
from pathlib import Path

import torch
from torch import Tensor

import generate
from benchmarks.train_step import CPU
from utils.compact_weights import FORMATS
from utils.cross_entropy import cross_entropy
from utils.data_loader import WindowDataset, split_point
from utils.text_file import TextFile

NUM_TOKENS = 4096


def format_errors(model_path: Path, corpus: Path) -> dict[str, dict[str, float]]:
    """在语料最后一成的开头 NUM_TOKENS 个 token 上比较。

    -> {格式: {"loss": 损失相对 float32 变了百分之几, "logits": 分数的最大误差与最大分数之比，百分之几}}
    """
    expected, expected_loss = evaluate(model_path, corpus, "float32")
    errors = {}
    for name in FORMATS:
        logits, loss = evaluate(model_path, corpus, name)
        difference = (logits - expected).abs().max() / expected.abs().max()
        errors[name] = {"loss": 100 * (loss / expected_loss - 1), "logits": 100 * difference.item()}
    return errors


@torch.inference_mode()
def evaluate(model_path: Path, corpus: Path, name: str) -> tuple[Tensor, float]:
    """像生成那样一次读一个 token。-> 全部分数 (token 数, vocab_size)，平均损失"""
    model, tokenizer = generate.load(model_path, None)
    model = generate.to_device(model.eval(), CPU, name)
    source = TextFile.scan(corpus)
    validate = "".join(source.pieces(split_point(source.num_characters), source.num_characters))
    windows = WindowDataset(
        torch.tensor(tokenizer.encode(validate)), model.cfg.context_length, model.cfg.context_length
    )
    logits, targets = [], []
    for inputs, window_targets in islice(windows, max(1, NUM_TOKENS // model.cfg.context_length)):
        cache = model.new_cache()
        logits += [model.next_logits(token_id.view(1, 1), cache) for token_id in inputs]
        targets.append(window_targets)
    logits = torch.cat(logits)
    return logits, cross_entropy(logits, torch.cat(targets)).item()
