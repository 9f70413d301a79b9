"""怎样运行文档里的一条命令：经过程序自己的命令行，参数一个不少，只是文件、步数换成很小的。

小文件见 small_project.py。不照样运行的几种：

- 下载：不联网，走到 data/download.py 要联网的函数之前；它们对着本机的服务器在 test_download.py 里测。
- benchmarks/run.py 要几个小时：各节在 test_benchmarks.py 里用极小的模型测，这里只测命令行和写进哪里。
- tests/soak.py 要一个多小时：各项在 test_soak.py 里各做一小份，这里只看名字选得中哪几项。
- --compile 要 C++ 编译器和几十秒：只看它编译了一个模型；编译之后的训练在 test_cuda.py 里测。
- compare.py 让 pretrain.py 在自己的进程里训练：改在这个进程里，省下载入 torch 的时间。
- 文档里让读者新建的小程序要练好的模型，或十几秒：只编译，导入它要的东西。
- torchrun：它的参数由它自己读一遍，程序在一个进程里运行；几个进程的在 test_distributed.py 里测。
- benchmarks 里要几个进程、要 root 的演示：只读一遍参数。
- verify.py：一个模块的检查只做一遍，几条命令共用。
- pytest 不在测试里再运行；pip、uv、venv、git、ruff、apt-get 会改动环境：只看提到的文件、包在不在。
"""

import ast
import contextlib
import importlib
import io
import re
import runpy
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import BinaryIO

import pytest
import torch
from documented_commands import WRITE, Command, commands_of
from torch.distributed.run import get_args_parser

from checks import runner
from conftest import ROOT

PYTHON = re.compile(r"(?:\.venv/bin/)?python3?|py")
PROGRAMS = {
    **{path.name: path.stem for path in ROOT.glob("*.py")},
    "data/download.py": "data.download",
    "benchmarks/run.py": "benchmarks.run",
    "tests/soak.py": "soak",
    "benchmarks/two_machines.py": "benchmarks.two_machines",
    "benchmarks/sharded_memory.py": "benchmarks.sharded_memory",
}
DEMONSTRATIONS = ("benchmarks.two_machines", "benchmarks.sharded_memory")
ONLY_TOGETHER = {"--parallel": 1, "--allow_process_change": 0}  # {几个进程才能用的参数: 后面几个取值}
TRAINING = ("pretrain", "finetune_classifier", "finetune_instruction")
OUTPUT_FLAGS = {"pretrain": "--model_path", "export_hf": "--output", **dict.fromkeys(TRAINING[1:], "--output_path")}
INPUT_FLAGS = ("--model_path", "--init_from", "--adapter_path")
PLACEHOLDERS = {"配置": "configs/pocket_config_3M.json", "分钟": "10"}  # 文档里代替具体取值的说法
SMALLER = {"--minutes": "0.005", "--flops": "2e9", "--seeds": "1", "--max_steps": "2", "--max_new_tokens": "4"}
SMALLER |= {"--batch_size": "2", "--accumulation_steps": "2"}


def is_python(command: Command) -> bool:
    return bool(PYTHON.fullmatch(command.words[0])) or command.words[0].endswith(".py")


def plain_words(command: Command) -> tuple[str, ...]:
    """去掉 python，换掉“配置”一类代替的说法。"""
    words = command.words[1:] if PYTHON.fullmatch(command.words[0]) else command.words
    return tuple(PLACEHOLDERS.get(word, word) for word in words)


