"""utils/prompt_template.py：一轮对话怎样写成文字。"""

from utils.prompt_template import TEMPLATES, choose_template, join_question


def test_prompt_ends_where_the_answer_begins():
    assert TEMPLATES["zh"].prompt("写出第一个字。\n悟空") == "问：写出第一个字。\n悟空\n答："
    assert TEMPLATES["en"].prompt("Spell it.") == "Instruction: Spell it.\nAnswer: "


def test_input_is_optional():
    assert join_question("说说悟空", "") == "说说悟空"
    assert join_question("倒过来写", "悟空") == "倒过来写\n悟空"


def test_language_decides_the_template():
    assert choose_template(["写出第一个字", "把 abc 变成大写"]) == "zh"
    assert choose_template(["Convert 45 kilometers to meters.", "翻译"]) == "en"
