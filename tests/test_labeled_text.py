"""utils/labeled_text.py：三种写法都读得进，坏的写明第几行；三部分没有相同的文字。"""

import csv
import json

import pytest

from utils.errors import UserError
from utils.labeled_text import LabeledText, labels_of, read_labeled_texts, split_records

RECORDS = [LabeledText("好" if i % 3 else "坏", f'第 {i} 条, 有"引号"') for i in range(60)]


def write(path, content: str):
    path.write_text(content, encoding="utf-8")
    return path


def as_csv(delimiter: str = ",", header: str = "label{}text") -> str:
    quoted = (f'{r.label}{delimiter}"{r.text.replace(chr(34), chr(34) * 2)}"' for r in RECORDS)
    return "\n".join([header.format(delimiter), *quoted])


@pytest.mark.parametrize(
    "content",
    [
        as_csv(),
        as_csv("\t"),
        "\ufeff" + as_csv().replace("\n", "\r\n"),
        "\n".join(f"{record.label}\t{record.text}" for record in RECORDS),
        as_csv().replace("\n", "\n \n") + "\n,\n,,\n",
        "\n\n" + "\n".join(f"{record.label}\t{record.text}" for record in RECORDS),
        "\n\n".join(json.dumps({"text": r.text, "label": r.label, "更多": 1}, ensure_ascii=False) for r in RECORDS),
        "\n".join(json.dumps({"标签": r.label, "文本": r.text}, ensure_ascii=False) for r in RECORDS),
        "编号,文本,标签\n"
        + "\n".join(f'{i},"{r.text.replace(chr(34), chr(34) * 2)}",{r.label}' for i, r in enumerate(RECORDS)),
    ],
    ids=["csv", "tsv", "windows", "uci", "blank_rows", "uci_after_blank_lines", "jsonl", "jsonl_in_chinese", "columns"],
)
def test_every_format_gives_the_same_records(tmp_path, content):
    assert read_labeled_texts(write(tmp_path / "data", content)) == RECORDS


BAD = [
    (as_csv() + "\n好", "第 62 行只有 1 列"),
    (as_csv() + "\n好,", "第 62 行的文字是空的"),
    (as_csv() + '\n"",文字', "第 62 行的标签是空的"),
    (as_csv() + '\n好,"没有合上\n好,一\n好,二', "从第 62 行起不是合法的 CSV"),
    (as_csv() + '\n坏,"第 1 条, 有""引号"""', "第 62 行与前面的一条文字相同，标签却是 坏 而不是 好"),
    ("名字,内容\n好,一", "第一行应是表头"),
    ("label,text\n" + "\n".join(f"好,{i}" for i in range(30)), "只有一种标签（好）"),
    ("label,text\n" + "\n".join(f"{'好' if i else '坏'},{i}" for i in range(30)), "标签 坏 只有 1 条"),
    ("label,text", "只有一种标签（没有数据）"),
    ('{"label": "好"}', '第 1 行缺少 "text"'),
    ('{"label": "好", "text": 5}', '第 1 行的 "text" 应是文字，收到 5'),
    ('{"label": "好", "text": "一"}\n{坏的}', "第 2 行第 2 列不是合法 JSON：这里应是双引号括起的字段名。每行应是"),
    ('{"a":' * 100_000, "从第 1 行起不是合法 JSON：嵌套太深"),
    ('[{"label": "好", "text": "一"}]', "是 JSON 数组"),
    (as_csv() + f"\n{'长' * 51},文字", "第 62 行的标签有 51 字，最多 50 字。看看标签和文字两列"),
    ('label,text\n"好\n坏",一', "第 2 行的标签里有换行之类看不见的字符"),
    (as_csv() + "\n好\u200d,一", "第 62 行的标签里有换行之类看不见的字符"),  # 没有连着什么，看上去就是“好”
    (as_csv() + "\n好\u200d\u200d坏,一", "第 62 行的标签里有换行之类看不见的字符"),
    (as_csv() + "\n好\u200b坏,一", "第 62 行的标签里有换行之类看不见的字符"),
    (as_csv() + "\n好\U000e0067,一", "第 62 行的标签里有换行之类看不见的字符"),
]


@pytest.mark.parametrize(
    "label", ["👨\u200d👩\u200d👧", "❤\ufe0f\u200d🔥", "🏴\U000e0067\U000e0062\U000e007f", "می\u200cخواهم"]
)
def test_joined_emoji_is_a_label(tmp_path, label):
    """里面有看不见的连接符，但连起来是看得见的一个。"""
    content = as_csv().replace("\n坏", f"\n{label}")
    assert labels_of(read_labeled_texts(write(tmp_path / "data", content))) == sorted([label, "好"])


@pytest.mark.parametrize(("content", "message"), BAD, ids=[message[:12] for _, message in BAD])
def test_bad_record_is_named(tmp_path, content, message):
    with pytest.raises(UserError, match=message):
        read_labeled_texts(write(tmp_path / "data", content))


def test_same_text_is_read_once(tmp_path):
    content = as_csv() + "\n" + as_csv().split("\n", 1)[1]
    assert read_labeled_texts(write(tmp_path / "data", content)) == RECORDS


def test_parts_share_nothing_and_have_the_same_shares():
    split = split_records(RECORDS, 1)
    parts = (split.train, split.validate, split.test)
    assert sorted(r.text for part in parts for r in part) == sorted(r.text for r in RECORDS)
    assert [len(part) for part in parts] == [42, 6, 12]
    assert [sum(r.label == "坏" for r in part) for part in parts] == [14, 2, 4]


def test_split_depends_only_on_the_seed():
    assert split_records(RECORDS, 1) == split_records(RECORDS, 1) != split_records(RECORDS, 2)
    assert labels_of(RECORDS[::-1]) == labels_of(RECORDS) == ["坏", "好"]


def test_line_separators_inside_a_text_do_not_end_the_record(tmp_path):
    path = tmp_path / "data.jsonl"
    records = [{"label": label, "text": f"{label}\u2028{index}\x85"} for index in range(12) for label in "好坏"]
    path.write_text("\n".join(json.dumps(record, ensure_ascii=False) for record in records), encoding="utf-8")
    assert len(read_labeled_texts(path)) == 24


def test_very_long_text_is_read_whole(tmp_path):
    path = tmp_path / "data.csv"
    rows = [f"{label},{label}{index}" for index in range(12) for label in "好坏"]
    path.write_text("\n".join(["label,text", *rows, "好," + "长" * 200_000]), encoding="utf-8")
    before = csv.field_size_limit()
    assert len(read_labeled_texts(path)[-1].text) == 200_000
    assert csv.field_size_limit() == before
