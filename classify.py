"""用微调好的分类模型判断文字的标签；不给 --text 时一问一答。

python classify.py --model_path classifier.pth --text 恭喜您中奖了，点击链接领取
"""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from model.config import ModelConfig
from utils import cli
from utils.console import hint
from utils.dialogue import talk
from utils.errors import UserError, run_program
from utils.weights_file import check_weights_file

if TYPE_CHECKING:
    from model.classifier import Classifier
    from utils.text_utils import Tokenizer


def parse_args() -> argparse.Namespace:
    parser = cli.ArgumentParser("判断文字的标签；不给 --text 时进入对话，从管道来的一行一条。")
    add = parser.add_argument
    add("--model_path", type=cli.file_path, default="classifier.pth", help="分类模型（默认 %(default)s）")
    add("--text", type=cli.visible_text, help="要判断的文字（默认进入对话）")
    add("--adapter_path", type=cli.file_path, help="LoRA 适配器，加到 --model_path 的模型上（默认没有）")
    add("--device", type=cli.device_name, default="auto", help=f"{cli.DEVICES}（默认 %(default)s）")
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    check_weights_file(args.model_path, advice="请先运行 finetune_classifier.py，或用 --model_path 指出它在哪里。")
    import torch

    from utils.classification import classify
    from utils.device import choose_device

    device = choose_device(args.device)
    model, tokenizer = load_with_adapter(args) if args.adapter_path else load(args.model_path)
    model = model.float().to(device).eval()

    def answer(text: str) -> None:
        if len(tokenizer.encode(text)) > model.cfg.context_length:
            hint(f"提示：文字超过上下文长度，只看开头 {model.cfg.context_length} 个 token")
        with torch.inference_mode():
            label, probability = classify(model, tokenizer, text)
        print(f"{label}（{probability:.1%}）")

    if args.text:
        answer(args.text)
    else:
        talk(answer)


def load(path: Path) -> "tuple[Classifier, Tokenizer]":
    """-> (分类模型, 分词器)；不是分类模型就抛出 UserError。"""
    from model.classifier import Classifier
    from utils.hugging_face import open_weights_file
    from utils.model_loading import load_model

    file = open_weights_file(path)
    if file.labels is None:
        raise UserError(path, "不是分类模型", "先用 finetune_classifier.py 微调；续写用 generate.py。")
    return load_model(file, ModelConfig.from_dict, lambda cfg: Classifier(cfg, file.labels))


def load_with_adapter(args: argparse.Namespace) -> "tuple[Classifier, Tokenizer]":
    """-> (预训练好的模型加上适配器和新的头, 分词器)"""
    from model.classifier import Classifier
    from model.language_model import LanguageModel
    from utils.adapter import apply_adapter, read_adapter
    from utils.hugging_face import open_weights_file
    from utils.model_loading import load_model

    adapter = read_adapter(args.adapter_path)
    file = open_weights_file(args.model_path)
    if file.labels is not None:
        reason = "已经是分类模型，不用再加适配器"
        raise UserError(args.model_path, reason, "去掉 --adapter_path，或用 --model_path 给出微调时开始的那个模型。")
    if not adapter.labels:
        raise UserError(adapter.path, "不是分类模型的适配器", "先用 finetune_classifier.py --trainable lora 微调。")
    base, tokenizer = load_model(file, ModelConfig.from_dict, LanguageModel)
    model = Classifier.from_language_model(base, adapter.labels)
    apply_adapter(model, adapter)
    return model, tokenizer


if __name__ == "__main__":
    run_program(main)
