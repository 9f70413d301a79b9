"""启动：敲下回车之后，多久看到第一个字。"""

import argparse
import sys
import tempfile
from functools import partial
from pathlib import Path

from benchmarks import weights
from benchmarks.measure import ROOT, alternate, in_new_process
from benchmarks.programs import seconds_to_output
from benchmarks.tables import spread, table

FULL = ROOT / "configs/gpt2_config_124M.json"
QUICK = ROOT / "benchmarks/tiny_config.json"
REPEATS = 3  # 启动很快，多量几次
PROMPT = "你好"
IMPORT_AND_READ = "import sys, torch; print(len(open(sys.argv[1], 'rb').read()), flush=True)"


def run(args: argparse.Namespace) -> str:
    config = QUICK if args.quick else FULL
    count = args.rounds if args.quick else args.rounds * REPEATS
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.pth"
        in_new_process(weights.save, config=str(config), path=str(path))
        results = alternate(commands(path, config.name), count)
    rows = [[name, spread(seconds)] for name, seconds in results.items()]
    introduction = (
        f"从启动到标准输出上出现第一个字；文件都在系统的缓存里。轮流进行，每个命令 {count} 次，中位数（最小–最大）。"
    )
    return f"{introduction}\n\n{table(['命令', '秒'], rows)}"


def commands(model_path: Path, config_name: str) -> dict:
    """{命令的称呼: 运行一次并返回秒数的函数}"""
    answer = [ROOT / "generate.py", "--model_path", model_path, "--prompt", PROMPT, "--max_new_tokens", 1]
    named = {
        f"`generate.py --max_new_tokens 1`，{config_name}，到第一个生成的字": partial(
            seconds_to_output, [sys.executable, *answer], after=PROMPT.encode("utf-8")
        ),
        '`python -c "import torch"`，再把同一个模型文件读一遍': partial(
            seconds_to_output, [sys.executable, "-c", IMPORT_AND_READ, model_path]
        ),
    }
    for program in sorted(ROOT.glob("*.py")):
        named[f"`{program.name} --help`"] = partial(seconds_to_output, [sys.executable, program, "--help"])
    return named
