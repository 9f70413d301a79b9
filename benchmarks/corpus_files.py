"""语料：一个文件夹里有许多文件、许多 GB 时，准备多快，占多少内存，第二次启动要多久，训练有没有变慢。"""

import argparse
import gzip
import json
import os
import random
import shutil
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from unittest.mock import patch

from benchmarks.data_size import FULL, MEGABYTE, PARAGRAPHS, QUICK, growth, timed
from benchmarks.measure import alternate, in_new_process, pooled
from benchmarks.tables import spread, table
from benchmarks.train_step import CPU, SEED, build_trainer
from model.config import ModelConfig
from utils.config_file import read_config
from utils.corpus import Corpus
from utils.device import choose_dtype
from utils.documents import open_source
from utils.settings import TrainingSettings
from utils.text_file import read_text

KINDS = (".txt", ".jsonl", ".txt", ".jsonl", ".jsonl.gz")
NUM_FILES = 20
NUM_PART = 2  # 比较一个核与全部的核，只用其中的这么多个文件
DOCUMENT_PARAGRAPHS = 5
COMPRESSION = 1  # 压得快些；解压的快慢与它无关


def run(args: argparse.Namespace) -> str:
    plan = QUICK if args.quick else FULL
    num_bytes = plan.megabytes * MEGABYTE if args.size_gb is None else int(args.size_gb * 1000 * MEGABYTE)
    with tempfile.TemporaryDirectory() as temporary:
        folder, cache = Path(temporary, "corpus"), Path(temporary, "cache")
        paths = make_folder(args.corpus, folder, num_bytes)
        part = [str(path) for path in paths[:NUM_PART]]
        options = {"config": str(plan.config), "cache": str(cache)}
        cores = {
            name: partial(in_new_process, start, paths=part, fresh=True, num_cores=number, **options)
            for name, number in (("一个核", 1), ("全部的核", None))
        }
        speeds = alternate(cores, args.rounds)
        whole = partial(in_new_process, start, paths=[str(folder)], num_cores=None, **options)
        starts = {"第一次启动": [whole(fresh=True)], "第二次启动": [whole(fresh=False) for _ in range(args.rounds)]}
        trainings = {
            name: partial(in_new_process, train, paths=[str(path)], steps=plan.steps, **options)
            for name, path in ((args.corpus.name, args.corpus), ("文件夹", folder))
        }
        steps = alternate(trainings, args.rounds)
    return "\n\n".join(describe(args, num_bytes, speeds, starts, steps, plan.config.name))


def describe(
    args: argparse.Namespace, num_bytes: int, speeds: dict, starts: dict, steps: dict, config: str
) -> Iterator[str]:
    first = starts["第一次启动"][0]
    yield (
        f"{NUM_FILES} 个文件（{'、'.join(dict.fromkeys(KINDS))}），由 {args.corpus.name} 的段落随机拼成，解压后共 "
        f"{num_bytes / MEGABYTE:,.0f} MB，{first['tokens']:,} 个 token；`{config}` 的词表，在语料上训练。"
        "每次一个新的进程，内存是最高点减去开始之前的常驻内存。"
    )
    size = NUM_PART * num_bytes / NUM_FILES
    rows = [
        [
            name,
            *(spread([size / MEGABYTE / s for s in pooled(measured, key)]) for key in ("scan", "prepare")),
            growth(measured),
        ]
        for name, measured in speeds.items()
    ]
    yield f"前 {NUM_PART} 个文件，检查、准备（训练词表、分词、写盘）各有多快，MB/s："
    yield table(["", "检查", "准备", "内存增长（MB）"], rows)
    rows = [
        [name, *(spread(pooled(measured, key)) for key in ("scan", "prepare")), growth(measured)]
        for name, measured in starts.items()
    ]
    yield "整个文件夹，用全部的核，秒："
    yield table(["", "检查", "准备", "内存增长（MB）"], rows)
    rows = [
        [name, spread(pooled(measured, "speed")), spread(pooled(measured, "first")), growth(measured)]
        for name, measured in steps.items()
    ]
    yield "准备好之后训练："
    yield table(["语料", "token/s", "取第一批（毫秒）", "内存增长（MB）"], rows)


