"""看见模型内部：把一段开头在模型里走过的每一步写成一个网页，双击就能打开。

python explain.py --model_path model.pth --prompt 话说孙悟空 --output explain.html
"""

import argparse
import sys
from typing import TYPE_CHECKING

from model.config import ModelConfig
from utils import cli
from utils.config_file import read_config
from utils.errors import run_program
from utils.file_lock import output_lock
from utils.files import check_output_path, megabytes, write_atomically
from utils.weights_file import check_weights_file, with_companions

if TYPE_CHECKING:
    from model.language_model import LanguageModel
    from utils.text_utils import Tokenizer

MAX_PROMPT_TOKENS = 128
MAX_LOSS_TOKENS = 512
MAX_STEPS = 48


def parse_args() -> argparse.Namespace:
    parser = cli.ArgumentParser("把一段开头在模型里走过的每一步写成一个网页，双击就能打开，不联网。")
    add = parser.add_argument
    add("--config", type=cli.file_path, help="模型配置文件（默认用模型文件里记录的配置）")
    add("--model_path", type=cli.file_path, default="model.pth", help="模型文件（默认 %(default)s）")
    add("--prompt", type=cli.plain_text, required=True, help="开头的文字")
    add("--continuation", type=cli.plain_text, help="接在开头后面的文字，看它的损失（默认看开头自己的）")
    add("--output", type=cli.file_path, default="explain.html", help="写到哪里（默认 %(default)s）")
    add("--max_new_tokens", type=cli.positive_int, default=16, help="演示生成几个 token（默认 %(default)s）")
    add("--temperature", type=cli.non_negative_float, default=0.8, help="0 取最可能的，越大越随机（默认 %(default)s）")
    add("--top_k", type=cli.positive_int, help="只从最可能的 k 个 token 里抽（默认不限）")
    add("--top_p", type=cli.probability, help="只从累计概率刚达到 p 的最可能的 token 里抽（默认不限）")
    add("--repetition_penalty", type=cli.positive_float, default=1.0, help="大于 1 则少重复（默认 %(default)s）")
    add("--seed", type=cli.seed_int, default=123, help="生成的随机种子（默认 %(default)s）")
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    config = read_config(args.config, ModelConfig.from_dict) if args.config else None
    model_path = check_weights_file(args.model_path)
    check_output_path(args.output, inputs=(*with_companions(model_path), *([args.config] if args.config else [])))
    import torch

    from model.language_model import LanguageModel
    from utils.explain_page.page import build_page
    from utils.model_loading import load_model, move_model, open_language_model

    model, tokenizer = load_model(open_language_model(model_path), ModelConfig.from_dict, LanguageModel, config)
    model = move_model(model.eval(), torch.device("cpu"), "float32")
    with output_lock(args.output):
        page = build_page(explain(model, tokenizer, args))
        backup = write_atomically(args.output, lambda file: file.write(page), keep_old=True, num_bytes=len(page))
    if backup:
        print(f"提示：原来的 {args.output} 已改名为 {backup.name}", file=sys.stderr)
    print(f"已写出：{args.output}（{megabytes(len(page))}），用浏览器打开它，不用联网")


def explain(model: "LanguageModel", tokenizer: "Tokenizer", args: argparse.Namespace) -> dict:
    """跟踪读开头、续写和损失三次计算，返回网页的数据。"""
    import torch

    from model.attention import attention_map
    from utils.explain_page.data import Explained, build_data, loss_section
    from utils.generation import sampling_of
    from utils.trace import trace_forward, trace_generation

    notes = []
    prompt = tokenizer.encode(args.prompt)
    shown = keep_last(prompt, min(MAX_PROMPT_TOKENS, model.cfg.context_length), "开头", notes)
    if len(shown) < min(len(prompt), model.cfg.context_length):
        notes.append("generate.py 会把开头读得更长，它的概率与这里的不同")
    text = prompt + tokenizer.encode(args.continuation) if args.continuation else prompt
    counted = keep_last(text, min(MAX_LOSS_TOKENS, model.cfg.context_length), "计算损失的文字", notes)
    num_context = max(1, len(counted) - (len(text) - len(prompt))) if args.continuation else 1

    sampling = sampling_of(args, tokenizer.vocab_size)
    num_steps = min(args.max_new_tokens, MAX_STEPS)
    if num_steps < args.max_new_tokens:
        notes.append(f"--max_new_tokens 已降为 {MAX_STEPS}，再多页面就太长了")
    token_ids = torch.tensor([shown])
    trace = trace_forward(model, token_ids, attention_map)
    steps = trace_generation(model, tokenizer, token_ids, num_steps, sampling, torch.Generator().manual_seed(args.seed))
    data = build_data(
        Explained(model, tokenizer, shown, trace, sampling, steps), loss_section(model, tokenizer, counted, num_context)
    )
    if len(data["attention"]["layers"]) < model.cfg.num_layers:
        notes.append(f"模型较大，{model.cfg.num_layers} 层里只画 {len(data['attention']['layers'])} 层的注意力图")
    for note in notes:
        print(f"提示：{note}", file=sys.stderr)
    about = {"title": args.prompt[:40], "model_path": str(args.model_path), "prompt": args.prompt, "notes": notes}
    about["command"] = same_generation(args)
    return {**about, "has_continuation": bool(args.continuation), **data}


def same_generation(args: argparse.Namespace) -> str:
    """generate.py 照样续写的命令，抽样的参数由网页的滑块接在后面。"""
    files = ["--model_path", str(args.model_path), *(["--config", str(args.config)] if args.config else [])]
    prompt = [f"--prompt={args.prompt}"] if args.prompt.startswith("-") else ["--prompt", args.prompt]
    numbers = ["--max_new_tokens", str(args.max_new_tokens), "--seed", str(args.seed)]
    return cli.command_line(["generate.py", *files, *prompt, *numbers])


def keep_last(token_ids: list[int], limit: int, name: str, notes: list[str]) -> list[int]:
    """最多留最后 limit 个 token，截短了就记一条提示。"""
    if len(token_ids) > limit:
        notes.append(f"{name}有 {len(token_ids)} 个 token，只用最后 {limit} 个")
    return token_ids[-limit:]


if __name__ == "__main__":
    run_program(main)
