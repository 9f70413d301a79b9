"""质量：给几分钟，pretrain.py 能把模型练到多好；换一种文字还好不好；压缩权重之后还剩多好。"""

import argparse
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median

from benchmarks.measure import ROOT, alternate, pooled
from benchmarks.programs import pretrain
from benchmarks.tables import spread, table
from benchmarks.weight_formats import NUM_TOKENS, format_errors
from utils.compact_weights import FORMATS


@dataclass(frozen=True)
class Trial:
    config: Path
    minutes: float


PLAIN = ROOT / "benchmarks/plain_config.json"
FULL = (
    Trial(PLAIN, 2),
    Trial(ROOT / "configs/pocket_config_3M.json", 2),
    Trial(ROOT / "configs/pocket_config_5M.json", 10),
)
QUICK = (Trial(ROOT / "benchmarks/tiny_config.json", 0.01),)


def run(args: argparse.Namespace) -> str:
    corpora = [path for path in (args.corpus, args.other_corpus) if path]
    variants = {
        f"{corpus.name}，`{trial.config.name}`，{trial.minutes} 分钟": partial(train, trial, corpus)
        for corpus in corpora
        for trial in (QUICK if args.quick else FULL)
    }
    results = alternate(variants, args.rounds)
    sizes = "，".join(f"{path.name} {len(path.read_text(encoding='utf-8', errors='replace')):,} 字" for path in corpora)
    introduction = (
        f"`pretrain.py --config 配置 --max_minutes 分钟`，语料：{sizes}；轮流进行，各 {args.rounds} 轮，"
        "中位数（最小–最大）。"
        "各轮的种子相同，不同的只是同样的时间里走了几步。秒数是整个命令，token/s 按训练的时间计，途中的评估在内；"
        f"损失在语料最后的一成上。`{PLAIN.name}` 是对照：GPT-2 的位置、归一化和激活，4 层 × 128，AdamW，同样大的词表。"
    )
    columns = ("seconds", "steps", "tokens_per_second", "nats", "bits")
    rows = [[name, *(spread(pooled(runs, column)) for column in columns)] for name, runs in results.items()]
    header = ["语料，配置", "整个命令（秒）", "步数", "token/s", "验证损失（nat/字）", "bit/字节"]
    formats = (
        f"这些模型换成 generate.py 的各种权重格式，一次读一个 token，在验证部分开头的约 {NUM_TOKENS:,} 个 token 上，"
        "验证损失相对 float32 的变化，括号里是分数的最大误差与最大分数之比："
    )
    return "\n\n".join([introduction, table(header, rows), formats, format_table(results)])


def format_table(results: dict[str, list[dict]]) -> str:
    rows = []
    for name, runs in results.items():
        cells = []
        for number_format in FORMATS:
            loss, logits = (median(run["formats"][number_format][key] for run in runs) for key in ("loss", "logits"))
            cells.append(f"{loss:+.3f} %（{logits:.2f} %）")
        rows.append([name, *cells])
    return table(["语料，配置", *FORMATS], rows)


def train(trial: Trial, corpus: Path) -> dict:
    """运行一次命令。"""
    arguments = ("--config", trial.config, "--data_path", corpus, "--max_minutes", trial.minutes)
    finished = pretrain(*arguments, inspect=partial(format_errors, corpus=corpus))
    last = finished["records"][-1]
    return {
        "seconds": finished["seconds"],
        "steps": last["step"],
        "tokens_per_second": last["tokens"] / last["seconds"],
        "nats": finished["result"]["nats_per_char"],
        "bits": finished["result"]["bits_per_byte"],
        "formats": finished["inspected"],
    }
