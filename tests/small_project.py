"""文档里的命令能在里面运行的文件夹：文件名与项目的相同，配置、语料、数据、模型都很小。"""

import gzip
import json
import shutil
from pathlib import Path

import torch
from book_reference import BOOK, ReferenceModel
from gpt2_reference import build_reference

from conftest import ROOT

CORPUS_CHARACTERS = 6000
# 文档里这样称呼的语料：读者自己准备，或从网上下载
OWN_CORPORA = ("我的文章.txt", "你的文件.txt", "另一份文字.txt", "语料", "data/西游记原著.txt")
SMALL_MODEL = {"vocab_size": 300, "context_length": 64, "emb_dim": 48, "num_layers": 2}
BOOK_SHAPE = {"vocab_size": 50257, "context_length": 64, "num_layers": 1, "qkv_bias": False}
GPT2 = {"vocab_size": 50257, "n_positions": 64, "n_embd": 64, "n_layer": 1, "n_head": 1}


def build(folder: Path) -> None:
    """写出没有模型的那一半；模型要用项目自己的程序训练。"""
    for name in ("configs", "data", "benchmarks"):
        (folder / name).mkdir()
    text = (ROOT / "data/西游记.txt").read_text(encoding="utf-8")[:CORPUS_CHARACTERS]
    for name in ("data/西游记.txt", *OWN_CORPORA):
        (folder / name).write_text(text, encoding="utf-8")
    write_documents(folder, text)
    for path in (*ROOT.glob("configs/*.json"), *ROOT.glob("benchmarks/*.json")):
        shrink_config(path, folder / path.relative_to(ROOT))
    messages = (ROOT / "data/垃圾短信.csv").read_text(encoding="utf-8").splitlines()
    (folder / "data/垃圾短信.csv").write_text("\n".join([messages[0], *messages[1::60]]) + "\n", encoding="utf-8")
    records = json.loads((ROOT / "data/指令.json").read_text(encoding="utf-8"))
    held_out = [record for record in records if record["split"] == "held_out"]
    few = [record for record in records if record["split"] == "train"][::100] + held_out[::200]
    (folder / "data/指令.json").write_text(json.dumps(few, ensure_ascii=False), encoding="utf-8")
    build_reference(**GPT2).save_pretrained(folder / "gpt2")
    (folder / "gpt2/model.safetensors").rename(folder / "data/gpt2_124M.safetensors")
    shutil.rmtree(folder / "gpt2")
    write_book_weights(folder)
    shutil.copy(ROOT / "benchmarks/README.md", folder / "benchmarks")
    shutil.copytree(ROOT / "docs/pictures", folder / "docs/pictures")
    (folder / "练习.py").write_text('print("学习者自己写的")\n', encoding="utf-8")


def write_book_weights(folder: Path) -> None:
    """《从零构建大模型》的读者手里的权重：第五章的存法；头数看不出的那种和它的配置。"""
    state = ReferenceModel(BOOK, {**BOOK_SHAPE, "emb_dim": 64, "num_heads": 1}).state_dict()
    torch.save({"model_state_dict": state, "optimizer_state_dict": {}}, folder / "model_and_optimizer.pth")
    narrow = {**BOOK_SHAPE, "emb_dim": 48, "num_heads": 3}
    torch.save(ReferenceModel(BOOK, narrow).state_dict(), folder / "narrow.pth")
    config = {
        "n_heads" if key == "num_heads" else "n_layers" if key == "num_layers" else key: narrow[key] for key in narrow
    }
    (folder / "my_book_config.json").write_text(json.dumps({**config, "drop_rate": 0.1}), encoding="utf-8")


def write_documents(folder: Path, text: str) -> None:
    """许多篇文档的语料：一个文件夹，一个文本文件，一个压缩的 JSONL，各是 text 的一段。"""
    third = len(text) // 3
    (folder / "百科").mkdir()
    (folder / "百科/猴.txt").write_text(text[:third], encoding="utf-8")
    (folder / "小说.txt").write_text(text[third : 2 * third], encoding="utf-8")
    lines = [json.dumps({"text": line}, ensure_ascii=False) for line in text[2 * third :].splitlines() if line.strip()]
    with gzip.open(folder / "网页.jsonl.gz", "wt", encoding="utf-8") as file:
        file.write("\n".join(lines))


def shrink_config(path: Path, target: Path) -> None:
    """结构和训练设置不变，只是小；词表是 GPT-2 的不能缩。"""
    values = json.loads(path.read_text(encoding="utf-8"))
    if "tokenizer" in values:
        values["tokenizer"]["vocab_size"] = SMALL_MODEL["vocab_size"]
    small = SMALL_MODEL if "tokenizer" in values else {**SMALL_MODEL, "vocab_size": values["vocab_size"]}
    if SMALL_MODEL["emb_dim"] % (2 * values["num_heads"]):  # RoPE 要一个头的维数是偶数
        small = {**small, "num_heads": 2}
    training = {**values.get("training", {}), "batch_size": 2, "eval_iter": 1}
    target.write_text(json.dumps({**values, **small, "training": training}), encoding="utf-8")
