"""预训练开始前和结束后对用户说的话，和报告里预训练特有的部分。"""

import math
from pathlib import Path

import torch
from torch import nn

from utils.budget import Budget
from utils.console import hint, say
from utils.copy_check import MIN_CHARACTERS, CopyIndex
from utils.corpus import Corpus
from utils.device import describe_device
from utils.evaluation_schedule import EvaluationSchedule
from utils.generation import Sampling, generate_text, read_text_prompt, stream_text
from utils.processes import is_main
from utils.run_files import RunFiles
from utils.run_history import Sample
from utils.run_report import RunStory
from utils.text_utils import load_gpt2_tokenizer
from utils.train_utils import Trainer, calc_loss_loader, evaluating
from utils.training_run import format_duration

LONG_SECONDS = 3600.0
QUICK_CONFIG = "configs/pocket_config_3M.json"
SAMPLE_TOKENS = 100
REPORT_TOKENS = 40  # 报告里的样文途中要写几次，短一些
INDEXED_CHARACTERS = 2_000_000  # 训练部分更长时报告不算照抄率：索引每字要占 100 字节
UNSEEN_CHARACTERS = 5_000  # 验证部分取这么多字，看没见过的原文有多少与训练部分相同


def print_start(trainer: Trainer, corpus: Corpus, config_path: Path, dtype: torch.dtype) -> None:
    """训练之前：用什么设备、多大的模型、多少数据。"""
    cfg = trainer.model.cfg
    num_parameters = sum(parameter.numel() for parameter in trainer.model.parameters())
    say(f"设备：{describe_device(trainer.device)}，精度 {str(dtype).removeprefix('torch.')}")
    say(f"模型：{config_path}，{num_parameters:,} 个参数，上下文 {cfg.context_length} 个 token")
    say(f"词表：{_describe_vocabulary(corpus)}")
    say(
        f"语料：{corpus.path}，训练 {corpus.train_characters:,} 字（{len(corpus.train_ids):,} token），"
        f"验证 {corpus.validate_characters:,} 字（{len(corpus.validate_ids):,} token）"
    )
    stride = trainer.settings.stride or 0
    if stride > cfg.context_length:
        share = len(trainer.train_loader.sampler) * cfg.context_length / len(corpus.train_ids)
        hint(
            f"提示：--stride {stride:,} 大于上下文长度 {cfg.context_length:,}，窗口之间的跳过，每轮只训练到 {share:.1%}"
        )


def _describe_vocabulary(corpus: Corpus) -> str:
    text = f"{corpus.tokenizer.vocab_size:,} 个 token，平均每个 token {corpus.characters_per_token:.2f} 字"
    if corpus.tokenizer.kind == "gpt2":
        return f"GPT-2 词表，{text}"
    gpt2 = len(corpus.excerpt) / len(load_gpt2_tokenizer().encode(corpus.excerpt))
    return f"自己训练的词表，{text}（GPT-2 词表约 {gpt2:.2f}）"


def print_plan(trainer: Trainer, budget: Budget) -> None:
    """训练之前：一共几步，大约多久；太久就推荐小一些的配置。"""
    settings = trainer.settings
    steps_left, seconds_per_step = budget.steps_left(trainer), budget.seconds_per_step
    total_steps = trainer.step + steps_left
    num_evaluations = EvaluationSchedule.of(trainer, budget).count(steps_left, total_steps)
    estimate = steps_left * seconds_per_step + num_evaluations * trainer.evaluation_seconds(seconds_per_step)
    epochs = budget.epochs_at_end(trainer)
    time = format_duration(estimate)
    seconds_left = max(0.0, 60 * (settings.max_minutes or math.inf) - budget.seconds)
    if seconds_left < estimate:
        time = f"{format_duration(seconds_left)}后停止（跑完要 {time}）"
    else:
        time = f"预计 {time}" if time[0].isdigit() else f"预计{time}"
    speed = trainer.update_size * trainer.tokens_per_sample / seconds_per_step
    speed_text = f"每步 {seconds_per_step:.3g} 秒（{speed:,.0f} token/s）"
    say(f"训练：{epochs:.3g} 轮共 {total_steps:,} 步，{speed_text}，{time}")
    if min(estimate, seconds_left) > LONG_SECONDS:
        say(f"想几分钟就看到结果，可以换小模型（如 {QUICK_CONFIG} 的），或用 --max_minutes 限定时间")
    likely_steps = round(budget.planned_seconds(trainer) / seconds_per_step)
    if steps_left and settings.warmup_steps >= likely_steps:
        hint(f"提示：--warmup_steps {settings.warmup_steps:,} 不少于要走的 {likely_steps:,} 步，学习率升不到最大")


