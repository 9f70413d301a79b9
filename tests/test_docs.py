"""文档里的例子照抄就能运行，输出与文中写的一字不差；文档提到的文件都在。"""

import contextlib
import io
import re
from pathlib import Path
from urllib.parse import unquote

import pytest

from conftest import ROOT
from docs.pictures.__main__ import CHAPTERS, FOLDER, draw

ESSAYS = sorted(path for path in (ROOT / "docs").glob("*.md") if path.name != "README.md")
PAGES = [*sorted((ROOT / "docs").rglob("*.md")), *(ROOT.glob("README.md"))]
WITH_EXAMPLES = [*ESSAYS, ROOT / "docs" / "练习" / "README.md"]

# 一个 python 代码块，以及紧跟着它（中间只隔空行）的 text 代码块
EXAMPLE = re.compile(r"^```python\n(?P<code>.*?)^```$(?:\s*^```text\n(?P<output>.*?)^```$)?", re.MULTILINE | re.DOTALL)
QUOTE = re.compile(r"^```py\n(?P<code>.*?)^```$", re.MULTILINE | re.DOTALL)  # 摘自项目代码，不运行
FENCE = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\((?P<target>[^)\s]+)\)")
PATH = re.compile(
    r"(?<![A-Za-z0-9_./])"  # 不从网址或更长的路径中间取
    r"(?:(?:model|utils)/[A-Za-z0-9_]+\.py|configs/[A-Za-z0-9_]+\.json|data/\w+\.[A-Za-z0-9]+)"
)


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
    """page 提到而项目里没有、也不能用 data/download.py 下载的文件。"""
    downloads = (ROOT / "data/download.py").read_text(encoding="utf-8")
    text = page.read_text(encoding="utf-8")
    targets = [unquote(link["target"]).split("#")[0] for link in LINK.finditer(FENCE.sub("", text))]
    links = [target for target in targets if target and not re.match(r"[a-z]+:", target)]
    missing = [link for link in links if not (page.parent / link).exists()]
    absent = [path for path in PATH.findall(text) if not (ROOT / path).exists()]
    return missing + [path for path in absent if f'file_name="{Path(path).name}"' not in downloads]


@pytest.mark.parametrize("page", WITH_EXAMPLES, ids=lambda page: page.stem)
def test_examples_print_what_the_essay_says(page):
    assert check_examples(page) >= 2


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_quoted_lines_are_in_the_code(page):
    code = "\n".join(path.read_text(encoding="utf-8") for path in (*ROOT.glob("model/*.py"), *ROOT.glob("utils/*.py")))
    quotes = QUOTE.findall(page.read_text(encoding="utf-8"))
    assert [line for quote in quotes for line in quote.splitlines() if line.strip() not in code] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_mentioned_files_and_links_exist(page):
    assert missing_paths(page) == []


@pytest.mark.parametrize("chapter", CHAPTERS)
def test_picture_is_what_its_script_draws(chapter):
    assert (FOLDER / f"{chapter}.svg").read_text(encoding="utf-8") == draw(chapter)


def test_map_lists_every_essay():
    text = (ROOT / "docs" / "README.md").read_text(encoding="utf-8")
    listed = {unquote(link["target"]) for link in LINK.finditer(text)}
    assert ESSAYS
    assert {path.name for path in ESSAYS} <= listed


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
