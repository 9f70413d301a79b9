"""带标签的文字：从 CSV、TSV 或 JSONL 读进来，分成训练、验证、测试三部分。不引用 torch，写错的数据立刻有回应。"""

import csv
import io
import json
import random
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from utils.errors import UserError
from utils.json_errors import json_error
from utils.text_file import read_text

LABEL_NAMES = ("label", "标签", "类别")
TEXT_NAMES = ("text", "文本", "内容", "message", "短信")
TRAIN_FRACTION, VALIDATE_FRACTION = 0.7, 0.1  # 其余是测试部分
MIN_PER_LABEL = 10  # 每个标签至少这么多条，三部分才都有
MAX_LABELS = 1000
MAX_LABEL_CHARACTERS = 50
SHOWN_CHARACTERS = 50
# 自己看不见，却把前后连成一个字的：👨‍👩‍👧 里的连接符，黑旗后面说是哪里的旗的标记
JOINERS = re.compile("(?<=[^\u200c\u200d])[\u200c\u200d](?=[^\u200c\u200d])|(?<=\U0001f3f4)[\U000e0020-\U000e007f]+")
RECORD = '每行应是一个 {"label": …, "text": …}。'
SWAPPED = "看看标签和文字两列是不是弄反了。"


@dataclass(frozen=True)
class LabeledText:
    """一条数据。"""

    label: str
    text: str


@dataclass(frozen=True)
class Split:
    """三部分没有相同的文字，各个标签的比例相同。"""

    train: list[LabeledText]
    validate: list[LabeledText]
    test: list[LabeledText]


def read_labeled_texts(path: Path, encoding: str = "utf-8") -> list[LabeledText]:
    """读出全部数据；不成立的抛出 UserError，写明在文件的第几行。

    认得三种写法：有表头（label、text 两列，次序不限，可以有别的列）的 CSV 或 TSV；没有表头的“标签、制表符、文字”
    (UCI SMS Spam Collection)；每行一个 {"label": …, "text": …} 的 JSONL。标签和文字可以叫 LABEL_NAMES、TEXT_NAMES
    里的任何一个名字。
    """
    content = read_text(path, encoding)
    if content.lstrip().startswith("["):
        raise UserError(path, "是 JSON 数组", f"{RECORD}不要方括号和行末的逗号。")
    rows = _rows_of_jsonl(content, path) if content.lstrip().startswith("{") else _rows_of_table(content, path)
    records, seen = [], {}
    for number, label, text in rows:
        label, text = label.strip(), text.strip()
        if not label or not text:
            raise UserError(path, f"第 {number} 行的{'文字' if label else '标签'}是空的", "补上，或删去这一行。")
        if not JOINERS.sub("", label).isprintable():
            raise UserError(path, f"第 {number} 行的标签里有换行之类看不见的字符：{label[:20]!r}", "去掉它们。")
        if len(label) > MAX_LABEL_CHARACTERS:
            raise UserError(path, f"第 {number} 行的标签有 {len(label):,} 字，最多 {MAX_LABEL_CHARACTERS} 字", SWAPPED)
        if seen.setdefault(text, label) != label:
            reason = f"第 {number} 行与前面的一条文字相同，标签却是 {label} 而不是 {seen[text]}"
            raise UserError(path, reason, "改成一样。")
        records.append(LabeledText(label, text))
    _check_labels(records, path)
    return list(dict.fromkeys(records))  # 相同的只留一条，免得同时出现在训练和测试里


