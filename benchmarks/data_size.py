"""数据：语料有 1 GB 时，分词多快，内存涨多少，第二次启动要多久，训练时等不等数据。"""

import argparse
import random
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from unittest.mock import patch

from benchmarks.machine import peak_bytes, resident_bytes
from benchmarks.measure import ROOT, alternate, in_new_process, pooled
from benchmarks.tables import number, ratio, spread, table
from benchmarks.train_step import CPU, SEED, build_trainer
from model.config import ModelConfig
from utils.config_file import ConfigFile, read_config
from utils.corpus import Corpus
from utils.device import choose_dtype
from utils.settings import TrainingSettings
from utils.text_file import TextFile, read_text
from utils.text_utils import load_gpt2_tokenizer
from utils.token_file import encode_on_all_cores

MEGABYTE = 10**6
PARAGRAPHS = 1000  # 一次写出这么多段
ONE_CALL, ALL_CORES = "一次 tiktoken 调用", "PocketLLM，逐块，全部的核"
FIRST, SECOND = "第一次启动（训练词表、分词）", "第二次启动（读缓存）"


@dataclass(frozen=True)
class Plan:
    config: Path
    megabytes: int  # 没有给出 --data_mb 时
    steps: int  # 量等数据的时间时走几步


FULL = Plan(ROOT / "configs/pocket_config_5M.json", megabytes=1000, steps=30)
QUICK = Plan(ROOT / "benchmarks/tiny_config.json", megabytes=1, steps=3)
PART_MEGABYTES = 64


def run(args: argparse.Namespace) -> str:
    plan = QUICK if args.quick else FULL
    whole = args.data_mb or plan.megabytes
    part = min(PART_MEGABYTES, whole)
    with tempfile.TemporaryDirectory() as folder:
        whole_path, part_path = f"{folder}/whole.txt", f"{folder}/part.txt"
        make_corpus(args.corpus, Path(whole_path), whole * MEGABYTE)
        make_corpus(args.corpus, Path(part_path), part * MEGABYTE)
        tokenizing = {name: partial(in_new_process, tokenize, how=name, path=part_path) for name in TOKENIZERS}
        speeds = alternate(tokenizing, args.rounds)
        options = {"config": str(plan.config), "path": whole_path, "cache": f"{folder}/cache"}
        starts = {
            FIRST: partial(in_new_process, start, fresh=True, **options),
            SECOND: partial(in_new_process, start, fresh=False, **options),
            "训练": partial(in_new_process, train, steps=plan.steps, **options),
        }
        results = alternate(starts, args.rounds)
    return "\n\n".join(
        [
            f"语料由 {args.corpus.name} 的段落随机拼成，{whole:,} MB。各 {args.rounds} 轮，轮流进行，每轮一个新的进程，"
            "中位数（最小–最大）；内存是进程的最高点减去开始之前的常驻内存。",
            f"分词，GPT-2 词表，取 {part} MB：整个语料交给一次调用，单是 token 的 Python 列表就要几十 GB 内存。",
            speed_table(speeds, part),
            f"`pretrain.py --config {plan.config.relative_to(ROOT)}` 从检查编码到数据就绪，{whole:,} MB：",
            start_table({name: results[name] for name in (FIRST, SECOND)}),
            waiting(results["训练"], plan),
        ]
    )


def make_corpus(source: Path, path: Path, num_bytes: int) -> None:
    """把 source 的段落随机拼接起来，写成至少 num_bytes 字节的文件。"""
    paragraphs = read_text(source).splitlines(keepends=True)
    chance = random.Random(SEED)
    with path.open("wb") as file:
        while file.tell() < num_bytes:
            file.write("".join(chance.choices(paragraphs, k=PARAGRAPHS)).encode("utf-8"))


def speed_table(results: dict[str, list[dict]], megabytes: int) -> str:
    rows = []
    for name, measured in results.items():
        speeds = [megabytes / seconds for seconds in pooled(measured, "seconds")]
        faster = ratio(pooled(results[ONE_CALL], "seconds"), pooled(measured, "seconds"))
        rows.append([name, spread(speeds), faster, growth(measured)])
    return table(["做法", "MB/s", "与一次调用之比", "内存增长（MB）"], rows)


def start_table(results: dict[str, list[dict]]) -> str:
    rows = [[name, spread(pooled(measured, "seconds")), growth(measured)] for name, measured in results.items()]
    return table(["", "秒", "内存增长（MB）"], rows)


def waiting(results: list[dict], plan: Plan) -> str:
    waits, steps = pooled(results, "waits"), pooled(results, "steps")
    shares = [100 * sum(result["waits"]) / (sum(result["waits"]) + sum(result["steps"])) for result in results]
    return (
        f"接着训练 {plan.steps} 步，等数据的时间占 {spread(shares)} %："
        f"取一批 {number(1000 * median(waits))} 毫秒，一步 {number(1000 * median(steps))} 毫秒。"
    )


def growth(results: list[dict]) -> str:
    return spread([value / MEGABYTE for value in pooled(results, "growth")])


@contextmanager
def timed() -> Iterator[dict]:
    """交出一个字典，离开时填好用去的秒数和内存的增长。"""
    result, before, begin = {}, resident_bytes(), time.perf_counter()
    yield result
    result |= {"seconds": time.perf_counter() - begin, "growth": peak_bytes() - before}


def one_call(path: Path) -> int:
    return len(load_gpt2_tokenizer().encode(read_text(path)))


def all_cores(path: Path) -> int:
    source = TextFile.scan(path)
    pieces = source.pieces(0, source.num_characters)
    return sum(len(token_ids) for token_ids in encode_on_all_cores(load_gpt2_tokenizer(), pieces))


TOKENIZERS = {ONE_CALL: one_call, ALL_CORES: all_cores}  # 文件 -> token 数；读文件的时间都在内


def tokenize(how: str, path: str) -> dict:
    """在自己的进程里给一个文件分词。"""
    with timed() as result:
        result["tokens"] = TOKENIZERS[how](Path(path))
    return result


def start(config: str, path: str, cache: str, fresh: bool) -> dict:
    """在自己的进程里打开语料；fresh 时先删去缓存。"""
    file = read_config(Path(config), ModelConfig.from_dict)
    if fresh:
        shutil.rmtree(cache, ignore_errors=True)
    with timed() as result:
        open_corpus(file, path, cache)
    return result


def open_corpus(file: ConfigFile, path: str, cache: str) -> Corpus:
    """像 pretrain.py 那样打开语料，只是缓存不放进项目的文件夹。"""
    with patch("utils.files.CACHE_DIR", Path(cache)):
        return Corpus.from_file(TextFile.scan(Path(path)), file.tokenizer)


def train(config: str, path: str, cache: str, steps: int) -> dict:
    """在自己的进程里训练几步。-> 各步等数据的秒数和训练的秒数"""
    file = read_config(Path(config), ModelConfig.from_dict)
    settings = TrainingSettings.from_sources(file.training, argparse.Namespace(), file.path)
    loaders = open_corpus(file, path, cache).create_loaders(file.model.context_length, settings)
    trainer = build_trainer(file.model, settings, choose_dtype("auto", CPU), *loaders)
    groups = trainer._grouped_batches()
    trainer._train_step(next(groups), progress=0.0)  # 预热
    times = [time.perf_counter()]
    for _ in range(steps):
        batches = next(groups)
        times.append(time.perf_counter())
        trainer._train_step(batches, progress=0.0)
        times.append(time.perf_counter())
    durations = [after - before for before, after in zip(times, times[1:], strict=False)]
    return {"waits": durations[::2], "steps": durations[1::2]}
