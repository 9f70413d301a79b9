"""预训练：读文本文件，从随机权重开始训练语言模型。

python pretrain.py --config configs/gpt2_config_124M.json --data_path data/西游记.txt --model_path model.pth
"""

import argparse
import dataclasses
import time
from pathlib import Path
from typing import TYPE_CHECKING

from model.config import ModelConfig, count_parameters
from utils import cli
from utils.checkpoint_files import checkpoint_folder
from utils.config_file import ConfigFile, read_config
from utils.documents import Source, find_files, open_source
from utils.errors import run_program
from utils.processes import is_launched, on_main
from utils.settings import TrainingSettings, add_training_arguments
from utils.training_output import claim_output
from utils.weights_file import check_weights_file, fingerprint, with_companions

if TYPE_CHECKING:
    from model.language_model import LanguageModel
    from utils.corpus import Corpus

DEFAULT_CONFIG = Path("configs/gpt2_config_124M.json")
DEFAULT_DATA = Path("data/西游记.txt")


def parse_args() -> argparse.Namespace:
    parser = cli.ArgumentParser("在文本上预训练语言模型。训练设置的默认值可由配置文件的 training 一节改变。")
    add = parser.add_argument
    add("--config", type=cli.file_path, help=f"模型配置（默认 {DEFAULT_CONFIG}；有 --init_from 时默认用它的结构）")
    add("--init_from", type=cli.file_path, help="从它的权重接着练：model.pth、GPT-2 或书里的权重（默认随机权重）")
    data = "语料：文本文件、JSONL、它们的 .gz，或文件夹；可以有几个"
    add("--data_path", type=cli.file_path, nargs="+", default=[DEFAULT_DATA], help=f"{data}（默认 {DEFAULT_DATA}）")
    add("--model_path", type=cli.file_path, default="model.pth", help="权重保存到哪里（默认 %(default)s）")
    add("--encoding", type=cli.text_encoding, default="utf-8", help="语料的编码（默认 %(default)s）")
    add_training_arguments(parser)
    return parser.parse_args()


def main() -> None:
    started = time.monotonic()
    args = parse_args()
    if args.init_from and not args.config:
        config = ConfigFile(args.init_from, model=None, tokenizer={}, training={})  # 结构和词表都由它说，见 load_start
    else:
        config = read_config(args.config or DEFAULT_CONFIG, ModelConfig.from_dict)
    settings = TrainingSettings.from_sources(config.training, args, config.path)
    paths = [path for path, _ in find_files(args.data_path)]
    # 几个进程一起训练时，每台机器只读一遍，要等连成一组之后
    source = None if is_launched() else open_source(args.data_path, args.encoding)
    inputs = (config.path, *paths)
    if args.init_from:
        inputs += with_companions(check_weights_file(args.init_from, advice="--init_from 应指向一个模型文件或文件夹。"))
    with claim_output(args, args.model_path, inputs):
        # torch 要一两秒才能载入；放到检查之后，写错的参数和 --help 立刻有回应
        train(args, config, settings, source, started)


def train(
    args: argparse.Namespace, config: ConfigFile, settings: TrainingSettings, source: Source | None, started: float
) -> None:
    """训练并写出 --model_path 等文件；source 是 None 就在几个进程连成一组之后才读语料。"""
    import torch

    from model.language_model import LanguageModel
    from utils import distributed, dry_run, report
    from utils.training_memory import TrainingMemory
    from utils.training_program import TrainingProgram

    program = TrainingProgram(args, settings, started)
    if source is None:
        source = distributed.once_per_machine(lambda: open_source(args.data_path, args.encoding))
    model, config = load_start(args, config)
    cfg = config.model
    program.agree_on(**cfg.to_dict(), 语料=f"{source.digest} {source.encoding}", 初始权重=fingerprint(args.init_from))
    tokenizer = distributed.from_main(choose_tokenizer(args, config))
    corpus = distributed.in_turns(lambda: read_corpus(config, source, tokenizer))
    loaders = corpus.create_loaders(cfg.context_length, settings)
    if args.dry_run:
        dry_run.print_parameters(count_parameters(cfg))
    program.check_memory(TrainingMemory(cfg, settings, program.device, cfg.num_parameters, cfg.num_parameters))

    torch.manual_seed(settings.seed)
    model = program.place(model) if model else program.create(lambda: LanguageModel(cfg), cfg.num_parameters)
    model.tokenizer_state = corpus.tokenizer.state()
    trainer = program.build_trainer(model, loaders)
    report.print_start(trainer, corpus, config.path, program.dtype)
    story = report.tell_story(trainer, corpus, source.encoding)
    files = program.train_to_file(trainer, args.model_path, source.fingerprint, story, details={})
    if files:
        report.print_result(trainer, corpus, files)


@on_main
def choose_tokenizer(args: argparse.Namespace, config: ConfigFile) -> dict:
    """配置里的分词器；接着训练而语料变了，就用检查点里的，重新训练的词表接不上。"""
    from utils.checkpoint import recorded_tokenizer

    keeps_tokenizer = args.resume and args.allow_data_change
    return recorded_tokenizer(checkpoint_folder(args.model_path)) if keeps_tokenizer else config.tokenizer


def read_corpus(config: ConfigFile, source: Source, tokenizer: dict) -> "Corpus":
    """分好词的语料；词表大过 vocab_size 就抛出 UserError。"""
    from utils.corpus import Corpus

    corpus = Corpus.open(source, tokenizer)
    corpus.check_vocab_size(config.model.vocab_size, config.path)
    return corpus


def load_start(args: argparse.Namespace, config: ConfigFile) -> "tuple[LanguageModel | None, ConfigFile]":
    """-> (--init_from 的模型, 换成它的结构和词表的配置)，没有就是 (None, config)；明确给出的 --config 要与它一致。"""
    if not args.init_from:
        return None, config
    from model.language_model import LanguageModel
    from utils.model_loading import load_to_train

    given = config if args.config else None
    model, tokenizer = load_to_train(args.init_from, ModelConfig.from_dict, LanguageModel, given)
    config = dataclasses.replace(config, path=args.init_from, model=model.cfg, tokenizer=tokenizer.state())
    return model, config


if __name__ == "__main__":
    run_program(main)
