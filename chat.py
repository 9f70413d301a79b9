"""与指令微调过的模型对话；给出 --instruction 就只答一次。

python chat.py --model_path assistant.pth
"""

import argparse
import sys
from typing import TYPE_CHECKING

from model.config import ModelConfig
from utils import cli
from utils.console import hint
from utils.dialogue import talk
from utils.errors import UserError, run_program
from utils.prompt_template import TEMPLATES, Turn, join_question
from utils.weights_file import check_weights_file

if TYPE_CHECKING:
    from model.language_model import LanguageModel
    from utils.conversation import Assistant
    from utils.text_utils import Tokenizer


def parse_args() -> argparse.Namespace:
    parser = cli.ArgumentParser("与指令微调过的模型对话，记得前几轮；给出 --instruction 就只答一次。")
    add = parser.add_argument
    add("--model_path", type=cli.file_path, default="assistant.pth", help="会答话的模型（默认 %(default)s）")
    add("--instruction", type=cli.visible_text, help="只答这一条指令（默认进入对话）")
    add("--input", type=str.strip, default="", help="指令要处理的内容，与 --instruction 同用（默认没有）")
    add("--max_new_tokens", type=cli.positive_int, default=200, help="一次最多答几个 token（默认 %(default)s）")
    add("--temperature", type=cli.non_negative_float, default=0.0, help="0 取最可能的，越大越随机（默认 %(default)s）")
    add("--top_k", type=cli.positive_int, help="只从最可能的 k 个 token 里抽（默认不限）")
    add("--seed", type=cli.seed_int, default=0, help="随机种子（默认 %(default)s）")
    add("--adapter_path", type=cli.file_path, help="LoRA 适配器，加到 --model_path 的模型上（默认没有）")
    add("--device", type=cli.device_name, default="auto", help=f"{cli.DEVICES}（默认 %(default)s）")
    add("--show_prompt", action="store_true", help="显示模型真正读到的文字（默认不显示）")
    parser.only_with("--instruction", "--input")
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    check_weights_file(args.model_path, advice="请先运行 finetune_instruction.py，或用 --model_path 指出它在哪里。")
    assistant = open_assistant(args)
    turns: list[Turn] = []

    def answer(question: str) -> None:
        turns.append(Turn(question))
        if not assistant.fits(turns[-1]):
            hint("提示：问话超过上下文长度，只看末尾")
        if args.show_prompt:
            print(f"［{assistant.prompt_text(turns)}］", file=sys.stderr)
        pieces = []
        for piece in assistant.stream(turns):
            print(piece, end="", flush=True)
            pieces.append(piece)
        print()
        turns[-1] = Turn(question, "".join(pieces) or "…")

    if args.instruction:
        answer(join_question(args.instruction, args.input))
    else:
        talk(answer)


def open_assistant(args: argparse.Namespace) -> "Assistant":
    """会答话的模型，连同怎样抽样。"""
    import torch

    from utils.conversation import Assistant
    from utils.device import choose_device
    from utils.generation import sampling_of
    from utils.model_loading import move_model

    device = choose_device(args.device)
    model, tokenizer = load(args)
    sampling = sampling_of(args, tokenizer.vocab_size)
    generator = torch.Generator().manual_seed(args.seed)
    model = move_model(model.eval(), device, "auto")
    return Assistant(model, tokenizer, sampling, generator, args.max_new_tokens)


def load(args: argparse.Namespace) -> "tuple[LanguageModel, Tokenizer]":
    """-> (答话的模型, 分词器)；给了适配器就加上。"""
    from model.language_model import LanguageModel
    from utils.adapter import apply_adapter, read_adapter
    from utils.model_loading import load_model, open_language_model

    file = open_language_model(args.model_path)
    adapter = read_adapter(args.adapter_path) if args.adapter_path else None
    source = adapter or file
    if source.template not in TEMPLATES:
        advice = "先用 finetune_instruction.py 微调；续写用 generate.py。"
        raise UserError(source.path, "没有做过指令微调，不会回答", advice)
    model, tokenizer = load_model(file, ModelConfig.from_dict, LanguageModel)
    if adapter:
        apply_adapter(model, adapter)
        model.template = adapter.template
    return model, tokenizer


if __name__ == "__main__":
    run_program(main)
