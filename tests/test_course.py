"""课程的每一章样子相同：图、公式、代码、手算、实验、常犯的错、问答；地图按次序列出各章；图是脚本画的。"""

import re
from collections import Counter
from urllib.parse import unquote

import pytest
from documented_commands import ESSAYS, EXAMPLE, FENCE, INLINE, LINK, QUOTE

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


READING = "\n".join((ROOT / f"docs/{name}.md").read_text(encoding="utf-8") for name in ("README", *COURSE))
TERMS = {  # 术语: 它在文中的样子
    **{"softmax": r"softmax", "nat": r"\bnat\b", "秩": r"秩(?!序)", "奇异值": r"奇异值", "标准误": r"标准误"},
    **{"融合内核": r"融合内核", "预热": r"预热"},
}


def is_explained_at_first_use(text: str, pattern: str) -> bool:
    """代码和公式之外，pattern 第一次出现时加粗，同一句里有解释。"""
    prose = INLINE.sub("", re.sub(r"\$\$.*?\$\$", "", FENCE.sub("", text), flags=re.DOTALL))
    first = re.search(pattern, prose)
    sentence = re.split(r"[。\n]", prose[: first.start()])[-1] + re.split(r"[。\n]", prose[first.start() :])[0]
    return prose[first.start() - 2 : first.end() + 2] == f"**{first[0]}**" and len(sentence) > len(first[0]) + 12


@pytest.mark.parametrize("term", TERMS)
def test_term_is_explained_where_it_first_appears(term):
    assert is_explained_at_first_use(READING, TERMS[term])


def test_unexplained_term_is_caught():
    late = "softmax 之后再说。**softmax** 把一行分数变成和为 1 的权重。"
    assert is_explained_at_first_use(late[12:], "softmax") and not is_explained_at_first_use(late, "softmax")


MISTAKES = {  # 曾经写错的话: 为什么错
    r"(?:[两二]份|两个)动量": "AdamW 的第二个数是梯度平方的平均",
    r"升温|热身": "warm-up 叫预热",
    r"点积[^。]*?(?:只取决于|只与)(?:两者的)?距离": "点积还取决于 q 和 k",
    r"从 0 升到最大": "预热不从 0 起，也升不到设定的最大值",
    r"用键来答": "键只用来应，回答的是值",
    r"两个命令": "是三条",
    r"相差 `2\^\(−m\)` 倍": "那是相对的间隔",
    r"网页里能看到这样的头": "小模型里没有总看开头的头",
    r"分数表[^。]*?(?:vocab_size|五万个词|logits)|(?:vocab_size|五万个词|logits)[^。]*?分数表": "分数表只指注意力的",
}
PLACES = [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("docs/pictures/*.py"), *ROOT.glob("model/*.py")]
PLACES += [ROOT / "utils/settings.py", ROOT / "utils/optimizers.py", ROOT / "utils/explain_page/page.html"]


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mended_mistake_has_not_come_back(mistake):
    found = [path.name for path in PLACES if re.search(mistake, path.read_text(encoding="utf-8"))]
    assert found == [], MISTAKES[mistake]


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