class Reader:
    """在小项目里照着文档一条条运行的人。"""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch):
        self.folder, self.monkeypatch = folder, monkeypatch

    def follow(self, command: Command) -> None:
        """运行 command；不认识的种类、找不到的文件、错的参数都是错误。"""
        name = command.words[0]
        if is_python(command):
            self.run_python(command, *plain_words(command))
        elif name in ("srun", "sudo"):
            self.follow(replace(command, words=command.words[1:]))
        elif name == "env":
            self.follow(replace(command, words=command.words[2:]))
        elif name == "torchrun":
            options = get_args_parser().parse_args(list(command.words[1:]))
            self.run_python(command, options.training_script, *options.training_script_args)
        elif name in CHECKS:
            CHECKS[name](command)
        else:
            pytest.fail(f"{command}：测试不认识这种命令")

    def run_python(self, command: Command, name: str, *arguments: str) -> None:
        if name == "-m" and arguments[0] in MODULE_CHECKS:
            MODULE_CHECKS[arguments[0]](command)
        elif (name, *arguments) == ("-m", "docs.pictures"):
            self.run_file("docs/pictures/__main__.py")
        elif name == "-c":
            exec(arguments[0], {})
        elif name in PROGRAMS:
            self.run_program(command, PROGRAMS[name], list(arguments))
        elif (self.folder / name).exists():
            self.run_file(name)
        elif any(writer.words == (WRITE, name) for writer in before(command)):
            pass  # 那一条已经查过它
        else:
            pytest.fail(f"{command}：没有 {name}")

    def run_file(self, name: str) -> None:
        runpy.run_path(str(self.folder / name), run_name="__main__")

    def run_program(self, command: Command, module_name: str, arguments: list[str]) -> None:
        """先读一遍原来的参数，再缩小了运行。"""
        module = importlib.import_module(module_name)
        try:
            self.type(module.__file__, arguments)
            module.parse_args()
        except SystemExit as end:
            assert end.code == 0, command  # --help
            return
        if "--resume" in arguments:
            self.run_program(command, module_name, [word for word in arguments if word != "--resume"])
        if module_name in DEMONSTRATIONS:
            return
        self.make_inputs(command, module_name, arguments)
        self.type(module.__file__, smaller(module_name, arguments), command.stdin)
        self.compiled = []
        with self.substituted(module):
            module.main()
        assert len(self.compiled) == ("--compile" in arguments)
        written = value_of(OUTPUT_FLAGS.get(module_name), arguments)
        assert written is None or (self.folder / written).exists(), f"{command}：没有写出 {written}"

    def type(self, program: str, arguments: list[str], stdin: str = "") -> None:
        self.monkeypatch.setattr(sys, "argv", [program, *arguments])
        self.monkeypatch.setattr(sys, "stdin", io.StringIO(stdin or "悟空\n"))

    def make_inputs(self, command: Command, module_name: str, arguments: list[str]) -> None:
        """没有的模型由同一篇里前面的命令写出：先运行那一条。"""
        for flag in set(INPUT_FLAGS) - {OUTPUT_FLAGS.get(module_name)}:
            path = value_of(flag, arguments)
            if path and not (self.folder / path).exists():
                makers = [maker for maker in before(command) if writes(maker, path) and maker != command]
                assert makers, f"{command}：没有 {path}，前面也没有哪条命令写出它"
                self.follow(makers[-1])

    @contextlib.contextmanager
    def substituted(self, module: ModuleType):
        """开头列出的各种做法。"""
        with self.monkeypatch.context() as context:
            substitute = context.setattr
            substitute("utils.memory.keep_freed_memory", lambda: None)  # 它会一直管到别的测试
            substitute("utils.comparison.running", self.train_here)
            substitute("utils.comparison.EVALUATIONS", 2)
            substitute("checks.runner.run_checks", check_once)
            substitute(torch.nn.Module, "compile", lambda model: self.compiled.append(model))
            substitute(sys, "path", [*sys.path])  # 有的程序会添上项目的根目录
            context.setenv("OMP_NUM_THREADS", "1")
            if module.__name__ == "data.download":
                substitute(module, "DATA_DIR", self.folder / "data")
                for function in ("download_text", "download_weights"):
                    substitute(module, function, lambda *arguments: None)
            elif module.__name__ == "benchmarks.run":
                for section in module.SECTIONS.values():
                    substitute(f"{section.module}.run", lambda args: "量过了")
            elif module.__name__ == "soak":
                substitute(module, "measures", pretend(module.measures()))
            yield

    @contextlib.contextmanager
    def train_here(self, command: list[str], output: BinaryIO, errors: BinaryIO) -> Iterator[SimpleNamespace]:
        """代替 utils.comparison.running：不另起进程，问到结束没有时才训练。"""

        def train() -> int:
            self.type(command[1], command[2:])
            with contextlib.redirect_stdout(io.StringIO()) as printed:
                importlib.import_module("pretrain").main()
            output.write(printed.getvalue().encode("utf-8"))
            output.flush()
            return 0

        yield SimpleNamespace(pid=0, poll=train, returncode=0)


def smaller(module_name: str, arguments: list[str]) -> list[str]:
    """同样的参数，步数、时间、个数换成很小的，没有写的添上；几个进程才能用的去掉。"""
    for flag, count in ONLY_TOGETHER.items():
        if flag in arguments:
            index = arguments.index(flag)
            arguments = arguments[:index] + arguments[index + 1 + count :]
    pairs = zip(["", *arguments], arguments, strict=False)
    arguments = [SMALLER.get(flag, word) for flag, word in pairs]
    if module_name in TRAINING and "--max_steps" not in arguments:
        arguments += ["--max_steps", SMALLER["--max_steps"]]
    if module_name == "benchmarks.run":
        arguments += ["--readme", "benchmarks/README.md"]
    return arguments


