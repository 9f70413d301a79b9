"""导出：把训练好的 GPT-2 写成 transformers 能打开的文件夹，也能用 --model_path 读回来。

python export_hf.py --model_path model.pth --output gpt2_folder
"""

import argparse
import json
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from model.config import ModelConfig
from utils import cli
from utils.config_file import read_config
from utils.errors import run_program
from utils.file_lock import output_lock
from utils.files import check_output_path, write_atomically
from utils.weights_file import SAFETENSORS_NAME, check_weights_file, with_companions

if TYPE_CHECKING:
    from model.language_model import LanguageModel
    from utils.text_utils import Tokenizer

Write = Callable[[BinaryIO], object]


def parse_args() -> argparse.Namespace:
    parser = cli.ArgumentParser("把 GPT-2 结构的模型写成 Hugging Face 的文件夹，transformers 可以直接打开。")
    add = parser.add_argument
    add("--config", type=cli.file_path, help="模型配置文件（默认用模型文件里记录的配置）")
    add("--model_path", type=cli.file_path, default="model.pth", help="模型文件（默认 %(default)s）")
    add("--output", type=cli.file_path, required=True, help="写到哪个文件夹；已有的同名文件留作备份")
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    model_path = check_weights_file(args.model_path)
    inputs = (*with_companions(model_path), *filter(None, [args.config]))
    # 载入模型之前先看写不写得进去；不建立文件夹，导不出的模型不该留下一个空的
    check_output_path(args.output / SAFETENSORS_NAME if args.output.exists() else args.output, inputs=inputs)
    model, tokenizer = load(model_path, args.config)
    contents = build_files(model, tokenizer)
    for name in contents:
        check_output_path(args.output / name, inputs=inputs)
    num_bytes = 4 * model.cfg.num_parameters
    with output_lock(args.output / SAFETENSORS_NAME):
        for name, write in contents.items():
            needed = num_bytes if name == SAFETENSORS_NAME else 0
            if backup := write_atomically(args.output / name, write, keep_old=True, num_bytes=needed):
                print(f"提示：原来的 {name} 已改名为 {backup.name}", file=sys.stderr)
    print(f'已导出：{args.output}（用 transformers 打开：AutoModelForCausalLM.from_pretrained("{args.output}")）')


def load(path: Path, config_path: Path | None) -> "tuple[LanguageModel, Tokenizer]":
    """-> (模型, 分词器)；不是 GPT-2 的结构就抛出 UserError。"""
    from model.language_model import LanguageModel
    from utils.hugging_face_config import check_exportable
    from utils.model_loading import load_model, open_language_model

    file = open_language_model(path)
    config = read_config(config_path, ModelConfig.from_dict) if config_path else None
    model, tokenizer = load_model(file, ModelConfig.from_dict, LanguageModel, config)
    check_exportable(path, model.cfg.to_dict())
    return model, tokenizer


def build_files(model: "LanguageModel", tokenizer: "Tokenizer") -> dict[str, Write]:
    """{文件名: 怎样写}；权重最大，最先写，磁盘不够时别的文件还没有动。"""
    from utils.hugging_face import to_hugging_face, write_safetensors
    from utils.hugging_face_config import CONFIG_NAME, GENERATION_CONFIG_NAME, to_generation_settings, to_settings
    from utils.hugging_face_tokenizer import tokenizer_files

    config, end_of_text_id = model.cfg.to_dict(), tokenizer.end_of_text_id
    texts = {
        **tokenizer_files(tokenizer, model.cfg.context_length),
        GENERATION_CONFIG_NAME: dump(to_generation_settings(config, end_of_text_id)),
        CONFIG_NAME: dump(to_settings(config, end_of_text_id, model.template)),
    }
    tensors = to_hugging_face(model.state_dict(), config)
    writes = {SAFETENSORS_NAME: partial(write_safetensors, tensors=tensors)}
    return writes | {name: partial(write_bytes, data=data) for name, data in texts.items()}


def dump(settings: dict) -> bytes:
    return (json.dumps(settings, indent=2) + "\n").encode("utf-8")


def write_bytes(file: BinaryIO, data: bytes) -> None:
    file.write(data)


if __name__ == "__main__":
    run_program(main)
