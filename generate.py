"""文本生成：从训练好的模型续写一段文字，或与它对话。

python generate.py --model_path model.pth --max_new_tokens 30 --temperature 0.9 --top_k 5
"""

import argparse
import sys
from concurrent.futures import ThreadPoolExecutor

from model.config import ModelConfig
from utils import cli
from utils.config_file import read_config
from utils.dialogue import talk
from utils.errors import UserError, run_program
from utils.weights_file import check_weights_file

DTYPES = "auto | float32 | float16 | bfloat16"
WEIGHT_BYTES = {"float16": 2, "bfloat16": 2, "int8": 1}  # 其余是 4；auto 按 4 估计


def parse_args() -> argparse.Namespace:
    parser = cli.ArgumentParser("用训练好的模型续写；不给 --prompt 时进入对话。")
    add = parser.add_argument
    add("--config", type=cli.file_path, help="模型配置文件（默认读模型文件里的自述）")
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
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    config = read_config(args.config, ModelConfig.from_dict) if args.config else None
    # 载入 torch 要一两秒，校验大的模型文件也要；两件事同时做，都放到参数检查之后，--help 立刻有回应
    with ThreadPoolExecutor(max_workers=1) as background:
        checked = background.submit(check_weights_file, args.model_path)
        import torch

        from model.language_model import LanguageModel
        from utils.device import choose_device
        from utils.generation import Sampling
        from utils.model_loading import load_model, move_model, open_language_model

    device = choose_device(args.device)
    if args.quantize and args.dtype != "auto":
        raise UserError("--quantize", "不能与 --dtype 同时给出", "去掉其中一个。")
    if args.quantize and device.type != "cpu":
        raise UserError("--quantize", f"只用在 CPU 上，这里会用 {device.type.upper()}", "加 --device cpu，或去掉它。")
    checked.result()
    number_format = args.quantize or args.dtype
    file = open_language_model(args.model_path)
    bytes_per_weight = WEIGHT_BYTES.get(number_format, 4)
    model, tokenizer = load_model(file, ModelConfig.from_dict, LanguageModel, config, bytes_per_weight)
    model = move_model(model.eval(), device, number_format)
    top_k = args.top_k
    if top_k is not None and top_k > tokenizer.vocab_size:
        print(f"提示：--top_k 已降为词表大小 {tokenizer.vocab_size}", file=sys.stderr)
        top_k = tokenizer.vocab_size
    sampling = Sampling(args.temperature, top_k, args.top_p, args.repetition_penalty)
    generator = torch.Generator()
    if args.seed is None:
        generator.seed()
    else:
        generator.manual_seed(args.seed)

    def answer(prompt: str) -> None:
        print_samples(model, tokenizer, prompt, args, sampling, generator)

    if args.prompt:
        answer(args.prompt)
    else:
        talk(answer)


def print_samples(model, tokenizer, prompt: str, args: argparse.Namespace, sampling, generator) -> None:
    """边生成边打印；多份样文之间空一行。"""
    from utils.generation import read_text_prompt, stream_text

    context_length = model.cfg.context_length
    if len(tokenizer.encode(prompt)) > context_length:
        print(f"提示：开头超过上下文长度，只使用最后 {context_length} 个 token", file=sys.stderr)
    read = read_text_prompt(model, tokenizer, prompt)  # 几份样文共用
    for index in range(args.num_samples):
        if index:
            print()
        for piece in stream_text(model, tokenizer, read, args.max_new_tokens, sampling, generator):
            print(piece, end="", flush=True)
        print()


if __name__ == "__main__":
    run_program(main)