def value_of(flag: str | None, arguments: tuple[str, ...] | list[str]) -> str | None:
    return arguments[arguments.index(flag) + 1] if flag in arguments else None


def writes(command: Command, path: str) -> bool:
    """command 的结果写到 path。"""
    words = plain_words(command) if is_python(command) else ("",)
    flag = OUTPUT_FLAGS.get(PROGRAMS.get(words[0]))
    return value_of(flag, words) == path


CHECKED = {}  # {模块: 检查的结果}


def check_once(names: tuple[str, ...]) -> Iterator:
    """代替 checks.runner.run_checks。"""
    for name in names:
        yield name, runner._check_module(name, CHECKED)


def pretend(measures: Iterator) -> Callable[[], Iterator]:
    """代替 soak.measures：名字、个数照旧，一项也不做。"""
    found = [(name, count, lambda *_: "做过了") for name, count, _ in measures]
    return lambda: iter(found)


def check_make(command: Command) -> None:
    """目标在 Makefile 里；它的配方里的命令另外运行。"""
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = [word for word in command.words[1:] if "=" not in word]
    assert targets and all(re.search(rf"^{target}:.*\n\t\S", makefile, re.MULTILINE) for target in targets), command


def check_git(command: Command) -> None:
    verb, *rest = command.words[1:]
    if verb == "clone":
        assert rest == ["https://github.com/mcuking/PocketLLM.git"], command
    else:
        assert verb == "checkout" and all((ROOT / path).exists() for path in rest), command


def check_folder(command: Command) -> None:
    """cd 进去的是刚刚克隆的。"""
    assert any(earlier.words[:2] == ("git", "clone") for earlier in before(command)), command
    assert command.words == ("cd", "PocketLLM")


def check_activation(command: Command) -> None:
    """启用的是前面建好的虚拟环境。"""
    made = [earlier for earlier in before(command) if "venv" in earlier.words and earlier.line < command.line]
    assert made and command.words == ("source", ".venv/bin/activate"), command


def check_pip(command: Command) -> None:
    """装的是项目的某个依赖列表。"""
    words = command.words[command.words.index("pip") + 1 :]
    assert words[0] == "install" and (ROOT / value_of("-r", words)).exists(), command
    quiet, alone = {"--quiet", "--disable-pip-version-check"}, {"--no-deps", "--ignore-requires-python"}
    flags = {word for word in words if word.startswith("-")} - quiet
    is_book = value_of("-r", words) == "requirements-book.txt"
    assert flags == {"-r", *alone} if is_book else flags <= {"-r", "-i"}


def check_uv(command: Command) -> None:
    if command.words[1] == "pip":
        check_pip(command)
    else:
        assert command.words == ("uv", "venv", "--python", "3.12")


def check_venv(command: Command) -> None:
    assert command.words[-3:] == ("-m", "venv", ".venv"), command


def check_pytest(command: Command) -> None:
    paths = list(command.words[command.words.index("pytest") + 1 :])
    if paths[:4] == ["-n", "2", "--dist", "loadfile"]:
        assert "pytest-xdist" in (ROOT / "requirements-dev.txt").read_text(encoding="utf-8")
        del paths[:4]
    assert all((ROOT / path).exists() for path in paths), command


def check_ruff(command: Command) -> None:
    assert command.words[1:] in (("check", "."), ("format", "--check", ".")), command
    assert re.search(r"^ruff\b", (ROOT / "requirements-dev.txt").read_text(encoding="utf-8"), re.MULTILINE)


def check_script(command: Command) -> None:
    """读者自己写的小程序：能编译，要导入的都有。"""
    _, name = command.words
    assert name.endswith(".py"), command
    tree = ast.parse(command.stdin, name)
    imports = [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
    assert imports
    exec(compile(ast.Module(imports, []), name, "exec"), {})


def check_system_package(command: Command) -> None:
    assert command.words == ("apt-get", "install", "chromium")


def before(command: Command) -> list[Command]:
    return [earlier for earlier in commands_of(ROOT / command.page) if earlier.line <= command.line]


CHECKS = {
    "make": check_make,
    "git": check_git,
    "cd": check_folder,
    "source": check_activation,
    "uv": check_uv,
    "ruff": check_ruff,
    ".venv/bin/ruff": check_ruff,
    WRITE: check_script,
    "apt-get": check_system_package,
}
MODULE_CHECKS = {"pip": check_pip, "venv": check_venv, "pytest": check_pytest}