def print_result(trainer: Trainer, corpus: Corpus, files: RunFiles) -> None:
    """训练之后：所保存权重在整个验证部分上的损失、一段样文、文件在哪里。"""
    model, settings, kept = trainer.model, trainer.settings, files.kept
    files.load_kept(trainer)
    loss = (
        kept.validate_loss
        if trainer.evaluates_everything and kept.validate_loss is not None
        else calc_loss_loader(model, trainer.validate_loader, trainer.precision)
    )
    covered = trainer.validate_loader.dataset.target_ids()
    characters, num_bytes = corpus.tokenizer.count_text(covered)
    total = loss * len(covered)
    nats, bits = total / characters, total / num_bytes / math.log(2)
    files.write_result(validate_loss=loss, nats_per_char=nats, bits_per_byte=bits)
    name, which = ("Best", "验证损失最低的") if settings.keep == "best" else ("Last", "最后的")
    if settings.keep == "best" and not files.has_best:
        name, which = "Kept", "留下的"
    say(f"{name} validate loss {loss:.3f} (Step {kept.step:06d}), {nats:.3f} nats/char, {bits:.3f} bits/byte")
    with trainer.parallel.writing_together(model):
        text = sample(model, corpus, settings.sample_prompt, settings.seed)
    say(f"样文：{text}")
    others = f"损失曲线：{files.curve}；报告：{files.report}；日志：{files.log}"
    say(f"{which}权重（第 {kept.step} 步）：{files.model}；{others}")
    say(f"现在可以让它续写：python generate.py --model_path {files.model} --temperature 0.8 --top_k 50")


def sample(model: nn.Module, corpus: Corpus, prompt: str | None, seed: int) -> str:
    """用 prompt（默认是 corpus.opening）起头写一段。"""
    prompt = prompt or corpus.opening
    generator = torch.Generator().manual_seed(seed)
    with evaluating(model):
        return generate_text(model, corpus.tokenizer, prompt, SAMPLE_TOKENS, Sampling(0.8, 50), generator)


def tell_story(trainer: Trainer, corpus: Corpus, encoding: str) -> RunStory:
    """报告里的语料和样文。"""
    index = None
    facts = {
        "语料": f"{corpus.path}（{encoding}）",
        "训练部分": f"{corpus.train_characters:,} 字，{len(corpus.train_ids):,} token",
        "验证部分": f"最后的 {corpus.validate_characters:,} 字，{len(corpus.validate_ids):,} token",
        **corpus.facts,
        "词表": _describe_vocabulary(corpus),
    }
    if corpus.train_characters <= INDEXED_CHARACTERS and is_main():
        index = CopyIndex(corpus.train_text())
        rate = index.find_copies(corpus.validate_text(UNSEEN_CHARACTERS)).rate
        facts["原文照抄率"] = f"样文里与训练部分相同的片段（{MIN_CHARACTERS} 字以上）；没见过的验证部分是 {rate:.1%}"
    else:
        facts["原文照抄率"] = f"语料超过 {INDEXED_CHARACTERS:,} 字，没有算；用 generate.py --check_copy"
    return RunStory("预训练", facts, lambda: [_write_sample(trainer, corpus, index)], REPORT_TOKENS)


def _write_sample(trainer: Trainer, corpus: Corpus, index: CopyIndex | None) -> Sample:
    """用现在的权重写一段；种子每次相同，变的只有权重。"""
    model, tokenizer = trainer.model, corpus.tokenizer
    generator = torch.Generator().manual_seed(trainer.settings.seed)
    prompt = trainer.settings.sample_prompt or corpus.opening
    with evaluating(model):
        read = read_text_prompt(model, tokenizer, prompt)
        start, *written = stream_text(model, tokenizer, read, REPORT_TOKENS, Sampling(0.8, 50), generator)
    text = "".join(written)
    copied = [list(span) for span in index.find_copies(text).spans] if index else None
    return Sample(start, text, copied=copied)
