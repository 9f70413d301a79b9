"""看见内部：explain.py 写一个网页要多久、多大；查照抄的索引建一次、查一次要多久。"""

import argparse
import tempfile
import time
from functools import partial
from pathlib import Path

from benchmarks import weights
from benchmarks.measure import ROOT, alternate, in_new_process, pooled
from benchmarks.programs import run_program
from benchmarks.tables import number, spread, table
from utils.copy_check import index_file
from utils.text_file import TextFile
from utils.text_utils import load_gpt2_tokenizer

FULL = ROOT / "configs/gpt2_config_124M.json"
QUICK = ROOT / "benchmarks/tiny_config.json"
NUM_TOKENS = 64
SAMPLE_CHARACTERS = 300


def run(args: argparse.Namespace) -> str:
    config, text = QUICK if args.quick else FULL, TextFile.scan(args.corpus, "utf-8")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.pth"
        in_new_process(weights.save, config=str(config), path=str(path))
        actions = {"explain": partial(explain, path, prompt_of(text)), "copy": partial(check_copy, text)}
        results = alternate(actions, args.rounds)
    introduction = f"轮流进行，每样 {args.rounds} 次，中位数（最小–最大）。"
    size = number(results["explain"][0]["bytes"] / 1e6)
    rows = [
        [
            f"`explain.py`，{config.name}，{NUM_TOKENS} 个 token，整个命令",
            spread(pooled(results["explain"], "seconds")),
        ],
        [
            f"照抄的索引，{args.corpus.name}（{text.num_characters:,} 字），建一次",
            spread(pooled(results["copy"], "build")),
        ],
        [f"在里面查一段 {SAMPLE_CHARACTERS} 字的样文", spread(pooled(results["copy"], "find"))],
    ]
    return f"{introduction}\n\n{table(['做什么', '秒'], rows)}\n\n网页 {size} MB。"


def prompt_of(text: TextFile) -> str:
    """语料开头的 NUM_TOKENS 个 token；末尾若是半个字，少取它。"""
    tokenizer = load_gpt2_tokenizer()
    token_ids = tokenizer.encode("".join(text.pieces(0, NUM_TOKENS)))[:NUM_TOKENS]
    return tokenizer.decode(token_ids).rstrip("\ufffd")


def explain(model_path: Path, prompt: str) -> dict:
    page = model_path.with_name("explain.html")
    page.unlink(missing_ok=True)
    seconds, _ = run_program("explain.py", "--model_path", model_path, f"--prompt={prompt}", "--output", page)
    return {"seconds": seconds, "bytes": page.stat().st_size}


def check_copy(text: TextFile) -> dict:
    """样文一半是原文，一半不是。"""
    begin = time.perf_counter()
    index = index_file(text)
    built = time.perf_counter()
    half = SAMPLE_CHARACTERS // 2
    copies = index.find_copies(index.text[:half] + index.text[half - 1 :: -1])
    finished = time.perf_counter()
    assert copies.spans[0][1] >= half
    return {"build": built - begin, "find": finished - built}
