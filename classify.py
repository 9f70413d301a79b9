"""用微调好的分类模型判断文字的标签；不给 --text 时一问一答。

python classify.py --model_path classifier.pth --text 恭喜您中奖了，点击链接领取
"""

import argparse

from model.config import ModelConfig
from utils import cli
from utils.archive import check_archive
from utils.dialogue import talk
from utils.errors import UserError, run_program


def parse_args() -> argparse.Namespace:
    parser = cli.ArgumentParser("判断文字的标签；不给 --text 时进入对话，从管道来的一行一条。")
    add = parser.add_argument
    add("--model_path", type=cli.file_path, default="classifier.pth", help="分类模型（默认 %(default)s）")
    add("--text", type=cli.plain_text, help="要判断的文字（默认进入对话）")
    add("--device", type=cli.device_name, default="auto", help=f"{cli.DEVICES}（默认 %(default)s）")
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    check_archive(args.model_path, advice="请先运行 finetune_classifier.py，或用 --model_path 指出它在哪里。")
    import torch

    from model.classifier import Classifier
    from utils.checkpoint import open_model_file
    from utils.classification import classify
    from utils.device import choose_device
    from utils.model_loading import load_model

    device = choose_device(args.device)
    file = open_model_file(args.model_path)
    if file.labels is None:
        raise UserError(args.model_path, "不是分类模型", "先用 finetune_classifier.py 微调；续写用 generate.py。")
    model, tokenizer = load_model(file, ModelConfig.from_dict, lambda cfg: Classifier(cfg, file.labels))
    model = model.to(device).eval()

    def answer(text: str) -> None:
        with torch.inference_mode():
            label, probability = classify(model, tokenizer, text)
        print(f"{label}（{probability:.1%}）")

    if args.text:
        answer(args.text)
    else:
        talk(answer)


if __name__ == "__main__":
    run_program(main)
