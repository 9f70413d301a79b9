"""把每样东西量一遍，打印表格，并写进 benchmarks/README.md。

python benchmarks/run.py                   # 全部
python benchmarks/run.py train generate    # 只量训练和生成
"""

import argparse
import importlib
import sys
from dataclasses import dataclass
from pathlib import Path

# 直接运行本脚本时，Python 只在 benchmarks/ 里找模块；加上项目根目录才能用别的包
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks import peer
from benchmarks.machine import describe_machine
from benchmarks.measure import ROOT
from utils import cli
from utils.console import hint
from utils.errors import UserError, run_program
from utils.files import check_input_file, read_input_file, write_atomically


@dataclass(frozen=True)
class Section:
    """一节：模块里的 run(args) 量完返回 Markdown。"""

    title: str  # 也是 README 里标记的名字
    module: str
    needs_peer: bool = False


SECTIONS = {
    "train": Section("训练", "benchmarks.train_step", needs_peer=True),
    "precision": Section("精度", "benchmarks.precision"),
    "generate": Section("生成", "benchmarks.generation", needs_peer=True),
    "startup": Section("启动", "benchmarks.startup"),
    "inside": Section("看见内部", "benchmarks.inside"),
    "data": Section("数据", "benchmarks.data_size"),
    "corpus": Section("语料", "benchmarks.corpus_files"),
    "quality": Section("质量", "benchmarks.quality"),
    "scale": Section("规模", "benchmarks.scale"),
    "finetune": Section("微调", "benchmarks.fine_tuning"),
}


def parse_args() -> argparse.Namespace:
    parser = cli.ArgumentParser("测量训练、生成等的速度和内存；开始之前先让机器安静下来。")
    add = parser.add_argument
    names = " | ".join(SECTIONS)
    add("sections", nargs="*", type=cli.one_of(*SECTIONS), metavar="节", help=f"量哪几节：{names}（默认全部）")
    add("--rounds", type=cli.positive_int, default=3, help="每个对象轮流量几轮（默认 %(default)s）")
    add("--corpus", type=cli.file_path, default=ROOT / "data/西游记.txt", help="训练用的语料（默认 data/西游记.txt）")
    add("--other_corpus", type=cli.file_path, help="另一份没有为它调过参数的语料，quality 一节也在上面训练（默认不用）")
    labeled = ROOT / "data/垃圾短信.csv"
    add("--labeled", type=cli.file_path, default=labeled, help="finetune 一节分类的数据（默认 data/垃圾短信.csv）")
    add("--other_labeled", type=cli.file_path, help="另一份分类的数据，先在它自己的文字上预训练（默认不用）")
    add("--data_mb", type=cli.positive_int, help="data 一节的语料有多少 MB（默认 1000）")
    add("--size_gb", type=cli.positive_float, help="corpus 一节的文件夹解压后有多少 GB（默认 1）")
    add("--readme", type=cli.file_path, default=ROOT / "benchmarks/README.md", help="写进哪个文件的标记之间")
    add("--quick", action="store_true", help="用极小的模型走一遍，只为检查这个程序本身（默认不用）")
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    sections = [SECTIONS[name] for name in dict.fromkeys(args.sections or SECTIONS)]
    check_before_start(args, sections)
    for section in sections:
        hint(f"== {section.title} ==")
        text = f"{describe_machine()}\n\n{importlib.import_module(section.module).run(args)}"
        print(f"## {section.title}\n\n{text}\n", flush=True)
        write_region(args.readme, section.title, text)  # 量完一节写一节，中途停下也不白量


def check_before_start(args: argparse.Namespace, sections: list[Section]) -> None:
    """几十分钟之后才会碰到的错误，现在就查出来。"""
    if any(section.needs_peer for section in sections):
        peer.require()
    for path in filter(None, (args.corpus, args.other_corpus, args.labeled, args.other_labeled)):
        check_input_file(path, "语料")
    text = read_readme(args.readme)
    for section in sections:
        find_region(args.readme, text, section.title)


def read_readme(path: Path) -> str:
    return read_input_file(path, "说明文件").decode("utf-8")


def find_region(path: Path, text: str, title: str) -> tuple[int, int]:
    """-> 标记之间的文字在 text 里的起止位置。"""
    opening, closing = f"<!-- {title}:开始 -->", f"<!-- {title}:结束 -->"
    start, end = text.find(opening), text.find(closing)
    if not 0 <= start < end:
        raise UserError(path, f"没有成对的标记 {opening} 和 {closing}", "在要写结果的地方加上这两行。")
    return start + len(opening), end


def write_region(path: Path, title: str, content: str) -> None:
    """换掉标记之间的文字，别处一个字不动。"""
    text = read_readme(path)
    start, end = find_region(path, text, title)
    text = f"{text[:start]}\n\n{content}\n\n{text[end:]}"
    write_atomically(path, lambda file: file.write(text.encode("utf-8")))


if __name__ == "__main__":
    run_program(main)
