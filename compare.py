"""比较几种配置：同一份语料，同样的预算，一个接一个地训练，得出一张表和一张图。

python compare.py --configs configs/pocket_config_3M.json --vary learning_rate=0.005,0.02 --minutes 1
"""

import argparse
import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

from model.config import ModelConfig, count_training_flops
from utils import cli
from utils.console import hint, say
from utils.documents import Source, open_source
from utils.errors import RunError, Terminated, UserError, run_program
from utils.file_lock import output_lock
from utils.files import check_output_path
from utils.variations import Variation, check_names, expand, label_header, parse_assignment, parse_choice

if TYPE_CHECKING:
    from utils.comparison import EqualBudget, Plan
    from utils.report_comparison import Report

DEFAULT_CONFIG = Path("configs/pocket_config_3M.json")
DEFAULT_MINUTES = 1.0


def parse_args() -> argparse.Namespace:
    parser = cli.ArgumentParser("用同样的预算训练几种配置，比较损失、速度、参数、内存和 KV 缓存。")
    add, budget = parser.add_argument, parser.add_mutually_exclusive_group().add_argument
    add("--configs", type=cli.file_path, nargs="+", default=[DEFAULT_CONFIG], help=f"配置文件（默认 {DEFAULT_CONFIG}）")
    vary = (
        "一个字段取几个值：learning_rate=0.005,0.02；几个字段一起变用冒号：num_layers:emb_dim=2:256,8:144；可以给几次"
    )
    add("--vary", type=parse_choice, action="append", default=[], help=f"{vary}（默认不变）")
    add(
        "--set",
        type=parse_assignment,
        action="append",
        default=[],
        help="各配置都改的字段，如 drop_rate=0.1，可以给几次",
    )
    budget("--minutes", type=cli.positive_float, help=f"每次训练整个命令用几分钟（默认 {DEFAULT_MINUTES:g}）")
    budget("--flops", type=cli.positive_float, help="每次训练做多少次浮点运算，如 4e12（默认按时间）")
    add("--seeds", type=cli.positive_int, default=1, help="每种配置用几个种子各练一次（默认 %(default)s）")
    add("--data_path", type=cli.file_path, default="data/西游记.txt", help="语料，一个文件或文件夹（默认 %(default)s）")
    add("--encoding", type=cli.text_encoding, default="utf-8", help="语料的编码（默认 %(default)s）")
    add("--output_dir", type=cli.file_path, default="compare", help="结果写进哪个文件夹（默认 %(default)s）")
    add("--resume", action="store_true", help="接着上次的做：算好的不再算，中断的接着练（默认重新比较）")
    args = parser.parse_args()
    args.minutes = None if args.flops else args.minutes or DEFAULT_MINUTES
    return args


def main() -> None:
    args = parse_args()
    variations = read_variations(args)
    source = open_source([args.data_path], args.encoding)
    summary = args.output_dir / "compare.json"
    if summary.exists() and not args.resume:
        raise UserError(args.output_dir, "里面已有一次比较", "加 --resume 接着做，或换一个 --output_dir。")
    check_output_path(summary, (*args.configs, *source.paths))
    with output_lock(summary):
        # torch 要一两秒才能载入；放到检查之后，写错的参数立刻有回应
        compare(args, variations, source)


def read_variations(args: argparse.Namespace) -> list[Variation]:
    """要比较的各种配置，都检查过。"""
    check_names(args.set, args.vary, [field.name for field in dataclasses.fields(ModelConfig)])
    return expand(args.configs, args.set, args.vary, ModelConfig.from_dict)


