"""指令数据：从 JSON 或 JSONL 读进来，分成训练和留出两部分。不引用 torch，写错的数据立刻有回应。"""

import json
import random
from dataclasses import dataclass
from pathlib import Path

from utils.errors import UserError
from utils.json_errors import json_error
from utils.prompt_template import Turn, join_question
from utils.text_file import read_text

HELD_OUT_FRACTION = 0.1
MIN_RECORDS = 20
SHOWN_CHARACTERS = 50
RECORD = '每条应是 {"instruction": …, "output": …}，或 {"conversations": […]}。'
TURNS = "user 和 assistant 轮流各说一句，由 user 开始。"
ROLES = {"user": "user", "human": "user", "assistant": "assistant", "gpt": "assistant"}


@dataclass(frozen=True)
class Conversation:
    """一条数据：一轮或多轮对话。"""

    turns: tuple[Turn, ...]
    task: str | None  # 哪一类任务；没有写则为 None
    is_held_out: bool | None  # 数据自己说了算；没有说则为 None


def read_conversations(path: Path, encoding: str = "utf-8") -> list[Conversation]:
    """读出全部数据；不成立的抛出 UserError，写明第几条。

    每条是 {"instruction", "input"（可省）, "output"}，或 {"conversations": [{"role", "content"}, …]}，也可以是
    ShareGPT 的写法 {"from", "value"}；可以另有 "task"（哪一类任务）和 "split"（train 或 held_out）。
    """
    records = [_conversation(record, number, path) for number, record in enumerate(_parse(path, encoding), 1)]
    if len(records) < MIN_RECORDS:
        raise UserError(path, f"只有 {len(records)} 条，至少需要 {MIN_RECORDS} 条", "补充数据，或换一份。")
    return records


def _parse(path: Path, encoding: str) -> list:
    content = read_text(path, encoding)
    if content.lstrip().startswith("["):
        try:
            return json.loads(content)
        except (ValueError, RecursionError) as error:
            raise json_error(path, error, "改好这一处；也可以每行一条，不要方括号和行末的逗号。") from None
    records = []
    for number, line in enumerate(content.split("\n"), 1):
        if line.strip():
            try:
                records.append(json.loads(line))
            except (ValueError, RecursionError) as error:
                raise json_error(path, error, "文件应是一个数组，或每行一条。", line=number) from None
    return records


def _conversation(record: object, number: int, path: Path) -> Conversation:
    if not isinstance(record, dict):
        raise UserError(path, f"第 {number} 条不是一个对象 {{…}}", RECORD)
    if "conversations" in record:
        turns = _turns(record["conversations"], number, path)
    else:
        values = [_text(record, name, number, path) for name in ("instruction", "output")]
        text = "" if _is_blank(record.get("input")) else _text(record, "input", number, path)
        turns = (Turn(join_question(values[0], text), values[1]),)
    split = record.get("split")
    if split not in (None, "train", "held_out"):
        reason = f'第 {number} 条的 "split" 应为 train 或 held_out，收到 {_show(split)}'
        raise UserError(path, reason, "改成其中之一，或全部去掉，由程序来分。")
    task = None if _is_blank(record.get("task")) else _text(record, "task", number, path)
    return Conversation(turns, task, None if split is None else split == "held_out")


def _turns(messages: object, number: int, path: Path) -> tuple[Turn, ...]:
    """一问一答交替，由用户开始、模型结束。"""
    if not isinstance(messages, list) or not messages or len(messages) % 2:
        raise UserError(path, f'第 {number} 条的 "conversations" 应是一问一答成对的数组', TURNS)
    texts = []
    for index, message in enumerate(messages):
        wanted = ("user", "assistant")[index % 2]
        is_share_gpt = isinstance(message, dict) and "from" in message
        role_name, text_name = ("from", "value") if is_share_gpt else ("role", "content")
        role = message.get(role_name) if isinstance(message, dict) else None
        if not isinstance(role, str) or ROLES.get(role) != wanted:
            reason = f"第 {number} 条的第 {index + 1} 句的 {role_name} 应为 {wanted}，收到 {_show(role)}"
            raise UserError(path, reason, TURNS)
        texts.append(_text(message, text_name, number, path))
    return tuple(map(Turn, texts[::2], texts[1::2]))


def _text(record: dict, name: str, number: int, path: Path) -> str:
    """record 里非空的文字。"""
    if name not in record:
        raise UserError(path, f'第 {number} 条缺少 "{name}"', "补上它，或删去这一条。")
    if not isinstance(record[name], str) or not record[name].strip():
        reason = f'第 {number} 条的 "{name}" 应是非空的文字，收到 {_show(record[name])}'
        raise UserError(path, reason, "改成文字，或删去这一条。")
    return record[name].strip()


def _is_blank(value: object) -> bool:
    """可以不写的一项没有写：null，或只有空白。"""
    return value is None or isinstance(value, str) and not value.strip()


def _show(value: object) -> str:
    """JSON 里的样子；太长的只要开头。"""
    return json.dumps(value, ensure_ascii=False)[:SHOWN_CHARACTERS]


def split_conversations(
    path: Path, records: list[Conversation], seed: int
) -> tuple[list[Conversation], list[Conversation]]:
    """-> (训练, 留出)。数据自己分好了就照办；否则问话相同的归在一起，打乱后留出一成。

    有一部分是空的，或同一个问话两部分都有，就抛出 UserError：留出的成绩便不算数了。
    """
    if any(record.is_held_out is not None for record in records):
        parts = [[r for r in records if bool(r.is_held_out) is wanted] for wanted in (False, True)]
        if not all(parts):
            empty = "训练" if parts[1] else "留出"
            raise UserError(path, f'"split" 没有把任何一条分到{empty}部分', "改一改，或全部去掉，由程序来分。")
        trained, held_out = ({r.turns[0].question for r in part} for part in parts)
        if shared := trained & held_out:
            reason = f"有 {len(shared):,} 个问题训练和留出两部分都有，如 {min(shared)[:20]}"
            raise UserError(path, reason, "只留在一边，留出的成绩才算数。")
        return parts[0], parts[1]
    questions = sorted({record.turns[0].question for record in records})
    if len(questions) < 2:
        raise UserError(path, "各条的问题都相同，分不出训练和留出两部分", "至少要有两种不同的问题。")
    random.Random(seed).shuffle(questions)
    held_out = set(questions[: max(1, round(len(questions) * HELD_OUT_FRACTION))])
    return [r for r in records if r.turns[0].question not in held_out], [
        r for r in records if r.turns[0].question in held_out
    ]
