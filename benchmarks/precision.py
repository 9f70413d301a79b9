"""精度：用 bfloat16 训练，损失与 float32 差多少。"""

import argparse
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from benchmarks.measure import ROOT
from benchmarks.programs import pretrain
from benchmarks.tables import table
from utils.console import hint

FIRST_SEED = 123
DTYPES = ("float32", "bfloat16")
LOSSES = {"train_loss": "训练", "validate_loss": "验证"}

Losses = dict[int, dict[str, float]]  # {步: {"train_loss": …, "validate_loss": …}}


@dataclass(frozen=True)
class Plan:
    config: Path
    steps: int
    every: int  # 每几步评估一次


FULL = Plan(ROOT / "configs/pocket_config_5M.json", steps=300, every=50)
QUICK = Plan(ROOT / "benchmarks/tiny_config.json", steps=2, every=1)


def run(args: argparse.Namespace) -> str:
    plan = QUICK if args.quick else FULL
    seeds = range(FIRST_SEED, FIRST_SEED + args.rounds)
    curves = {dtype: [] for dtype in DTYPES}
    for seed in seeds:
        for dtype in DTYPES:
            hint(f"种子 {seed}：{dtype}")
            curves[dtype].append(train(plan, args.corpus, dtype, seed))
    introduction = (
        f"`pretrain.py --config {plan.config.relative_to(ROOT)} --max_steps {plan.steps}`，语料 {args.corpus.name}，"
        f"种子 {seeds[0]} 到 {seeds[-1]}，每个种子两种精度各训练一次。损失的单位是 nat/token，取各种子的中位数；"
        "差是同一种子的 bfloat16 减 float32，中位数（最小–最大）；"
        "最后一列是 float32 换种子时验证损失的最大减最小，作为尺子。"
    )
    return f"{introduction}\n\n{difference_table(curves)}"


def train(plan: Plan, corpus: Path, dtype: str, seed: int) -> Losses:
    """-> 每次评估的损失"""
    settings = {"max_steps": plan.steps, "eval_freq": plan.every, "dtype": dtype, "seed": seed}
    arguments = [part for name, value in settings.items() for part in (f"--{name}", value)]
    finished = pretrain("--config", plan.config, "--data_path", corpus, *arguments)
    return {record["step"]: record for record in finished["records"]}


def difference_table(curves: dict[str, list[Losses]]) -> str:
    rows = []
    for step in curves["float32"][0]:
        cells = [str(step)]
        for key in LOSSES:
            full, half = ([curve[step][key] for curve in curves[dtype]] for dtype in DTYPES)
            differences = [b - a for a, b in zip(full, half, strict=True)]
            cells += [f"{median(full):.4f}", f"{median(half):.4f}"]
            cells.append(f"{median(differences):+.4f}（{min(differences):+.4f}–{max(differences):+.4f}）")
        validate = [curve[step]["validate_loss"] for curve in curves["float32"]]
        rows.append([*cells, f"{max(validate) - min(validate):.4f}"])
    columns = [f"{name} {column}" for name in LOSSES.values() for column in (*DTYPES, "差")]
    return table(["步", *columns, "换种子"], rows)
