"""分类微调：在预训练好的模型上换一个头，学会给文字判断标签。

python finetune_classifier.py --model_path model.pth --data_path data/垃圾短信.csv --output_path classifier.pth
"""

import argparse
import dataclasses
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from model.config import ModelConfig
from utils import cli
from utils.config_file import read_config
from utils.errors import run_program
from utils.labeled_text import LabeledText, read_labeled_texts
from utils.settings import ONLY_PRETRAINING, TrainingSettings, add_training_arguments
from utils.training_output import claim_output
from utils.weights_file import check_weights_file, fingerprint, with_companions

if TYPE_CHECKING:
    from model.classifier import Classifier
    from utils.text_utils import Tokenizer

DEFAULTS = {
    "epochs": 4,
    "batch_size": 16,
    "optimizer": "muon",
    "learning_rate": 0.002,
    "muon_learning_rate": 0.005,
    "warmup_steps": 20,
    "keep": "last",
}


def parse_args() -> argparse.Namespace:
    parser = cli.ArgumentParser("微调预训练好的模型，给文字分类。数据是 CSV、TSV 或 JSONL，有 label 和 text 两列。")
    cli.add_finetuning_arguments(parser, "data/垃圾短信.csv", "classifier.pth", ("head", "last_block", "all", "lora"))
    add = parser.add_argument
    balance = "让各个标签的样本一样多：少的重复取"
    add("--balance", action="store_true", help=f"{balance}（默认不用）")
    add("--drop_rate", type=cli.fraction, default=0.1, help="微调时的 dropout，数据少时要大些（默认 %(default)s）")
    add_training_arguments(parser, DEFAULTS, leave_out=ONLY_PRETRAINING)
    return parser.parse_args()


def main() -> None:
    started = time.monotonic()
    args = parse_args()
    settings = TrainingSettings.from_sources(DEFAULTS, args, args.data_path)
    records = read_labeled_texts(args.data_path, args.encoding)
    model_path = check_weights_file(args.model_path)
    inputs = (*with_companions(model_path), args.data_path, *filter(None, [args.config]))
    with claim_output(args, args.output_path, inputs):
        train(args, settings, records, started)


def train(args: argparse.Namespace, settings: TrainingSettings, records: list[LabeledText], started: float) -> None:
    """微调并写出 --output_path 等文件，最后在测试部分上量一遍。"""
    from model.lora import merge_lora
    from utils import classification, report_classifier
    from utils.fine_tuning import digest_of, fixed_details
    from utils.labeled_text import split_records
    from utils.training_memory import TrainingMemory
    from utils.training_program import TrainingProgram

    program = TrainingProgram(args, settings, started)
    data_digest = digest_of(records)
    program.agree_on(数据=data_digest, 起点=fingerprint(args.model_path))
    model, tokenizer = build_classifier(args, settings.seed, records, program.place)
    details = {**fixed_details(model, args), "balance": args.balance, "标签": "、".join(model.labels)}
    split = split_records(records, settings.seed)
    datasets = classification.build_datasets(split, model.labels, tokenizer, model.cfg.context_length)
    loaders = classification.create_loaders(datasets, settings, tokenizer.end_of_text_id, args.balance)
    program.check_memory(TrainingMemory.of_model(model, datasets, settings, program.device))
    trainer = program.build_trainer(model, loaders[:2])
    trainer.calc_accuracy = lambda loader: (
        classification.measure(model, loader, model.labels, trainer.precision).accuracy
    )
    report_classifier.print_start(trainer, split, datasets, args, program.dtype)
    story = report_classifier.tell_story(trainer, split, tokenizer, args)
    files = program.train_to_file(trainer, args.output_path, data_digest, story, details)
    if files:
        merge_lora(model)
        report_classifier.print_result(trainer, loaders[2], files, args)


def build_classifier(
    args: argparse.Namespace, seed: int, records: list[LabeledText], place: Callable
) -> "tuple[Classifier, Tokenizer]":
    """-> (预训练好的主干加上新的头, 分词器)，由 place 放到设备上，要训练的参数已经选好。"""
    import torch

    from model.classifier import Classifier
    from model.language_model import LanguageModel
    from model.lora import LoRAConfig
    from model.trainable import set_trainable
    from utils.fine_tuning import check_lora_rank
    from utils.labeled_text import labels_of
    from utils.model_loading import load_to_train

    config = read_config(args.config, ModelConfig.from_dict) if args.config else None

    def make_model(cfg: ModelConfig) -> LanguageModel:
        return LanguageModel(dataclasses.replace(cfg, drop_rate=args.drop_rate))

    body, tokenizer = load_to_train(args.model_path, ModelConfig.from_dict, make_model, config)
    torch.manual_seed(seed)
    model = place(Classifier.from_language_model(body, labels_of(records)))
    check_lora_rank(args, model.cfg)
    set_trainable(model, args.trainable, LoRAConfig(args.lora_rank, args.lora_alpha, args.lora_projections))
    return model, tokenizer


if __name__ == "__main__":
    run_program(main)
