"""指令微调开始前和结束后对用户说的话，和报告里指令微调特有的部分。"""

import argparse
from collections import Counter

import torch

from utils.console import say
from utils.generation import Sampling, read_prompt, stream_text
from utils.instruction_tuning import InstructionDataset, measure_exact_match
from utils.report_finetuning import print_model, print_use
from utils.run_files import RunFiles
from utils.run_history import Sample
from utils.run_report import RunStory
from utils.text_utils import END_OF_TEXT, Tokenizer
from utils.train_utils import Trainer, evaluating

NUM_QUESTIONS = 3  # 报告里反复问的留出问题
ANSWER_TOKENS = 24
Counts = dict[str | None, tuple[int, int]]  # {任务: (答对, 一共)}


def print_start(
    trainer: Trainer, parts: tuple[InstructionDataset, InstructionDataset], args: argparse.Namespace, dtype: torch.dtype
) -> None:
    """训练之前：设备、训练哪些参数、数据怎样分。"""
    model = trainer.model
    print_model(trainer, args, dtype)
    say(f"数据：{args.data_path}，模板 {model.template}，训练 {len(parts[0]):,} 条，留出 {len(parts[1]):,} 条")
    length = model.cfg.context_length
    if truncated := sum(part.num_truncated for part in parts):
        say(f"有 {truncated:,} 条超过上下文长度 {length}，截去了末尾")
    if dropped := sum(part.num_dropped for part in parts):
        say(f"另有 {dropped:,} 条的回答在 {length} 个 token 之外，没有用上；换上下文更长的模型才学得到")


def print_result(trainer: Trainer, before: Counts, files: RunFiles, args: argparse.Namespace) -> None:
    """训练之后：所保存的权重在留出部分上完全答对的比例，逐类与训练之前相比。"""
    files.load_kept(trainer)
    after = measure_exact_match(trainer.model, trainer.validate_loader, trainer.precision)
    say("留出部分完全答对：训练之前 → 之后（条数）")
    for task, (right, total) in after.items():
        if task is not None:
            say(f"  {task}  {before[task][0] / total:.0%} → {right / total:.0%}（{total}）")
    (old, total), (new, _) = (tuple(map(sum, zip(*counts.values(), strict=True))) for counts in (before, after))
    files.write_result(exact_match_before=old / total, exact_match=new / total, num_held_out=total)
    say(f"合计 {old / total:.1%} → {new / total:.1%}（{total:,}），第 {files.kept.step} 步的权重")
    say(f"会答话的模型：{files.model}；曲线：{files.curve}；报告：{files.report}；日志：{files.log}")
    print_use(files, args, "chat.py")


def tell_story(
    trainer: Trainer, parts: list[InstructionDataset], tokenizer: Tokenizer, args: argparse.Namespace
) -> RunStory:
    """报告里的数据，和途中反复问的几个留出的问题。"""
    train, held_out = parts
    counts = Counter(task for task in train.tasks if task is not None)
    facts = {
        "起点": str(args.model_path),
        "数据": f"{args.data_path}（{args.encoding}）",
        "训练": f"{len(train):,} 条",
        "留出": f"{len(held_out):,} 条",
        "截去末尾": f"{sum(part.num_truncated for part in parts):,} 条",
        "没有用上": f"{sum(part.num_dropped for part in parts):,} 条",
        "模板": trainer.model.template,
    }
    if counts:
        facts["各类任务"] = "、".join(f"{task} {count:,}" for task, count in counts.items()) + "（训练部分）"
    firsts = dict(zip(reversed(held_out.tasks), reversed(range(len(held_out))), strict=True))  # {任务: 第一条}
    indices = sorted(firsts.values())[:NUM_QUESTIONS]
    questions = [held_out.samples[index] for index in indices]
    write = lambda: [_answer(trainer, tokenizer, *question) for question in questions]  # noqa: E731
    return RunStory("指令微调", facts, write, NUM_QUESTIONS * ANSWER_TOKENS)


def _answer(trainer: Trainer, tokenizer: Tokenizer, token_ids: torch.Tensor, is_answer: torch.Tensor) -> Sample:
    """问第一轮的问题，取最可能的回答。"""
    start = int(is_answer.int().argmax())
    length = int(is_answer[start:].int().cumprod(0).sum())
    expected = tokenizer.decode(token_ids[start : start + length].tolist()).removesuffix(END_OF_TEXT)
    with evaluating(trainer.model):
        read = read_prompt(trainer.model, token_ids[None, :start].to(trainer.device))
        pieces = stream_text(trainer.model, tokenizer, read, ANSWER_TOKENS, Sampling(), torch.Generator())
        prompt, *written = pieces
    return Sample(prompt, "".join(written), expected)
