"""文档里的例子照抄就能运行，输出与文中写的一字不差；提到的文件、名字、参数都在。每一章的样子见 test_course.py。"""

import ast
import contextlib
import dataclasses
import importlib
import io
import json
import re
import sys
from pathlib import Path
from urllib.parse import unquote

import pytest
from documented_commands import ESSAYS, EXAMPLE, FENCE, INLINE, LINK, PAGES, QUOTE, SCRIPT, SHELLS
from reader import PROGRAMS, TRAINING
from torch.distributed.run import get_args_parser

from conftest import ROOT
from model.config import ModelConfig
from utils.config_file import BOOK_NAMES

WITH_EXAMPLES = [*ESSAYS, ROOT / "docs" / "练习" / "README.md"]

PATH = re.compile(
    r"(?<![\w./*])"  # 不从网址或更长的路径中间取
    r"(?:(?:(?:model|utils|checks|benchmarks|tests|docs)/(?:\w+/)*)?\w+\.py|configs/\w+\.json|data/\w+\.[A-Za-z0-9]+)\b"
)
# 行内代码里看得出是代码的名字：Trainer.run、_split_heads、LoRALinear、backward()
NAME = re.compile(r"(?:[A-Za-z_]\w*\.)*_?[A-Za-z]\w+(?:\(\))?", re.ASCII)
LOOKS_LIKE_CODE = re.compile(r"\w\w_\w|^_|\.|\(\)$|[a-z][A-Z]|[A-Z][A-Z][a-z]")
FLAG = re.compile(r"(?<![\w-])--[a-z]\w+", re.ASCII)
PRODUCT = re.compile(r"\.(?:pth|jsonl|html|png|lora|ckpt|bak|md|txt|csv|safetensors|bin|result\.json)$")
UNFINISHED = re.compile(r"\b(?:RESULT|TODO|FIXME|TBD|XXX)\b")

LEARNERS_FILE = "练习.py"  # 读者自己建的
OTHERS_NAMES = {  # 别人的：环境变量，transformers 的文件，PyTorch 里的算子和函数
    *("PIP_INDEX_URL", "config.json", "linear_cross_entropy", "linear_dynamic"),
}


@pytest.fixture(autouse=True)
def _in_project_root(monkeypatch):
    monkeypatch.chdir(ROOT)


def check_examples(page: Path) -> int:
    """依次运行 page 的例子，前面的变量后面可用；返回例子的个数。"""
    text = page.read_text(encoding="utf-8")
    namespace = {"__name__": "example"}
    count = 0
    for example in EXAMPLE.finditer(text):
        count += 1
        line = text.count("\n", 0, example.start("code"))
        # 前面补空行，出错时报告的行号就是文档里的行号
        code = compile("\n" * line + example["code"], str(page), "exec")
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(code, namespace)
        assert printed.getvalue() == (example["output"] or ""), f"{page.name} 第 {line + 1} 行的例子"
    return count


def missing_paths(page: Path) -> list[str]:
    """page 提到而项目里没有、也不能用 data/download.py 下载的文件；链接指向的小节也要有。"""
    downloads = (ROOT / "data/download.py").read_text(encoding="utf-8")
    text = page.read_text(encoding="utf-8")
    targets = [unquote(link["target"]) for link in LINK.finditer(FENCE.sub("", text))]
    missing = [target for target in targets if not re.match(r"[a-z]+:", target) and not leads_somewhere(page, target)]
    own = {LEARNERS_FILE, *(script["path"] for script in SCRIPT.finditer(text))}
    absent = [path for path in PATH.findall(text) if not is_there(path) and path not in own]
    return missing + [path for path in absent if f'"{Path(path).name}"' not in downloads]


def leads_somewhere(page: Path, target: str) -> bool:
    """page 里的链接 target：文件在，# 后面的小节也在。"""
    name, _, anchor = target.partition("#")
    path = page.parent / name if name else page
    return path.exists() and (not anchor or anchor in anchors_of(path.read_text(encoding="utf-8")))


