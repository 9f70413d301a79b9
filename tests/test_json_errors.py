"""utils/json_errors.py：JSON 写错的地方，用中文说清在哪里、错在哪里。"""

import json
from pathlib import Path

import pytest

from utils.json_errors import json_error


def explain(text: str, line: int = 1) -> str:
    try:
        json.loads(text)
    except (ValueError, RecursionError) as error:
        return str(json_error(Path("a.json"), error, "改好它。", line))
    raise AssertionError(text)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "第 1 行第 1 列不是合法 JSON：这里缺少一个值"),
        ('{"a":}', "第 1 行第 6 列不是合法 JSON：这里缺少一个值"),
        ("{'a': 1}", "第 1 行第 2 列不是合法 JSON：这里应是双引号括起的字段名"),
        ('{\n "a" 1}', "第 2 行第 6 列不是合法 JSON：字段名后面缺少冒号"),
        ('{"a": 1 "b": 2}', "第 1 行第 9 列不是合法 JSON：两项之间缺少逗号"),
        ("{} {}", "第 1 行第 4 列不是合法 JSON：已经结束，后面却还有内容"),
        ('{"a', "第 1 行第 2 列不是合法 JSON：引号没有合上"),
        ('{"a\n"', "第 1 行第 4 列不是合法 JSON：引号里有换行之类的控制字符，应写成 \\n 的样子"),
        ('"\\x"', "第 1 行第 2 列不是合法 JSON：反斜杠后面的字符不对，反斜杠自己应写成 \\\\"),
        ("[" * 100_000, "从第 1 行起不是合法 JSON：嵌套太深"),
        ("9" * 5000, "从第 1 行起不是合法 JSON：有一个数太长"),
    ],
    ids=lambda value: value[:12],
)
def test_mistake_is_located_and_explained_in_chinese(text, said):
    assert explain(text) == f"错误：a.json：{said}。改好它。"


@pytest.mark.parametrize("text", ["[1,]", '{"a": 1,}', '"\\u12"', "\ufeff1"])
def test_no_english_is_left(text):
    assert not any(word in explain(text) for word in ("Expecting", "Invalid", "Illegal", "Unexpected", "escape"))


def test_line_is_counted_from_where_the_text_begins():
    assert "a.json：第 7 行第 8 列不是合法 JSON" in explain('{"a": 1', line=7)
