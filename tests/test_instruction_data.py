"""utils/instruction_data.py：JSON、JSONL、多轮都读得进，坏的写明第几条；留出的不在训练里。"""

import json
from pathlib import Path

import pytest

from utils.errors import UserError
from utils.instruction_data import Conversation, read_conversations, split_conversations
from utils.prompt_template import Turn

PATH = Path("data.json")
RECORDS = [{"instruction": f"第 {i} 问", "input": "甲" if i % 2 else "", "output": f"答 {i}"} for i in range(30)]


def write(tmp_path, content):
    path = tmp_path / "data.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content, ensure_ascii=False), encoding="utf-8")
    return path


def test_json_and_jsonl_give_the_same(tmp_path):
    whole = read_conversations(write(tmp_path, RECORDS))
    lines = "\n\n".join(json.dumps(record) for record in RECORDS)
    assert read_conversations(write(tmp_path, lines)) == whole
    assert whole[0].turns == (Turn("第 0 问", "答 0"),) and whole[1].turns == (Turn("第 1 问\n甲", "答 1"),)


def test_blank_optional_fields_count_as_absent(tmp_path):
    blanks = [{**record, "input": blank, "task": blank} for record in RECORDS for blank in (None, "", " \n")]
    assert {(r.turns, r.task) for r in read_conversations(write(tmp_path, blanks))} == {
        ((Turn(record["instruction"], record["output"]),), None) for record in RECORDS
    }


def test_conversations_of_several_turns(tmp_path):
    messages = [{"role": role, "content": role + str(i)} for i in range(2) for role in ("user", "assistant")]
    records = read_conversations(
        write(tmp_path, [*RECORDS, {"conversations": messages, "task": "聊天", "split": "train"}])
    )
    assert records[-1].turns == (Turn("user0", "assistant0"), Turn("user1", "assistant1"))
    assert (records[-1].task, records[-1].is_held_out, records[0].is_held_out) == ("聊天", False, None)


def test_share_gpt_names_are_read(tmp_path):
    messages = [{"from": "human", "value": "问"}, {"from": "gpt", "value": "答"}]
    records = read_conversations(write(tmp_path, [*RECORDS, {"conversations": messages}]))
    assert records[-1].turns == (Turn("问", "答"),)


GOOD_TURN = [{"role": "user", "content": "问"}, {"role": "assistant", "content": "答"}]
BAD = [
    ({"input": "x", "output": "y"}, '第 31 条缺少 "instruction"'),
    ({"instruction": "x"}, '第 31 条缺少 "output"'),
    ({"instruction": "x", "output": ""}, '第 31 条的 "output" 应是非空的文字，收到 ""'),
    ({"instruction": 5, "output": "y"}, '第 31 条的 "instruction" 应是非空的文字，收到 5'),
    ({"instruction": "x", "input": [1], "output": "y"}, '第 31 条的 "input" 应是非空的文字'),
    ({"instruction": "x", "output": "y", "split": "test"}, '"split" 应为 train 或 held_out，收到 "test"'),
    ({"instruction": "x", "input": 0, "output": "y"}, '第 31 条的 "input" 应是非空的文字，收到 0'),
    ("文字", "第 31 条不是一个对象"),
    ({"conversations": GOOD_TURN[:1]}, "应是一问一答成对的数组"),
    ({"conversations": GOOD_TURN[::-1]}, '第 31 条的第 1 句的 role 应为 user，收到 "assistant"'),
    ({"conversations": [*GOOD_TURN, 3, 4]}, "第 31 条的第 3 句的 role 应为 user，收到 null"),
    ({"conversations": [GOOD_TURN[0], {"role": "assistant"}]}, '第 31 条缺少 "content"'),
]


@pytest.mark.parametrize(("record", "message"), BAD, ids=[message[:16] for _, message in BAD])
def test_bad_record_is_named(tmp_path, record, message):
    with pytest.raises(UserError, match=message):
        read_conversations(write(tmp_path, [*RECORDS, record]))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('[{"instruction": }]', "第 1 行第 18 列不是合法 JSON：这里缺少一个值。改好这一处"),
        ("[" * 100_000, "从第 1 行起不是合法 JSON：嵌套太深"),
        ('{"instruction": "x", "output": "y"}\n坏的', "第 2 行第 1 列不是合法 JSON：这里缺少一个值"),
        (RECORDS[:5], "只有 5 条，至少需要 20 条"),
    ],
    ids=["json", "deep", "jsonl", "few"],
)
def test_bad_file_is_located(tmp_path, content, message):
    with pytest.raises(UserError, match=message):
        read_conversations(write(tmp_path, content))


def test_same_question_never_stands_in_both_parts(tmp_path):
    twice = [*RECORDS, *({**record, "output": "另一个答案"} for record in RECORDS)]
    records = read_conversations(write(tmp_path, twice))
    train, held_out = split_conversations(PATH, records, 1)
    assert len(train) + len(held_out) == 60 and len(held_out) == 6
    assert not {r.turns[0].question for r in train} & {r.turns[0].question for r in held_out}
    assert split_conversations(PATH, records, 1) == (train, held_out) != split_conversations(PATH, records, 2)


def test_split_of_the_file_is_obeyed(tmp_path):
    marked = [{**record, "split": "held_out" if i % 3 == 0 else "train"} for i, record in enumerate(RECORDS)]
    records = read_conversations(write(tmp_path, marked))
    train, held_out = split_conversations(PATH, records, 1)
    assert [record.is_held_out for record in train + held_out] == [False] * 20 + [True] * 10


def test_question_in_both_parts_is_a_leak():
    """留出的问题训练里也有，成绩就不算数。"""
    records = [Conversation((Turn("一样的", "甲"),), None, wanted) for wanted in (False, True)]
    with pytest.raises(UserError, match="1 个问题训练和留出两部分都有，如 一样的"):
        split_conversations(PATH, records, 1)


@pytest.mark.parametrize(("wanted", "part"), [(True, "训练"), (False, "留出")])
def test_split_that_leaves_a_part_empty_is_named(wanted, part):
    records = [Conversation((Turn(f"问 {index}", "答"),), None, wanted) for index in range(3)]
    with pytest.raises(UserError, match=f"没有把任何一条分到{part}部分"):
        split_conversations(PATH, records, 1)


def test_one_question_cannot_be_split():
    records = [Conversation((Turn("问", str(index)),), None, None) for index in range(30)]
    with pytest.raises(UserError, match="各条的问题都相同"):
        split_conversations(PATH, records, 1)
