"""指令微调：让只会续写的模型学会照吩咐回答。

python finetune_instruction.py --model_path model.pth --data_path data/指令.json --output_path assistant.pth
"""

import argparse
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from model.config import ModelConfig
from utils import cli
from utils.config_file import read_config
from utils.errors import UserError, run_program
from utils.instruction_data import Conversation, read_conversations
from utils.prompt_template import TEMPLATES, choose_template
from utils.settings import ONLY_PRETRAINING, TrainingSettings, add_training_arguments
from utils.training_output import claim_output
from utils.weights_file import check_weights_file, fingerprint, with_companions

if TYPE_CHECKING:
    from model.language_model import LanguageModel
    from utils.instruction_tuning import InstructionDataset
    from utils.text_utils import Tokenizer

DEFAULTS = {
    "epochs": 24,
    "batch_size": 32,
    "optimizer": "muon",
    "learning_rate": 0.004,
    "muon_learning_rate": 0.01,
    "warmup_steps": 20,
    "keep": "last",
}


def parse_args() -> argparse.Namespace:
    parser = cli.ArgumentParser("微调预训练好的模型，让它照指令回答。数据是 JSON 或 JSONL。")
    cli.add_finetuning_arguments(parser, "data/指令.json", "assistant.pth", ("all", "lora"))
    add = parser.add_argument
    choices = ("auto", *TEMPLATES)
    add(
        "--template", type=cli.one_of(*choices), default="auto", help=f"模板：{' | '.join(choices)}（默认 %(default)s）"
    )
    add_training_arguments(parser, DEFAULTS, leave_out=ONLY_PRETRAINING)
    return parser.parse_args()


def main() -> None:
    started = time.monotonic()
    args = parse_args()
    settings = TrainingSettings.from_sources(DEFAULTS, args, args.data_path)
    records = read_conversations(args.data_path, args.encoding)
    model_path = check_weights_file(args.model_path)
    inputs = (*with_companions(model_path), args.data_path, *filter(None, [args.config]))
    with claim_output(args, args.output_path, inputs):
        train(args, settings, records, started)


def train(args: argparse.Namespace, settings: TrainingSettings, records: list[Conversation], started: float) -> None:
    """微调并写出 --output_path 等文件，前后各看一遍留出的题答对多少。"""
    from model.lora import merge_lora
    from utils import instruction_tuning, report_instruction
    from utils.fine_tuning import digest_of, fixed_details
    from utils.training_memory import TrainingMemory
    from utils.training_program import TrainingProgram

    program = TrainingProgram(args, settings, started)
    data_digest = digest_of(records)
    program.agree_on(数据=data_digest, 起点=fingerprint(args.model_path))
    model, tokenizer = build_assistant(args, settings.seed, records, program.place)
    details = {**fixed_details(model, args), "template": model.template}
    parts = build_datasets(args, settings.seed, records, model, tokenizer)
    loaders = instruction_tuning.create_loaders(*parts, settings, tokenizer.end_of_text_id)
    program.check_memory(TrainingMemory.of_model(model, parts, settings, program.device))
    trainer = program.build_trainer(model, loaders)
    report_instruction.print_start(trainer, parts, args, program.dtype)
    before = {} if args.dry_run else instruction_tuning.measure_exact_match(model, loaders[1], trainer.precision)
    story = report_instruction.tell_story(trainer, parts, tokenizer, args)
    files = program.train_to_file(trainer, args.output_path, data_digest, story, details)
    if files:
        merge_lora(model)
        report_instruction.print_result(trainer, before, files, args)


def build_assistant(
    args: argparse.Namespace, seed: int, records: list[Conversation], place: Callable
) -> "tuple[LanguageModel, Tokenizer]":
    """-> (预训练好的模型, 分词器)，由 place 放到设备上，模板和要训练的参数已经选好。"""
    import torch

    from model.language_model import LanguageModel
    from model.lora import LoRAConfig
    from model.trainable import set_trainable
    from utils.fine_tuning import check_lora_rank
    from utils.model_loading import load_to_train

    config = read_config(args.config, ModelConfig.from_dict) if args.config else None
    model, tokenizer = load_to_train(args.model_path, ModelConfig.from_dict, LanguageModel, config)
    questions = [record.turns[0].question for record in records]
    model.template = choose_template(questions) if args.template == "auto" else args.template
    torch.manual_seed(seed)
    check_lora_rank(args, model.cfg)
    lora = LoRAConfig(args.lora_rank, args.lora_alpha, args.lora_projections)
    set_trainable(place(model), args.trainable, lora)
    return model, tokenizer


def build_datasets(
    args: argparse.Namespace, seed: int, records: list[Conversation], model: "LanguageModel", tokenizer: "Tokenizer"
) -> "list[InstructionDataset]":
    """-> [训练, 留出]；有一部分一条也用不上就抛出 UserError。"""
    from utils.instruction_data import split_conversations
    from utils.instruction_tuning import InstructionDataset

    template, context_length = TEMPLATES[model.template], model.cfg.context_length
    split = split_conversations(args.data_path, records, seed)
    parts = [InstructionDataset(part, template, tokenizer, context_length) for part in split]
    for name, part in zip(("训练", "留出"), parts, strict=True):
        if not len(part):
            reason = f"{name}部分没有一条的回答放得进 {context_length} 个 token 的上下文"
            raise UserError(args.data_path, reason, "换上下文更长的模型。")
    return parts


if __name__ == "__main__":
    run_program(main)
