"""微调：分类的准确率，三个种子，与同一划分上的字词袋逻辑回归并排；训练哪些参数、从哪里开始，各差多少。"""

import argparse
import json
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from benchmarks.measure import ROOT
from benchmarks.programs import run_program
from benchmarks.tables import spread, table
from model.config import ModelConfig
from model.language_model import LanguageModel
from utils.console import hint
from utils.labeled_text import LabeledText, read_labeled_texts, split_records
from utils.model_file import read_model_file, save_model
from utils.run_files import RunFiles

SEEDS = (123, 124, 125)
MODES = ("head", "last_block", "lora", "all")
SCRATCH = "all，从随机的权重开始"
BAG_OF_WORDS = "逻辑回归"
NGRAMS = (1, 3)


@dataclass(frozen=True)
class Score:
    """测试部分上的结果；f1 是条数最少的那个标签的。"""

    seconds: float
    accuracy: float  # 百分数
    f1: float


@dataclass(frozen=True)
class Task:
    """一份数据，和预训练用的文字。"""

    data: Path
    corpus: Path
    flags: tuple[str, ...]  # 预训练的参数
    modes: tuple[str, ...]


def run(args: argparse.Namespace) -> str:
    config = ROOT / ("benchmarks/tiny_config.json" if args.quick else "configs/pocket_config_3M.json")
    seeds = SEEDS[:1] if args.quick else SEEDS
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        tasks = [Task(args.labeled, args.corpus, (), (*MODES, SCRATCH))]
        if args.other_labeled:
            own_text = folder / "own.txt"
            texts = (record.text for record in read_labeled_texts(args.other_labeled))
            own_text.write_text("\n".join(texts), encoding="utf-8")
            tasks.append(Task(args.other_labeled, own_text, ("--max_minutes", "3"), ("all", SCRATCH)))
        parts = [describe(task, measure(task, config, seeds, folder, args.quick)) for task in tasks]
    introduction = (
        f"`pretrain.py --config {config.relative_to(ROOT)}` 之后 `finetune_classifier.py`，"
        f"种子 {'、'.join(map(str, seeds))}："
        "划分、头的初始值、顺序都随种子变。秒数是微调的整个命令。"
        f"{BAG_OF_WORDS}是 scikit-learn 的：{NGRAMS[0]} 到 {NGRAMS[1]} 个字的 TF-IDF，在同一划分的训练部分上训练。"
    )
    return "\n\n".join([introduction, *parts])


def describe(task: Task, scores: dict[str, list[Score]]) -> str:
    records = read_labeled_texts(task.data)
    rarest = rarest_label(records)
    header = ["训练的参数", "测试准确率（%）", f"“{rarest}”的 F1", "秒"]
    rows = [[name, *(each(runs, column) for column in ("accuracy", "f1", "seconds"))] for name, runs in scores.items()]
    return f"{task.data.name}，{len(records):,} 条：\n\n{table(header, rows)}"


def each(runs: list[Score], column: str) -> str:
    """准确率和 F1 逐个列出，秒数给中位数。"""
    values = [getattr(score, column) for score in runs]
    if column == "seconds":
        return spread(values)
    return "、".join(f"{value:.2f}" if column == "accuracy" else f"{value:.3f}" for value in values)


def measure(task: Task, config: Path, seeds: tuple[int, ...], folder: Path, is_quick: bool) -> dict[str, list[Score]]:
    """-> {训练的参数: 各个种子的结果}"""
    base, random_base = folder / "model.pth", folder / "random.pth"
    hint(f"预训练：{task.corpus.name}")
    run_program("pretrain.py", "--config", config, "--data_path", task.corpus, "--model_path", base, *task.flags)
    save_untrained(base, random_base)
    scores = {}
    for mode in task.modes:
        for seed in seeds:
            hint(f"{task.data.name}：{mode}，种子 {seed}")
            start, trainable = (random_base, "all") if mode == SCRATCH else (base, mode)
            flags = ("--trainable", trainable, "--seed", seed, *(("--max_steps", 2) if is_quick else ()))
            scores.setdefault(mode, []).append(finetune(task, start, folder / "classifier.pth", flags))
    scores[BAG_OF_WORDS] = [bag_of_words(task.data, seed) for seed in seeds]
    return scores


def save_untrained(path: Path, target: Path) -> None:
    """与 path 同样结构和词表的模型，权重是随机的。"""
    file = read_model_file(path)
    model = LanguageModel(ModelConfig.from_dict(file.config))
    model.tokenizer_state = file.tokenizer
    save_model(target, model)


def finetune(task: Task, start: Path, output: Path, flags: tuple) -> Score:
    seconds, _ = run_program(
        "finetune_classifier.py", "--model_path", start, "--data_path", task.data, "--output_path", output, *flags
    )
    result = json.loads(RunFiles(output).result.read_bytes())
    rarest = rarest_label(read_labeled_texts(task.data))
    return Score(seconds, 100 * result["test_accuracy"], result["labels"][rarest]["f1"])


def bag_of_words(data: Path, seed: int) -> Score:
    """同一划分上的逻辑回归；C 大些，因为特征比样本多得多。"""
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import accuracy_score, f1_score
    from sklearn.pipeline import make_pipeline

    records = read_labeled_texts(data)
    split, begin = split_records(records, seed), time.perf_counter()
    features = TfidfVectorizer(analyzer="char", ngram_range=NGRAMS, sublinear_tf=True)
    pipeline = make_pipeline(features, LogisticRegression(C=100, max_iter=2000))
    pipeline.fit([record.text for record in split.train], [record.label for record in split.train])
    guesses, actual = pipeline.predict([record.text for record in split.test]), [record.label for record in split.test]
    f1 = f1_score(actual, guesses, pos_label=rarest_label(records), average="binary")
    return Score(time.perf_counter() - begin, 100 * accuracy_score(actual, guesses), f1)


def rarest_label(records: list[LabeledText]) -> str:
    labels = [record.label for record in records]
    return min(sorted(set(labels)), key=labels.count)
