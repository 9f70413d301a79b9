"""文档和 Makefile 里的每条命令都真的运行；怎样缩小、哪几种换了做法，见 reader.py。"""

import shutil
from pathlib import Path

import pytest
import small_project
from documented_commands import PAGES, Command, commands_of, parse, written_lines
from reader import Reader, is_python, plain_words

from conftest import ROOT
from utils.errors import UserError

MAKEFILE = ROOT / "Makefile"
MODELS = (
    "pretrain.py --config benchmarks/plain_config.json --model_path model.pth",
    "finetune_classifier.py --model_path model.pth --trainable lora --output_path classifier.pth",
    "finetune_instruction.py --model_path model.pth --output_path assistant.pth",
)


def unique_commands() -> list[Command]:
    """相同的命令只运行一次。"""
    commands = {}
    for page in (*PAGES, MAKEFILE):
        for command in commands_of(page):
            commands.setdefault(plain_words(command) if is_python(command) else command.words, command)
    return list(commands.values())


COMMANDS = unique_commands()


def typed(line: str, page: str = "README.md") -> Command:
    """写在 page 末尾的一条命令。"""
    (command,) = parse(line, page, number=10**6)
    return command


@pytest.fixture(scope="module")
def project(tmp_path_factory) -> Path:
    """小项目，连同 make demo、README 的两种微调得到的模型。"""
    folder = tmp_path_factory.mktemp("project")
    small_project.build(folder)
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.chdir(folder)
        monkeypatch.setattr("utils.files.CACHE_DIR", folder / ".cache")
        for line in MODELS:
            Reader(folder, monkeypatch).follow(typed(line))
    return folder


@pytest.fixture
def reader(project, tmp_path, monkeypatch, one_thread) -> Reader:
    """每条命令在小项目的一份副本里运行，互不影响。"""
    folder = tmp_path / "project"
    shutil.copytree(project, folder)
    monkeypatch.chdir(folder)
    return Reader(folder, monkeypatch)


@pytest.mark.filterwarnings("error::UserWarning")  # 警告会打在用户的终端里
@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: f"{command.page}:{command.line}")
def test_command_runs(reader, command):
    reader.follow(command)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("python pretrain.py --max_step 3", "--max_step：无法识别的参数。是否想写 --max_steps？"),
        ("python compare.py --vary learning_rates=0.1,0.2", "learning_rates"),
        ("python generate.py --model_path modle.pth --prompt 悟空", "没有 modle.pth"),
        ("python pretrain.py --config configs/pocket_config_4M.json", "pocket_config_4M.json"),
        ("python pretrian.py --max_steps 3", "没有 pretrian.py"),
        ("python data/download.py 水浒传", "水浒传"),
        ("python -m pip install -r requirement.txt", "requirement.txt"),
        ("python -m http.server", "没有 -m"),
        ("make demon", "demon"),
        ("docker run pocketllm", "测试不认识这种命令"),
        ("写入 x.py\nfrom model.attention import SelfAttention\n", "SelfAttention"),
        ("cat > x.py", "测试不认识这种命令"),
    ],
)
def test_mistake_in_a_document_is_caught(reader, line, said):
    with pytest.raises((UserError, AssertionError, ImportError, pytest.fail.Exception), match=said):
        reader.follow(typed(line))


WRITTEN = """正文里的 `python verify.py attention`，文件名 `generate.py` 不算。

```bash
# 整行的注释
python a.py --x 1   # Windows：py a.py --y
python b.py \\
  --z 2
```

新建文件 `g.py`，写入：

```python3
print("# 不是命令")
```

```bash
python g.py
```

```text
$ python c.py
输出 python d.py
.venv/bin/python e.py
```

```python
print("python f.py")
```
"""


def test_commands_are_found_wherever_they_are_written():
    found = [command.words for _, line in written_lines(WRITTEN) for command in parse(line, "x.md", 1)]
    assert sorted(found) == [
        (".venv/bin/python", "e.py"),
        ("py", "a.py", "--y"),
        ("python", "a.py", "--x", "1"),
        ("python", "b.py", "--z", "2"),
        ("python", "c.py"),
        ("python", "g.py"),
        ("python", "verify.py", "attention"),
        ("写入", "g.py"),
    ]


def test_pipe_and_conjunction_are_taken_apart():
    first, second = parse("echo 八戒道： | python generate.py && python verify.py", "x.md", 1)
    assert (first.words, first.stdin) == (("python", "generate.py"), "八戒道：\n")
    assert (second.words, second.stdin) == (("python", "verify.py"), "")
