"""文本生成：从训练好的模型续写一段文字，或与它对话。

python generate.py --model_path model.pth --max_new_tokens 30 --temperature 0.9 --top_k 5
"""

import argparse
import sys
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING

from model.config import ModelConfig
from utils import cli
from utils.config_file import ConfigFile, read_config
from utils.dialogue import talk
from utils.errors import UserError, run_program
from utils.text_file import TextFile
from utils.weights_file import check_weights_file

if TYPE_CHECKING:
    import torch

    from model.language_model import LanguageModel
    from utils.copy_check import CopyIndex
    from utils.generation import Prompt, Sampling
    from utils.text_utils import Tokenizer

DTYPES = "auto | float32 | float16 | bfloat16"
WEIGHT_BYTES = {"float16": 2, "bfloat16": 2, "int8": 1}  # 其余是 4；auto 按 4 估计


def parse_args() -> argparse.Namespace:
    parser = cli.ArgumentParser("用训练好的模型续写；不给 --prompt 时进入对话。")
    add = parser.add_argument
    add("--config", type=cli.file_path, help="模型配置文件（默认用模型文件里记录的配置）")
    add("--model_path", type=cli.file_path, default="model.pth", help="模型文件（默认 %(default)s）")
    add("--max_new_tokens", type=cli.positive_int, default=30, help="最多生成几个 token（默认 %(default)s）")
    add("--temperature", type=cli.non_negative_float, default=0.0, help="0 取最可能的，越大越随机（默认 %(default)s）")
    add("--top_k", type=cli.positive_int, help="只从最可能的 k 个 token 里抽（默认不限）")
    add("--top_p", type=cli.probability, help="只从累计概率刚达到 p 的最可能的 token 里抽（默认不限）")
    add("--repetition_penalty", type=cli.positive_float, default=1.0, help="大于 1 则少重复（默认 %(default)s）")
    add("--prompt", type=cli.plain_text, help="开头的文字（默认进入对话）")
    add("--num_samples", type=cli.positive_int, default=1, help="每段开头写几份（默认 %(default)s）")
    add("--seed", type=cli.seed_int, help="随机种子（默认每次不同）")
    add("--device", type=cli.device_name, default="auto", help=f"{cli.DEVICES}（默认 %(default)s）")
    add("--dtype", type=cli.one_of(*DTYPES.split(" | ")), default="auto", help=f"{DTYPES}（默认 %(default)s）")
    add("--quantize", type=cli.one_of("int8"), help="int8：权重存成 8 位整数，只在 CPU 上（默认不用）")
    add("--check_copy", type=cli.file_path, help="语料：标出样文里与它一字不差的片段，算原文照抄率（默认不查）")
    add("--encoding", type=cli.text_encoding, default="utf-8", help="--check_copy 的编码（默认 %(default)s）")
    parser.only_with("--check_copy", "--encoding")
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    config = read_config(args.config, ModelConfig.from_dict) if args.config else None
    original = TextFile.scan(args.check_copy, args.encoding) if args.check_copy else None
    # 载入 torch 要一两秒，校验大的模型文件也要；两件事同时做，都放到参数检查之后，--help 立刻有回应
    with ThreadPoolExecutor(max_workers=1) as background:
        checked = background.submit(check_weights_file, args.model_path)
        from utils.copy_check import index_file
        from utils.generation import stream_text

    model, tokenizer = open_model(args, config, checked)
    sampling, generator = choose_sampling(args, tokenizer.vocab_size)
    index = index_file(original) if original else None

    def answer(prompt: str) -> None:
        read = read_start(model, tokenizer, prompt)  # 几份样文共用
        for number in range(args.num_samples):
            print(end="\n" if number else "")
            written = print_sample(stream_text(model, tokenizer, read, args.max_new_tokens, sampling, generator))
            if index:
                print_copies(index, *written)

    if args.prompt:
        answer(args.prompt)
    else:
        talk(answer)


def open_model(
    args: argparse.Namespace, config: ConfigFile | None, checked: Future
) -> "tuple[LanguageModel, Tokenizer]":
    """-> (模型, 分词器)，在要用的设备上；checked 是模型文件的检查。"""
    from model.language_model import LanguageModel
    from utils.device import choose_device
    from utils.model_loading import load_model, move_model, open_language_model

    device = choose_device(args.device)
    check_quantize(args, device)
    checked.result()
    number_format = args.quantize or args.dtype
    bytes_per_weight = WEIGHT_BYTES.get(number_format, 4)
    file = open_language_model(args.model_path)
    model, tokenizer = load_model(file, ModelConfig.from_dict, LanguageModel, config, bytes_per_weight)
    return move_model(model.eval(), device, number_format), tokenizer


def choose_sampling(args: argparse.Namespace, vocab_size: int) -> "tuple[Sampling, torch.Generator]":
    """-> (怎样抽样, 随机数发生器)；没有给出种子时每次不同。"""
    import torch

    from utils.generation import sampling_of

    generator = torch.Generator()
    if args.seed is None:
        generator.seed()
    else:
        generator.manual_seed(args.seed)
    return sampling_of(args, vocab_size), generator


def check_quantize(args: argparse.Namespace, device: "torch.device") -> None:
    """--quantize 用不上就抛出 UserError。"""
    if args.quantize and args.dtype != "auto":
        raise UserError("--quantize", "不能与 --dtype 同时给出", "去掉其中一个。")
    if args.quantize and device.type != "cpu":
        raise UserError("--quantize", f"只用在 CPU 上，这里会用 {device.type.upper()}", "加 --device cpu，或去掉它。")


def read_start(model: "LanguageModel", tokenizer: "Tokenizer", prompt: str) -> "Prompt":
    """读一遍开头；太长的先说一声。"""
    from utils.generation import read_text_prompt

    context_length = model.cfg.context_length
    if len(tokenizer.encode(prompt)) > context_length:
        print(f"提示：开头超过上下文长度，只使用最后 {context_length} 个 token", file=sys.stderr)
    return read_text_prompt(model, tokenizer, prompt)


def print_sample(pieces: Iterable[str]) -> tuple[str, str]:
    """边生成边打印；-> (开头, 模型写的)"""
    shown = []
    for piece in pieces:
        print(piece, end="", flush=True)
        shown.append(piece)
    print()
    return shown[0], "".join(shown[1:])


def print_copies(index: "CopyIndex", start: str, written: str) -> None:
    """标出照抄的片段，再报出照抄率；开头是用户写的，不算。"""
    copies = index.find_copies(written)
    print(f"标出照抄：{start}{copies.marked()}")
    print(copies.summary())


if __name__ == "__main__":
    run_program(main)