def compare(args: argparse.Namespace, variations: list[Variation], source: Source) -> None:
    """全部检查、试跑之后才开始训练。"""
    from utils.comparison import EqualBudget, Run
    from utils.report_comparison import UNITS, Report, Row
    from utils.training_run import format_duration

    budget = EqualBudget(args.minutes, args.flops)
    rows = [Row(make_plan(variation, budget, source), [], []) for variation in variations]
    report = Report(label_header(args.configs, args.vary), rows, budget, args.seeds, args.data_path)
    data = args.data_path, args.encoding, source.digest
    runs = [  # 先把每种配置的第一个种子练完：机器的忙闲变化平摊到各配置，中途停下也有得看
        (row, Run(row.plan, budget, row.plan.variation.settings.seed + index, *data))
        for index in range(args.seeds)
        for row in rows
    ]
    time = format_duration(sum(row.plan.seconds(budget) for row, _ in runs))
    time = f"约 {time}" if time[0].isdigit() else time
    say(f"比较：{len(rows)} 种配置 × {args.seeds} 个种子，每次训练 {budget}，语料 {args.data_path}，{time}")
    train_all(runs, report, args.output_dir)
    if any(row.results for row in rows):
        say("\n".join(["", report.table(), "", *report.remarks(), *UNITS]))
    folder = args.output_dir
    say(f"表：{folder / 'compare.md'}；图：{folder / 'compare.png'}；数据：{folder / 'compare.json'}")
    if failed := [report.describe(row.label) for row in rows if row.failures]:
        raise RunError("、".join(failed), "没有练完", "原因见上；改好之后加 --resume，只练没有练完的。")


def train_all(runs: list[tuple], report: "Report", folder: Path) -> None:
    """runs 是 [(Row, Run)]；每练完一次就更新一次表和图。"""
    from utils.comparison import read_result, train

    report.write(folder)
    for number, (row, run) in enumerate(runs, 1):
        name = f"[{number}/{len(runs)}] {report.describe(run.label)}，种子 {run.seed}"
        try:
            result = read_result(folder / run.name) or train(run, folder / run.name)
        except RunError as error:
            row.failures.append(error.reason)
            hint(f"{name}：没有练完（{error.reason}）")
        except (KeyboardInterrupt, Terminated):
            hint(f"已停下；练完的 {number - 1} 次都在 {folder}，用 --resume 继续。")
            raise
        else:
            row.results.append(result)
            say(f"{name}：{result['nats_per_char']:.3f} nats/char，{result['steps']:,} 步，{result['seconds']:.0f} 秒")
        report.write(folder)


def make_plan(variation: Variation, budget: "EqualBudget", source: Source) -> "Plan":
    """检查语料、词表、内存，走几步看要多久。"""
    from model.language_model import LanguageModel
    from utils import device as devices
    from utils.comparison import Plan, count_steps
    from utils.corpus import Corpus
    from utils.memory import cache_bytes_per_token, estimate_training_bytes
    from utils.training_memory import TrainingMemory
    from utils.training_program import build_trainer

    cfg, settings = variation.config.model, variation.settings
    max_steps = count_steps(variation, count_training_flops(cfg), budget)
    corpus = Corpus.open(source, variation.config.tokenizer)
    corpus.check_vocab_size(cfg.vocab_size, variation.config.path)
    loaders = corpus.create_loaders(cfg.context_length, settings)
    device = devices.choose_device(settings.device)
    memory = TrainingMemory(cfg, settings, device, cfg.num_parameters, cfg.num_parameters)
    memory.check()
    with memory.explain_lack():
        model = LanguageModel(cfg).to(device)
        trainer = build_trainer(model, loaders, settings, devices.choose_dtype(settings.dtype, device))
        seconds_per_step = trainer.rehearse()
    targets = loaders[1].dataset.target_ids()
    validate = len(targets) / corpus.tokenizer.count_text(targets)[0]
    return Plan(
        variation,
        num_parameters=cfg.num_parameters,
        cache_bytes=cache_bytes_per_token(cfg),
        flops_per_token=count_training_flops(cfg),
        seconds_per_step=seconds_per_step,
        max_steps=max_steps,
        num_windows=len(loaders[1].dataset),
        train_tokens=len(corpus.train_ids),
        tokens_per_character=(len(corpus.train_ids) / corpus.train_characters, validate),
        estimated_bytes=estimate_training_bytes(cfg, cfg.num_parameters, settings.batch_size, device.type),
    )


if __name__ == "__main__":
    run_program(main)