def _rows_of_jsonl(content: str, path: Path) -> Iterator[tuple[int, str, str]]:
    for number, line in enumerate(content.split("\n"), 1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise json_error(path, error, RECORD, line=number) from None
        values = []
        for choices in (LABEL_NAMES, TEXT_NAMES):
            name = next((name for name in choices if isinstance(record, dict) and name in record), None)
            if name is None:
                raise UserError(path, f'第 {number} 行缺少 "{choices[0]}"', RECORD)
            if not isinstance(record[name], str):
                value = json.dumps(record[name], ensure_ascii=False)[:SHOWN_CHARACTERS]
                raise UserError(path, f'第 {number} 行的 "{name}" 应是文字，收到 {value}', "加上双引号。")
            values.append(record[name])
        yield number, *values


def _rows_of_table(content: str, path: Path) -> Iterator[tuple[int, str, str]]:
    first = content.lstrip("\n").split("\n", 1)[0]
    delimiter = "\t" if "\t" in first else ","
    is_bare = delimiter == "\t" and not _columns_of(first.split("\t"))
    # UCI 的文件里引号只是文字的一部分
    options = {"quoting": csv.QUOTE_NONE} if is_bare else {"strict": True}
    reader = csv.reader(io.StringIO(content, newline=""), delimiter=delimiter, **options)
    columns = (0, 1) if is_bare else None
    limit = csv.field_size_limit(len(content) + 1)  # 默认的 131,072 字对一篇长文不够；用完还原
    try:
        for number, row in _read_rows(reader, path):
            if columns is None:
                columns = _columns_of(row)
                if columns is None:
                    wanted = f"{LABEL_NAMES[0]} 和 {TEXT_NAMES[0]} 两列"
                    reason = f"第一行应是表头，要有 {wanted}，收到 {first[:SHOWN_CHARACTERS]}"
                    raise UserError(
                        path, reason, f"在最前面加一行：{LABEL_NAMES[0]},{TEXT_NAMES[0]}，次序与下面的各列相同。"
                    )
                continue
            if len(row) <= max(columns):
                raise UserError(path, f"第 {number} 行只有 {len(row)} 列", "每行应有标签和文字。")
            if is_bare and len(row) > 2:
                row = [row[0], delimiter.join(row[1:])]
            yield number, row[columns[0]], row[columns[1]]
    finally:
        csv.field_size_limit(limit)


def _read_rows(reader: Iterator[list[str]], path: Path) -> Iterator[tuple[int, list[str]]]:
    """(从文件的第几行开始, 各列)；空行，和表格软件存在末尾的一串逗号，都跳过。"""
    while True:
        number = reader.line_num + 1  # 引号没有合上时要读到很后面才知道，毛病却在开始的这一行
        try:
            row = next(reader, None)
        except csv.Error as error:
            reason = f"从第 {number} 行起不是合法的 CSV（{error}）"
            raise UserError(path, reason, "文字里有引号时要写成两个，首尾再各加一个。") from None
        if row is None:
            return
        if any(cell.strip() for cell in row):
            yield number, row


def _columns_of(header: list[str]) -> tuple[int, int] | None:
    """表头里标签和文字各是第几列；不是表头则为 None。"""
    names = [name.strip().strip('"').lower() for name in header]
    found = [
        next((names.index(name) for name in choices if name in names), None) for choices in (LABEL_NAMES, TEXT_NAMES)
    ]
    return None if None in found else tuple(found)


def _check_labels(records: list[LabeledText], path: Path) -> None:
    counts = Counter(record.label for record in dict.fromkeys(records))
    if len(counts) < 2:
        raise UserError(path, f"只有一种标签（{'、'.join(counts) or '没有数据'}）", "分类至少要有两种。")
    if len(counts) > MAX_LABELS:
        raise UserError(path, f"有 {len(counts):,} 种标签", SWAPPED)
    for label, count in counts.items():
        if count < MIN_PER_LABEL:
            reason = f"标签 {label} 只有 {count} 条不同的文字，至少需要 {MIN_PER_LABEL} 条"
            raise UserError(path, reason, "补充数据，或并入别的标签；标签写错的也会这样。")


def split_records(records: list[LabeledText], seed: int) -> Split:
    """每个标签各自打乱，按比例分到三部分；只取决于数据和种子。"""
    generator = random.Random(seed)
    train, validate, test = [], [], []
    for label in labels_of(records):
        group = [record for record in records if record.label == label]
        generator.shuffle(group)
        first, second = (max(1, round(len(group) * fraction)) for fraction in (TRAIN_FRACTION, VALIDATE_FRACTION))
        train += group[:first]
        validate += group[first : first + second]
        test += group[first + second :]
    return Split(train, validate, test)


def labels_of(records: list[LabeledText]) -> list[str]:
    """全部标签，依字符编码排列，与数据的次序无关。"""
    return sorted({record.label for record in records})
