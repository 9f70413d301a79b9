"""文本生成：从训练好的模型续写一段文字，或与它对话。

python generate.py --model_path model.pth --max_new_tokens 30 --temperature 0.9 --top_k 5
"""

import argparse
import dataclasses
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from model.config import ModelConfig, count_parameters
from utils import cli
from utils.archive import check_archive
from utils.config_file import ConfigFile, read_config
from utils.errors import UserError, run_program

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
        checked = background.submit(check_archive, args.model_path)
        import torch

        from utils.device import choose_device
        from utils.generation import Sampling

    device = choose_device(args.device)
    if args.quantize and args.dtype != "auto":
        raise UserError("--quantize", "不能与 --dtype 同时给出", "去掉其中一个。")
    if args.quantize and device.type != "cpu":
        raise UserError("--quantize", f"只用在 CPU 上，这里会用 {device.type.upper()}", "加 --device cpu，或去掉它。")
    checked.result()
    number_format = args.quantize or args.dtype
    model, tokenizer = load(args.model_path, config, WEIGHT_BYTES.get(number_format, 4))
    model = to_device(model.eval(), device, number_format)
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


def load(model_path: Path, config: ConfigFile | None, bytes_per_weight: int = 4):
    """-> (模型, 分词器)；模型文件已经过 check_archive。bytes_per_weight 是将要用的格式一个权重占几个字节。

    它说明了自己就以它为准，--config 只能与它一致；否则必须给 --config。
    """
    import torch

    from model.language_model import LanguageModel
    from utils.checkpoint import build_model, check_config, has_tied_weights, open_model_file, tokenizer_of
    from utils.device import check_memory
    from utils.memory import estimate_generation_bytes

    file = open_model_file(model_path)
    if file.config is None and config is None:
        raise UserError(file.path, "里面只有权重，没有记录配置", "用 --config 给出训练时的配置文件。")
    try:
        cfg = config.model if file.config is None else ModelConfig.from_dict(file.config)
    except (ValueError, TypeError) as error:
        raise UserError(file.path, f"记录的配置不成立（{error}）") from None
    if file.config is None:  # 没有自述的文件也没有说明是否共用矩阵，看权重便知
        cfg = dataclasses.replace(cfg, tie_weights=has_tied_weights(file))
    elif config:
        check_same_config(config, cfg, file)
    tokenizer = tokenizer_of(file, config.tokenizer if config else None)
    if cfg.vocab_size < tokenizer.vocab_size:
        raise UserError(file.path, f"vocab_size={cfg.vocab_size} 小于分词器词表 {tokenizer.vocab_size}")
    config_name = config.path if config else "它记录的配置"
    check_config(file, cfg, config_name)
    needed = estimate_generation_bytes(cfg, sum(count_parameters(cfg).values()), bytes_per_weight)
    check_memory(needed, torch.device("cpu"), "换一个更小的模型。")
    return build_model(lambda: LanguageModel(cfg), file, config_name), tokenizer


def to_device(model, device, number_format: str):
    """把模型搬到设备上，换成要用的数的格式。CPU 上只换线性层的权重；auto 挑这台机器上最快的，别的设备用 float32。"""
    import torch

    if device.type != "cpu":
        return model.to(device, torch.float32 if number_format == "auto" else getattr(torch, number_format))
    from utils.compact_weights import compact_weights
    from utils.weight_speed import fastest_format

    model = model.float()
    if number_format == "auto":
        number_format = fastest_format(model)
    if number_format != "float32":
        compact_weights(model, number_format)
    return model


def check_same_config(given: ConfigFile, cfg: ModelConfig, file) -> None:
    """--config 与模型文件的自述不同就报错，指出第一个不同的字段。"""
    recorded = {**cfg.to_dict(), "tokenizer": file.tokenizer["type"]}
    for name, ours in {**given.model.to_dict(), "tokenizer": given.tokenizer["type"]}.items():
        if ours != recorded[name]:
            reason = f"{given.path} 的 {name} 是 {ours}，{file.path} 训练时是 {recorded[name]}"
            raise UserError("--config", reason, "去掉 --config，模型文件里记着配置。")


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


def talk(answer) -> None:
    """一问一答，直到 exit、输入结束或 Ctrl-C。"""
    if sys.stdin is None:  # 以 <&- 启动，没有输入可读
        return
    is_terminal = sys.stdin.isatty()
    if hasattr(sys.stdin, "reconfigure"):
        sys.stdin.reconfigure(errors="replace")
    try:
        while (line := read_line(is_terminal)) is not None and line != "exit":
            if line:
                print("模型: ", end="", flush=True)
                answer(line)
    except KeyboardInterrupt:
        print()


def read_line(is_terminal: bool) -> str | None:
    """显示“用户: ”并读一行，去掉首尾空白；输入结束时返回 None。从管道来的输入照样显示出来。"""
    print("用户: ", end="", flush=True)
    line = sys.stdin.readline()
    if not line or not is_terminal:
        print(line.rstrip("\n"))
    return line.strip() if line else None


if __name__ == "__main__":
    run_program(main)
