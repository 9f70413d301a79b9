"""质量：给几分钟，pretrain.py 能把模型练到多好。"""

import argparse
import re
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from benchmarks.measure import ROOT, alternate, pooled
from benchmarks.programs import pretrain
from benchmarks.tables import spread, table

BEST_LINE = re.compile(r"Best validate loss .*?([\d.]+) nats/char")


@dataclass(frozen=True)
class Trial:
    config: Path
    minutes: float


FULL = (Trial(ROOT / "configs/pocket_config_3M.json", 2), Trial(ROOT / "configs/pocket_config_5M.json", 10))
QUICK = (Trial(ROOT / "benchmarks/tiny_config.json", 0.01),)


def run(args: argparse.Namespace) -> str:
    trials = QUICK if args.quick else FULL
    variants = {
        f"`{trial.config.name}`，{trial.minutes} 分钟": partial(train, trial.config, args.corpus, trial.minutes)
        for trial in trials
    }
    results = alternate(variants, args.rounds)
    characters = len(args.corpus.read_text(encoding="utf-8", errors="replace"))
    introduction = (
        f"`pretrain.py --config 配置 --max_minutes 分钟`，语料 {args.corpus.name}（{characters:,} 字），"
        f"轮流进行，各 {args.rounds} 轮，中位数（最小–最大）；各轮的种子相同，不同的只是同样的时间里走了几步。"
        "秒数是整个命令，token/s 按训练的时间计，途中的评估在内；损失在语料最后的一成上。"
    )
    columns = ("seconds", "steps", "tokens_per_second", "nats")
    rows = [[name, *(spread(pooled(runs, column)) for column in columns)] for name, runs in results.items()]
    header = ["配置", "整个命令（秒）", "步数", "token/s", "验证损失（nat/字）"]
    return f"{introduction}\n\n{table(header, rows)}"


def train(config: Path, corpus: Path, minutes: float) -> dict:
    """运行一次命令。"""
    finished = pretrain("--config", config, "--data_path", corpus, "--max_minutes", minutes)
    last = finished["records"][-1]
    return {
        "seconds": finished["seconds"],
        "steps": last["step"],
        "tokens_per_second": last["tokens"] / last["seconds"],
        "nats": float(BEST_LINE.search(finished["stdout"])[1]),
    }
