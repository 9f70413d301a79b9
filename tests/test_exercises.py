"""docs/练习：答案就是代码里的那几行；删去它们，verify.py 查得出是哪个模块。"""

import importlib
import re

import pytest
from patched_project import PatchedProject

from conftest import ROOT

FOLDER = ROOT / "docs" / "练习"
SECTION = re.compile(r"^## (\d+\. .+?)$\n(.*?)(?=^## |\Z)", re.MULTILINE | re.DOTALL)
CODE = re.compile(r"^```py\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def sections(name: str) -> dict[str, str]:
    """{标题: 内容}"""
    return dict(SECTION.findall((FOLDER / name).read_text(encoding="utf-8")))


EXERCISES, ANSWERS = sections("README.md"), sections("答案.md")
DELETING = [title for title, text in EXERCISES.items() if "python verify.py" in text]


@pytest.fixture(scope="module")
def project(tmp_path_factory) -> PatchedProject:
    return PatchedProject(tmp_path_factory.mktemp("exercises"))


def test_there_are_enough_and_each_has_an_answer():
    assert len(DELETING) >= 15 and list(EXERCISES) == list(ANSWERS)
    assert [int(title.split(".")[0]) for title in EXERCISES] == list(range(1, len(EXERCISES) + 1))
    assert all("分钟" in text for text in EXERCISES.values())


@pytest.mark.parametrize("title", DELETING)
def test_deleting_the_lines_is_noticed_in_the_named_module(project, title):
    text = EXERCISES[title]
    (path,), (module,) = re.findall(r"打开 `(model/\w+\.py)`", text), re.findall(r"`python verify\.py (\w+)`", text)
    (lines,) = CODE.findall(ANSWERS[title])
    indent = lines[: len(lines) - len(lines.lstrip())]
    check = importlib.import_module("checks.runner").run_checks
    assert all(result.passed for _, found in check((module,)) for result in found)
    with project.replaced(path, lines, f"{indent}pass\n"):
        found = dict(importlib.import_module("checks.runner").run_checks((module,)))
    failed = [result for result in found[module] if not result.passed]
    assert failed and all(result.problem for result in failed)