def make_folder(source: Path, folder: Path, num_bytes: int) -> list[Path]:
    """NUM_FILES 个文件，解压后合起来至少 num_bytes 字节；同样的种子总是同样的内容。"""
    paragraphs = [line for line in read_text(source).splitlines() if line.strip()]
    folder.mkdir()
    paths = []
    for number in range(NUM_FILES):
        suffix, chance = KINDS[number % len(KINDS)], random.Random(SEED + number)
        paths.append(folder / f"{number:02}{suffix}")
        opener = partial(gzip.open, compresslevel=COMPRESSION) if suffix.endswith(".gz") else open
        with opener(paths[-1], "wb") as file:
            left = num_bytes / NUM_FILES
            while left > 0:
                left -= file.write(_some_text(chance.choices(paragraphs, k=PARAGRAPHS), suffix))
    return paths


def _some_text(paragraphs: list[str], suffix: str) -> bytes:
    if suffix == ".txt":
        return "".join(f"{paragraph}\n" for paragraph in paragraphs).encode("utf-8")
    documents = [
        "\n".join(paragraphs[i : i + DOCUMENT_PARAGRAPHS]) for i in range(0, len(paragraphs), DOCUMENT_PARAGRAPHS)
    ]
    return "".join(f"{json.dumps({'text': text}, ensure_ascii=False)}\n" for text in documents).encode("utf-8")


def open_corpus(config: str, paths: list[str], cache: str, result: dict) -> Corpus:
    """像 pretrain.py 那样打开语料，只是缓存不放进项目的文件夹；result 里记下两步的秒数。"""
    tokenizer = read_config(Path(config), ModelConfig.from_dict).tokenizer
    with patch("utils.files.CACHE_DIR", Path(cache)):
        with timed() as scanning:
            source = open_source([Path(path) for path in paths], "utf-8")
        with timed() as preparing:
            corpus = Corpus.open(source, tokenizer)
    result |= {"scan": scanning["seconds"], "prepare": preparing["seconds"]}
    return corpus


def start(config: str, paths: list[str], cache: str, fresh: bool, num_cores: int | None) -> dict:
    """在自己的进程里打开语料；fresh 时先删去缓存。num_cores 只用这么多个核（Linux）。"""
    if num_cores and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:num_cores])
    if fresh:
        shutil.rmtree(cache, ignore_errors=True)
    details = {}
    with timed() as result:
        corpus = open_corpus(config, paths, cache, details)
    return {**result, **details, "tokens": len(corpus.train_ids) + len(corpus.validate_ids)}


def train(config: str, paths: list[str], cache: str, steps: int) -> dict:
    """在自己的进程里训练几步。-> 各步的 token/s，取第一批的毫秒数（打乱顺序在内）"""
    file = read_config(Path(config), ModelConfig.from_dict)
    settings = TrainingSettings.from_sources(file.training, argparse.Namespace(), file.path)
    speeds = []
    with timed() as result:
        loaders = open_corpus(config, paths, cache, {}).create_loaders(file.model.context_length, settings)
        trainer = build_trainer(file.model, settings, choose_dtype("auto", CPU), *loaders)
        groups = trainer._grouped_batches()
        with timed() as fetching:
            first = next(groups)
        trainer._train_step(first, progress=0.0)  # 预热
        for _ in range(steps):
            with timed() as step:
                batches = next(groups)
                trainer._train_step(batches, progress=0.0)
            speeds.append(sum(inputs.numel() for inputs, _ in batches) / step["seconds"])
    return {"speed": speeds, "first": 1000 * fetching["seconds"], "growth": result["growth"]}
