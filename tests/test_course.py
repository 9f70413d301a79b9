"""课程的每一章样子相同：图、公式、代码、手算、实验、常犯的错、问答；地图按次序列出各章；图是脚本画的。"""

import re
from collections import Counter
from urllib.parse import unquote

import pytest
from documented_commands import FENCE
from test_docs import ESSAYS, EXAMPLE, LINK, QUOTE

from conftest import ROOT
from docs.pictures.__main__ import CHAPTERS as PICTURES
from docs.pictures.__main__ import FOLDER, draw
from docs.pictures.地图 import CHAPTERS as COURSE

LONG = 18  # 这么多个字的一句话，不会碰巧相同
SECTIONS = ("公式", "代码", "手算", "实验", "容易犯的错", "想一想")


def faults_of_chapter(name: str, text: str) -> list[str]:
    """一章缺了什么。"""
    opening, *rest = re.split(r"^## ", text, flags=re.MULTILINE)
    parts = dict(part.split("\n", 1) for part in rest)
    questions, _, answers = parts.get("想一想", "").partition("<details>\n<summary>答案</summary>\n")
    count = len(re.findall(r"^\d+\. ", questions, re.MULTILINE))
    required = {
        "开头的图": re.search(rf"^# .+\n\n[^!\n].+\n\n(?:.+\n\n)?!\[[^\]]+\]\(pictures/{name}\.svg\)\n\n", opening),
        "画图的脚本": name in PICTURES,
        f"各节，依次是{'、'.join(SECTIONS)}": [title for title in parts if title in SECTIONS] == list(SECTIONS),
        "公式在前，想一想在最后": (list(parts)[0], *list(parts)[-2:]) == (SECTIONS[0], *SECTIONS[-2:]),
        "一个公式": "$$" in parts.get("公式", ""),
        "摘自代码的几行": QUOTE.search(parts.get("代码", "")),
        "手算之后运行的例子": any(example["output"] for example in EXAMPLE.finditer(parts.get("手算", ""))),
        "实验的命令或代码": re.search(r"^```(?:bash|python)$", parts.get("实验", ""), re.MULTILINE),
        "实验的结果": re.search(r"^(?:```text$|\| )", parts.get("实验", ""), re.MULTILINE),
        "几个常犯的错": len(re.findall(r"^- ", parts.get("容易犯的错", ""), re.MULTILINE)) >= 2,
        "几个问题": count >= 2,
        "收起来的答案": answers.endswith("</details>\n"),
        "一问一答": len(re.findall(r"^\d+\. ", answers, re.MULTILINE)) == count,
    }
    return [what for what, found in required.items() if not found]


@pytest.mark.parametrize("name", COURSE)
def test_chapter_has_every_part(name):
    assert faults_of_chapter(name, (ROOT / f"docs/{name}.md").read_text(encoding="utf-8")) == []


@pytest.mark.parametrize("chapter", PICTURES)
def test_picture_is_what_its_script_draws(chapter):
    assert (FOLDER / f"{chapter}.svg").read_text(encoding="utf-8") == draw(chapter)


def repeated_sentences(texts: list[str]) -> list[str]:
    """不止写了一遍的句子；代码块和标点不算。"""
    prose = "\n".join(FENCE.sub("", text) for text in texts)
    sentences = (re.sub(r"\W", "", part) for part in re.split(r"[。！？；：|\n]", prose))
    return [sentence for sentence, count in Counter(sentences).items() if count > 1 and len(sentence) >= LONG]


def test_nothing_is_said_twice():
    assert repeated_sentences([page.read_text(encoding="utf-8") for page in ESSAYS]) == []


def test_repeated_sentence_is_caught():
    first = "先说一句别的。训练文字看得遍数多了，它记住的是那些句子。"
    second = "另一章：训练文字看得遍数多了，它记住的，是那些句子；\n"
    assert repeated_sentences([first, second]) == ["训练文字看得遍数多了它记住的是那些句子"]


def test_map_lists_the_chapters_in_order_and_every_other_page():
    text = (ROOT / "docs" / "README.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (\d+) \| \[[^\]]+\]\(([^)]+)\.md\)", text, re.MULTILINE)
    assert rows == [(str(number), name) for number, name in enumerate(COURSE, 1)]
    listed = {unquote(link["target"]) for link in LINK.finditer(text)}
    assert {path.name for path in ESSAYS} <= listed and "练习/README.md" in listed
    assert {f"手册/{path.name}" for path in ROOT.glob("docs/手册/*.md")} <= listed


CHAPTER = (ROOT / "docs/学习率与训练循环.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("old", "new", "fault"),
    [
        ("pictures/学习率与训练循环.svg", "pictures/别的.svg", "开头的图"),
        ("## 手算", "## 算一算", "手算之后运行的例子"),
        ("```py\n", "```text\n", "摘自代码的几行"),
        ("```bash\n", "```text\n", "实验的命令或代码"),
        ("<summary>答案", "<summary>答", "收起来的答案"),
        ("\n4. 一批的样本数加倍", "\n一批的样本数加倍", "一问一答"),
        ("$$", "", "一个公式"),
    ],
)
def test_chapter_without_a_part_is_caught(old, new, fault):
    assert faults_of_chapter("学习率与训练循环", CHAPTER) == []
    assert fault in faults_of_chapter("学习率与训练循环", CHAPTER.replace(old, new))
