"""压缩权重的误差：训练好的模型换成各种格式，分数和验证损失变了多少。"""

from pathlib import Path

import torch
from torch import Tensor

from benchmarks import weights
from benchmarks.train_step import CPU
from utils.compact_weights import FORMATS
from utils.cross_entropy import cross_entropy
from utils.data_loader import WindowDataset, split_point
from utils.model_loading import move_model
from utils.text_file import TextFile
from utils.text_utils import Tokenizer

NUM_TOKENS = 2048


def format_errors(model_path: Path, corpus: Path) -> dict[str, dict[str, float]]:
    """在语料最后一成的开头至多 NUM_TOKENS 个 token 上比较。

    -> {格式: {"loss": 损失相对 float32 变了百分之几, "logits": 分数的最大误差与最大分数之比，百分之几}}
    """
    model, tokenizer = weights.load(model_path)
    windows = validate_windows(corpus, tokenizer, model.cfg.context_length)
    targets = torch.cat([targets for _, targets in windows])
    expected = read_logits(model_path, windows, "float32")
    expected_loss = cross_entropy(expected, targets)
    errors = {}
    for name in FORMATS:
        logits = read_logits(model_path, windows, name)
        loss = cross_entropy(logits, targets) / expected_loss - 1
        difference = (logits - expected).abs().max() / expected.abs().max()
        errors[name] = {"loss": 100 * loss.item(), "logits": 100 * difference.item()}
    return errors


def validate_windows(corpus: Path, tokenizer: Tokenizer, seq: int) -> list[tuple[Tensor, Tensor]]:
    """-> 验证部分开头的若干窗口，每个是 (输入 (seq,), 目标 (seq,))"""
    source = TextFile.scan(corpus)
    validate = "".join(source.pieces(split_point(source.num_characters), source.num_characters))
    dataset = WindowDataset(torch.tensor(tokenizer.encode(validate)), seq, seq)
    return [dataset[index] for index in range(min(len(dataset), max(1, NUM_TOKENS // seq)))]


@torch.inference_mode()
def read_logits(model_path: Path, windows: list[tuple[Tensor, Tensor]], name: str) -> Tensor:
    """像生成那样一次读一个 token，权重是 name 格式。-> (token 数, vocab_size)"""
    model, _ = weights.load(model_path)
    model = move_model(model.eval(), CPU, name)
    logits = []
    for inputs, _ in windows:
        cache = model.new_cache()
        logits += [model.next_logits(token_id.view(1, 1), cache) for token_id in inputs]
    return torch.cat(logits)
