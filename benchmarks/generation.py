"""生成：每秒几个 token，上下文变长时慢多少，读提示语要多久，用多少内存。"""

import argparse
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from statistics import median

import torch
from torch import Tensor

from benchmarks import peer, weights
from benchmarks.measure import ROOT, alternate, in_new_process, pooled
from benchmarks.tables import gigabytes, ratio, spread, table
from benchmarks.train_step import CPU, OURS, SEED, THEIRS
from utils.generation import Sampling, generate_tokens, read_prompt
from utils.model_loading import move_model

CHOICES = {OURS: ("auto", "float32", "float16", "bfloat16", "int8"), THEIRS: ("float32", "bfloat16")}
SKIPPED = 2  # 读完提示语后的头两个 token 还在预热，不算
WINDOW = 16  # 每个位置量几个 token
PROMPT = 8

Timer = Callable[[int, int], list[float]]  # (提示语的 token 数, 生成几个) -> 每个 token 的秒数，第一个含读提示语


@dataclass(frozen=True)
class Plan:
    config: Path
    new_tokens: int
    positions: tuple[int, int]
    prefill: int


FULL = Plan(ROOT / "configs/gpt2_config_124M.json", new_tokens=256, positions=(10, 1000), prefill=512)
QUICK = Plan(ROOT / "benchmarks/tiny_config.json", new_tokens=16, positions=(10, 40), prefill=32)


def run(args: argparse.Namespace) -> str:
    plan = QUICK if args.quick else FULL
    with tempfile.TemporaryDirectory() as folder:
        paths = {OURS: f"{folder}/model.pth", THEIRS: f"{folder}/transformers"}
        for who, save in ((OURS, weights.save), (THEIRS, peer.save)):
            in_new_process(save, config=str(plan.config), path=paths[who])
        common = {"new_tokens": plan.new_tokens, "positions": plan.positions, "prefill": plan.prefill}
        variants = {
            label(who, dtype): partial(in_new_process, measure, who=who, path=paths[who], dtype=dtype, **common)
            for who in TIMERS
            for dtype in CHOICES[who]
        }
        results = alternate(variants, args.rounds)
    introduction = (
        f"`{plan.config.name}`，随机权重，batch 1，每次取最可能的 token，两边都用 KV 缓存。"
        f"每个对象 {args.rounds} 轮，轮流进行，每轮一个新的进程，先预热；中位数（最小–最大）。"
        f"token/s 是 {PROMPT} 个 token 的提示语之后连续生成 {plan.new_tokens} 个，读提示语的时间在内；"
        f"某个位置的毫秒数取那里连续 {WINDOW} 个 token；内存是进程的最高点。"
        "auto 是 generate.py 的默认，int8 是 --quantize int8。"
    )
    ratios = f"同一次运行里，PocketLLM 的 token/s 除以 transformers 的：\n\n{ratio_table(results)}"
    return f"{introduction}\n\n{result_table(plan, results)}\n\n{ratios}"


def label(who: str, dtype: str) -> str:
    return f"{who} {dtype}"


def result_table(plan: Plan, results: dict[str, list[dict]]) -> str:
    rows = []
    for who in TIMERS:
        for dtype in CHOICES[who]:
            measured = results[label(who, dtype)]
            near, far = pooled(measured, "near"), pooled(measured, "far")
            cells = [who, dtype, spread(pooled(measured, "tokens_per_second"))]
            cells += [milliseconds(near), milliseconds(far), ratio(far, near)]
            cells += [milliseconds(pooled(measured, "prefill")), gigabytes(max(pooled(measured, "peak_bytes")))]
            rows.append(cells)
    positions = [f"第 {position} 个（毫秒）" for position in plan.positions]
    header = ["程序", "精度", "token/s", *positions, "后者 / 前者", f"读 {plan.prefill} 个 token（毫秒）", "内存（GB）"]
    return table(header, rows)


def ratio_table(results: dict[str, list[dict]]) -> str:
    rows = []
    for ours in CHOICES[OURS]:
        speeds = pooled(results[label(OURS, ours)], "tokens_per_second")
        theirs = (results[label(THEIRS, dtype)] for dtype in CHOICES[THEIRS])
        rows.append([ours, *(ratio(speeds, pooled(measured, "tokens_per_second")) for measured in theirs)])
    return table(["PocketLLM", *(f"对 transformers {dtype}" for dtype in CHOICES[THEIRS])], rows)


def milliseconds(seconds: list[float]) -> str:
    return spread([1000 * value for value in seconds])


def measure(who: str, path: str, dtype: str, new_tokens: int, positions: list[int], prefill: int) -> dict:
    """在自己的进程里生成几段。"""
    timer = TIMERS[who](path, dtype)
    timer(PROMPT, SKIPPED)  # 预热
    near, far = (median(timer(position - SKIPPED, SKIPPED + WINDOW)[SKIPPED:]) for position in positions)
    return {
        "tokens_per_second": new_tokens / sum(timer(PROMPT, new_tokens)),
        "near": near,
        "far": far,
        "prefill": timer(prefill, 1)[0],
    }


def random_prompt(length: int, vocab_size: int) -> Tensor:
    """-> (1, length)"""
    return torch.randint(vocab_size, (1, length), generator=torch.Generator().manual_seed(SEED))


def our_timer(path: str, dtype: str) -> Timer:
    """generate.py 的生成。"""
    model, tokenizer = weights.load(Path(path))
    model = move_model(model.eval(), CPU, dtype)

    def time_tokens(prompt_length: int, new_tokens: int) -> list[float]:
        token_ids = random_prompt(prompt_length, tokenizer.vocab_size)
        clock = Clock()
        prompt = read_prompt(model, token_ids)
        tokens = generate_tokens(model, prompt, tokenizer.vocab_size, Sampling(), torch.Generator())
        for token_id in islice(tokens, new_tokens):
            clock.put(token_id)
        return clock.seconds

    return time_tokens


def their_timer(path: str, dtype: str) -> Timer:
    """照 transformers 的文档写出的生成。"""
    from transformers import GPT2LMHeadModel

    model = GPT2LMHeadModel.from_pretrained(path, dtype=getattr(torch, dtype)).eval()
    model.generation_config.eos_token_id = None  # 随机权重，遇到文本结束符不停

    def time_tokens(prompt_length: int, new_tokens: int) -> list[float]:
        token_ids = random_prompt(prompt_length, model.config.vocab_size)
        options = {"attention_mask": torch.ones_like(token_ids), "do_sample": False, "use_cache": True}
        clock = Clock()
        model.generate(token_ids, **options, max_new_tokens=new_tokens, streamer=clock)
        return [sum(clock.seconds[:2]), *clock.seconds[2:]]  # 它先交出提示语，再交出各个 token

    return time_tokens


class Clock:
    """每收到一个 token 记下用了几秒；也能作 transformers 的 streamer。"""

    def __init__(self):
        self.seconds: list[float] = []
        self._last = time.perf_counter()

    def put(self, token_ids: Tensor) -> None:
        now = time.perf_counter()
        self.seconds.append(now - self._last)
        self._last = now

    def end(self) -> None:
        """transformers 生成完会调用。"""


TIMERS = {OURS: our_timer, THEIRS: their_timer}