def anchors_of(text: str) -> set[str]:
    """各个标题在 GitHub 上的锚：小写，去掉标点，空格变成 -。"""
    titles = re.findall(r"^#+ (.+)$", FENCE.sub("", text), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def is_there(path: str) -> bool:
    """在项目里；只写文件名的，在哪个文件夹里都行。"""
    folders = ("", "model", "utils", "checks", "benchmarks", "tests", "data")
    return any((ROOT / folder / path).exists() for folder in (folders if "/" not in path else ("",)))


def read_all(*patterns: str) -> str:
    paths = [path for pattern in patterns for path in sorted(ROOT.glob(pattern))]
    return "\n".join(path.read_text(encoding="utf-8") for path in paths)


CODE = read_all("*.py", "model/*.py", "utils/**/*.py", "checks/*.py", "benchmarks/*.py", "data/*.py")
WORDS = set(re.findall(r"\w+", CODE + read_all("configs/*.json")))


def class_bodies() -> dict[str, str]:
    """{类名: 它的代码}；在项目里继承的，连同上一级的。"""
    files = [path for folder in ("model", "utils") for path in (ROOT / folder).rglob("*.py")]
    sources = [path.read_text(encoding="utf-8") for path in files]
    trees = [(node, source) for source in sources for node in ast.walk(ast.parse(source))]
    found = [(node, source) for node, source in trees if isinstance(node, ast.ClassDef)]
    bodies = {node.name: ast.get_source_segment(source, node) for node, source in found}
    parents = {node.name: [base.id for base in node.bases if isinstance(base, ast.Name)] for node, _ in found}
    return {name: "\n".join(bodies.get(part, "") for part in [name, *parents[name]]) for name in bodies}


CLASSES = class_bodies()


def unknown_names(text: str) -> list[str]:
    """行内代码提到而代码里没有的函数、类、字段；例子里自己定义的算有。"""
    own = set(re.findall(r"\w+", " ".join(fence["body"] for fence in FENCE.finditer(text))))
    prose = INLINE.findall(FENCE.sub("", text))
    names = [code for code in prose if NAME.fullmatch(code) and LOOKS_LIKE_CODE.search(code)]
    return [name for name in names if name not in OTHERS_NAMES and not is_known(name.removesuffix("()"), own)]


def is_known(name: str, own: set[str]) -> bool:
    """文件看在不在，训练的产物不看；Trainer.run 要 run 在 Trainer 里面；其余的词要在代码或例子里出现。"""
    if PRODUCT.search(name):
        return True
    if re.search(r"\.(?:py|json)$", name):
        return is_there(name) or (ROOT / "configs" / name).exists()
    owner, _, member = name.rpartition(".")
    if owner in CLASSES:
        return bool(re.search(rf"\b{member}\b", CLASSES[owner]))
    return all(part in WORDS | own for part in name.split("."))


SOURCES = [path.read_text(encoding="utf-8") for folder in ("model", "utils") for path in (ROOT / folder).glob("*.py")]


GAP = "# …"  # 摘录里略去几行的地方


def is_quoted(quote: str) -> bool:
    """quote 在一个文件里：一行接一行，略去几行的地方写着 GAP；空行不算。"""
    pieces = [lines_of(piece) for piece in re.split(rf"^\s*{GAP}$", quote, flags=re.MULTILINE)]
    return all(pieces) and any(holds_in_order(lines_of(source), pieces) for source in SOURCES)


def lines_of(text: str) -> list[str]:
    """不空的各行，去掉缩进。"""
    return [line.strip() for line in text.splitlines() if line.strip()]


def holds_in_order(lines: list[str], pieces: list[list[str]]) -> bool:
    """lines 里依次有 pieces 的每一段，两段之间至少隔着一行。"""
    start = 0
    for piece in pieces:
        places = range(start, len(lines) - len(piece) + 1)
        found = next((place for place in places if lines[place : place + len(piece)] == piece), None)
        if found is None:
            return False
        start = found + len(piece) + 1
    return True


def help_of(module_name: str) -> str:
    """程序的 --help。"""
    module = importlib.import_module(module_name)
    with pytest.MonkeyPatch.context() as monkeypatch, contextlib.redirect_stdout(io.StringIO()) as text:
        monkeypatch.setattr(sys, "argv", [module_name, "--help"])
        with contextlib.suppress(SystemExit):
            module.parse_args()
    return text.getvalue()


@pytest.fixture(scope="module")
def flags() -> set[str]:
    """全部程序和 torchrun 的 --help 里的参数。"""
    texts = [get_args_parser().format_help(), *map(help_of, PROGRAMS.values())]
    return set(FLAG.findall("\n".join(texts)))


def unknown_flags(text: str, flags: set[str]) -> list[str]:
    """行内代码单独提到、哪个程序都没有的参数；整条命令由 test_commands.py 运行。"""
    mentioned = [code for code in INLINE.findall(FENCE.sub("", text)) if code.startswith("--")]
    return [flag for code in mentioned for flag in FLAG.findall(code) if flag not in flags]


@pytest.mark.parametrize("page", WITH_EXAMPLES, ids=lambda page: page.stem)
def test_examples_print_what_the_essay_says(page):
    assert check_examples(page) >= 2


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_quoted_lines_are_in_one_file_in_the_same_order(page):
    assert [quote for quote in QUOTE.findall(page.read_text(encoding="utf-8")) if not is_quoted(quote)] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_block_is_of_a_kind_that_is_checked(page):
    text = page.read_text(encoding="utf-8")
    languages = [fence["language"] for fence in FENCE.finditer(text)]
    assert set(languages) <= {*SHELLS, "py", "python", "python3", "text", "json", ""}
    assert languages.count("python3") == len(SCRIPT.findall(text))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_mentioned_files_and_links_exist(page):
    assert missing_paths(page) == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_mentioned_names_are_in_the_code(page):
    assert unknown_names(page.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_mentioned_flags_are_those_of_a_program(page, flags):
    assert unknown_flags(page.read_text(encoding="utf-8"), flags) == []


def listed_arguments(title: str) -> set[str]:
    """docs/手册/参数.md 的一节里，各行第一格写的参数。"""
    text = (ROOT / "docs/手册/参数.md").read_text(encoding="utf-8")
    _, _, section = text.partition(f"\n## {title}\n")
    cells = re.findall(r"^\| ([^|]+) \|", section.partition("\n## ")[0], re.MULTILINE)
    return {f"--{name}" for cell in cells for name in re.findall(r"`(\w+)`", cell)}


USERS_PROGRAMS = [name for name in PROGRAMS if not name.startswith(("tests/", "benchmarks/")) and name != "verify.py"]


@pytest.mark.parametrize("name", USERS_PROGRAMS)
def test_every_argument_is_in_the_table(name):
    shared = listed_arguments("训练参数") if PROGRAMS[name] in TRAINING else set()
    assert listed_arguments(name) | shared == set(FLAG.findall(help_of(PROGRAMS[name]))) - {"--help"}


def test_every_file_of_utils_is_listed():
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    names = [path.name for path in (ROOT / "utils").glob("*.py") if path.name != "__init__.py"]
    assert [name for name in names if f"  {name} " not in text] == []


def test_readme_tells_how_long_the_model_is():
    (said,) = re.findall(r"`model/` 一共约 (\d+) 行", (ROOT / "README.md").read_text(encoding="utf-8"))
    lines = sum(path.read_text(encoding="utf-8").count("\n") for path in (ROOT / "model").glob("*.py"))
    assert abs(lines - int(said)) <= 30


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_nothing_is_left_to_be_filled_in(page):
    assert UNFINISHED.findall(page.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    "blocks",
    [
        "```python\nprint(1 + 1)\n```\n\n```text\n3\n```\n",
        "```python\nprint(1 + 1)\n```\n",
        "```python\nx = 1\n```\n\n```text\n1\n```\n",
        "```python\nprint(2)\n```\n\n隔着一句话。\n\n```text\n2\n```\n",
    ],
    ids=["wrong_output", "output_missing", "nothing_printed", "text_block_not_adjacent"],
)
def test_wrong_essay_is_caught(tmp_path, blocks):
    page = tmp_path / "essay.md"
    page.write_text(blocks, encoding="utf-8")
    with pytest.raises(AssertionError):
        check_examples(page)


def test_missing_file_is_caught(tmp_path):
    page = tmp_path / "essay.md"
    page.write_text("见[别处](没有.md)，代码在 `model/nothing.py`，[网址](https://example.com)。", encoding="utf-8")
    assert missing_paths(page) == ["没有.md", "model/nothing.py"]


def test_missing_file_of_any_folder_is_caught(tmp_path):
    page = tmp_path / "essay.md"
    page.write_text(
        "`checks/nothing.py`、`pretrian.py`、`utils/report_page/x.py`；`run.py` 和 `verify.py` 有。", encoding="utf-8"
    )
    assert missing_paths(page) == ["checks/nothing.py", "pretrian.py", "utils/report_page/x.py"]


def test_link_to_a_missing_section_is_caught(tmp_path):
    page = tmp_path / "essay.md"
    page.write_text("# 一章\n\n## RoPE 与 `rotate`\n\n[有](#rope-与-rotate)，[没有](essay.md#别处)。", encoding="utf-8")
    assert missing_paths(page) == ["essay.md#别处"]


@pytest.mark.parametrize(
    "quote",
    [
        "self.keys[layer, :, :, self.length : end] = key\n",
        "x = x + 1\n",
        "return self.final_norm(x)\n# …\nx = block(x, self.position, cache)\n",
        "x = block(x, self.position, cache)\nreturn self.final_norm(x)\n",
        "return self.final_norm(x)\n# …\n\n",
        "cache.length += token_ids.shape[1]\n# …\nreturn self.final_norm(x)\n",
    ],
    ids=["part_of_a_line", "not_in_the_code", "other_order", "gap_not_marked", "mark_at_the_end", "mark_without_gap"],
)
def test_altered_quote_is_caught(quote):
    assert is_quoted("self.keys[layer, :, :, self.length : end] = keys\n") and not is_quoted(quote)


def test_quote_may_leave_out_lines_where_it_says_so():
    assert is_quoted("    x = block(x, self.position, cache)\n# …\nreturn self.final_norm(x)\n")


def test_unknown_name_is_caught():
    text = """`Trainer.run`、`_split_heads`、`own_function`、`model.pth`、`x`、`softmax`、`W_O` 都有或不算。
`Trainer.jog`、`_split_tails`、`LoRALiner`、`train_utils.nothing()` 没有。

```python
def own_function(): ...
```
"""
    assert unknown_names(text) == ["Trainer.jog", "_split_tails", "LoRALiner", "train_utils.nothing()"]


def test_unknown_flag_is_caught(flags):
    assert unknown_flags("`--max_steps 3 --max_step`，`make --trace` 不归这里管", flags) == ["--max_step"]


def test_table_of_configuration_fields_is_the_code():
    """《参数》列出的字段、次序和默认值就是 ModelConfig 的。"""
    section = (ROOT / "docs/手册/参数.md").read_text(encoding="utf-8").split("\n## 配置文件\n")[1].split("\n## ")[0]
    rows = [re.split(r"(?<!\\)\|", line)[1:-1] for line in section.splitlines() if line.startswith("| `")]
    listed = {INLINE.search(row[0])[1]: row[-1].strip() for row in rows}
    derived = {"num_kv_heads": "等于 `num_heads`", "hidden_dim": "`4 × emb_dim`"}
    expected = {
        field.name: derived.get(field.name)
        or ("必填" if field.default is dataclasses.MISSING else f"`{json.dumps(field.default)}`")
        for field in dataclasses.fields(ModelConfig)
    }
    assert list(listed.items()) == list(expected.items())
    for theirs, ours in BOOK_NAMES.items():
        assert any(f"`{ours}`" in row[0] and f"`{theirs}`" in row[0] for row in rows)


def test_people_count_layers_heads_and_tokens_from_one():
    """第 1 层是 trf_blocks[0]，见 docs/README.md；照代码从 0 数的写“位置 0”“编号 0”。"""
    from_zero = re.compile(r"第 ?[0零] ?(?:层|块|个|头)|第 ?\d+ ?(?:层|块|个|头)[^，。]*从 0 数")
    sources = [path for folder in ("utils", "model", "checks") for path in (ROOT / folder).rglob("*.*")]
    texts = [path for path in (*PAGES, *sources) if path.suffix in (".md", ".py", ".js", ".html")]
    assert len(texts) > 100
    assert [path.name for path in texts if from_zero.search(path.read_text(encoding="utf-8"))] == []
    assert "第 1 层是代码里的 `trf_blocks[0]`" in (ROOT / "docs/README.md").read_text(encoding="utf-8")
