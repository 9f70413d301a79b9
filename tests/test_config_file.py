"""utils/config_file.py：配置文件里的每一种问题都说清是哪个文件的哪一处。"""

import argparse
import json

import pytest

from conftest import TINY_FILE, TINY_MODEL, tiny_config, write_config
from model.config import ModelConfig
from utils.config_file import CONFIGS_DIR, EXAMPLE, MAX_BPE_VOCAB_SIZE, MIN_BPE_VOCAB_SIZE, ConfigFile, read_config
from utils.errors import UserError
from utils.settings import TrainingSettings

NO_ARGUMENTS = argparse.Namespace()


def read(content: str | bytes, folder) -> ConfigFile:
    path = folder / "c.json"
    path.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8"))
    return read_config(path, ModelConfig.from_dict)


def refuse(content: str | bytes, folder) -> str:
    """读取失败时的那一行，去掉开头的文件名。"""
    with pytest.raises(UserError) as error:
        read(content, folder)
    prefix = f"错误：{folder / 'c.json'}："
    assert str(error.value).startswith(prefix) and error.value.exit_code == 2
    return str(error.value).removeprefix(prefix)


def changed(**changes) -> str:
    return json.dumps({**TINY_FILE, **changes}, ensure_ascii=False)


def test_valid_file_is_split_into_three_parts(tmp_path):
    path = write_config(tmp_path)
    config = read_config(path, ModelConfig.from_dict)
    assert config == ConfigFile(path, tiny_config(), TINY_FILE["tokenizer"], TINY_FILE["training"])


def test_both_sections_are_optional(tmp_path):
    config = read(json.dumps(TINY_MODEL), tmp_path)
    assert config.tokenizer == {"type": "gpt2"} and config.training == {}
    assert config.model == tiny_config()


def test_byte_order_mark_and_windows_line_ends_are_harmless(tmp_path):
    text = json.dumps(TINY_FILE, indent=2).replace("\n", "\r\n")
    assert read(b"\xef\xbb\xbf" + text.encode(), tmp_path).model == tiny_config()


def test_names_of_the_book_are_understood(tmp_path):
    """《从零构建大模型》的配置叫 n_heads、n_layers。"""
    assert (
        read(changed().replace("num_heads", "n_heads").replace("num_layers", "n_layers"), tmp_path).model
        == tiny_config()
    )
    both = refuse(changed().replace("{", '{"n_heads": 4, ', 1), tmp_path)
    assert both == "n_heads 和 num_heads 是同一个字段。只留一个。"


def test_repeated_field_is_named_at_every_depth(tmp_path):
    assert refuse(changed().replace("{", '{"emb_dim": 32, ', 1), tmp_path) == "字段 emb_dim 重复。只留一个。"
    assert refuse(changed().replace('"epochs"', '"epochs": 2, "epochs"'), tmp_path) == "字段 epochs 重复。只留一个。"


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity"])
def test_numbers_that_json_does_not_know_are_refused(tmp_path, number):
    assert refuse(changed().replace("0.003", number), tmp_path) == f"{number} 不是合法的数值。改成普通的数。"


def test_number_of_thousands_of_digits_is_refused(tmp_path):
    assert "不是合法的数值" in refuse(changed().replace("300", "3" * 5000, 1), tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{\n "a": 1,,\n}', "第 2 行第 9 列不是合法 JSON：这里应是双引号括起的字段名。改好这一处。写法见 configs/"),
        ("", "第 1 行第 1 列不是合法 JSON"),
        ('{"a": 1', "不是合法 JSON"),
        (b'{"a": "\xff"}', "第 8 字节不是 UTF-8。请另存为 UTF-8。"),
        ("[" * 100_000, "不是合法 JSON：嵌套太深。"),
        ("[1, 2]", "最外层应为一个对象 {…}。"),
        ("null", "最外层应为一个对象 {…}。"),
    ],
    ids=["comma", "empty", "cut", "not-utf8", "deep", "list", "null"],
)
def test_file_that_is_not_a_json_object_is_located(tmp_path, content, message):
    assert message in refuse(content, tmp_path)


def test_unknown_and_missing_fields_are_named(tmp_path):
    assert refuse(changed(num_head=4), tmp_path) == "未知字段 num_head，是否想写 num_heads？"
    assert refuse(changed(colour="红"), tmp_path) == f"未知字段 colour。{EXAMPLE}"
    values = {name: value for name, value in TINY_FILE.items() if name not in ("emb_dim", "drop_rate")}
    assert refuse(json.dumps(values), tmp_path) == f"缺少字段 emb_dim、drop_rate。{EXAMPLE}"


def test_wrong_model_value_is_shown(tmp_path):
    assert refuse(changed(emb_dim="32"), tmp_path) == f'emb_dim 应为正整数，收到 "32"。{EXAMPLE}'
    assert refuse(changed(num_heads=5), tmp_path) == f"emb_dim=32 不能被 num_heads=5 整除。{EXAMPLE}"


def test_missing_file_lists_the_shipped_configurations(tmp_path):
    with pytest.raises(UserError) as error:
        read_config(tmp_path / "none.json", ModelConfig.from_dict)
    assert "找不到配置文件" in str(error.value)
    assert all(path.name in str(error.value) for path in CONFIGS_DIR.glob("*.json"))


@pytest.mark.parametrize(
    "tokenizer",
    [
        {"type": "gpt2"},
        {"type": "bpe", "vocab_size": MIN_BPE_VOCAB_SIZE},
        {"type": "bpe", "vocab_size": MAX_BPE_VOCAB_SIZE},
        {"type": "bpe", "vocab_size": 300, "split": "han"},
        {"type": "bpe", "vocab_size": 300, "split": "gpt2"},
    ],
)
def test_good_tokenizer_section_is_returned_as_it_is(tmp_path, tokenizer):
    assert read(changed(tokenizer=tokenizer), tmp_path).tokenizer == tokenizer


@pytest.mark.parametrize(
    ("tokenizer", "message"),
    [
        ("gpt2", '"tokenizer" 应为一个对象，如 {"type": "gpt2"}，收到 "gpt2"'),
        (None, "收到 null"),
        ({}, '"tokenizer" 的 type 应为 gpt2 | bpe 之一，收到 null'),
        ({"type": "word"}, 'type 应为 gpt2 | bpe 之一，收到 "word"'),
        ({"type": []}, "type 应为 gpt2 | bpe 之一，收到 []"),
        ({"type": "gpt2", "vocab_size": 300}, '"tokenizer" 里有未知字段 vocab_size'),
        ({"type": "bpe", "vocab_size": 300, "b": 1, "a": 2}, '"tokenizer" 里有未知字段 a、b'),
        ({"type": "bpe"}, "vocab_size 应为 257 到 1000000 的整数，收到 null"),
        ({"type": "bpe", "vocab_size": 256}, "收到 256"),
        ({"type": "bpe", "vocab_size": 1_000_001}, "收到 1000001"),
        ({"type": "bpe", "vocab_size": 300.0}, "收到 300.0"),
        ({"type": "bpe", "vocab_size": True}, "收到 true"),
        ({"type": "bpe", "vocab_size": "300"}, '收到 "300"'),
        ({"type": "bpe", "vocab_size": 300, "split": "字"}, '"tokenizer" 的 split 应为'),
        ({"type": "bpe", "vocab_size": 300, "split": []}, "收到 []"),
    ],
    ids=str,
)
def test_bad_tokenizer_section_is_explained(tmp_path, tokenizer, message):
    assert message in refuse(changed(tokenizer=tokenizer), tmp_path)


@pytest.mark.parametrize("training", [[], 3, None, "x"])
def test_training_section_must_be_an_object(tmp_path, training):
    assert refuse(changed(training=training), tmp_path) == f'"training" 应为一个对象 {{…}}。{EXAMPLE}'


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"epochs": "3"}, '"training" 的 epochs 类型不对，应写成数字，收到 "3"。去掉引号。'),
        ({"epochs": True}, "应写成数字，收到 true。改成数字。"),
        ({"epochs": None}, '"training" 的 epochs 必须是 ≥1 的整数'),
        ({"epochs": 1.5}, '"training" 的 epochs 必须是 ≥1 的整数，收到 1.5。改掉它，或删去这一项用默认值 10。'),
        ({"epochs": [3]}, '"training" 的 epochs'),
        ({"learning_rate": 0}, '"training" 的 learning_rate 必须是 >0 的有限数，收到 0'),
        ({"optimizer": 3}, '"training" 的 optimizer 类型不对，应写成文字，收到 3。加上引号。'),
        ({"optimizer": "sgd"}, "应为 adamw | muon 之一，收到 sgd"),
        ({"sample_prompt": 3}, '"training" 的 sample_prompt 类型不对，应写成文字，收到 3'),
        ({"sample_prompt": ""}, '"training" 的 sample_prompt 不能为空'),
        ({"lr": 0.1}, '"training" 里有未知字段 lr。可用的有：epochs、max_steps、'),
    ],
    ids=str,
)
def test_bad_training_section_names_the_file_and_the_field(tmp_path, section, message):
    config = read(changed(training=section), tmp_path)
    with pytest.raises(UserError) as error:
        TrainingSettings.from_sources(config.training, NO_ARGUMENTS, config.path)
    assert str(error.value).startswith(f"错误：{config.path}：") and message in str(error.value)


def test_training_section_values_keep_their_types(tmp_path):
    section = {"epochs": 2, "max_minutes": 3, "stride": None, "sample_prompt": "师父", "keep": "last"}
    config = read(changed(training=section), tmp_path)
    settings = TrainingSettings.from_sources(config.training, NO_ARGUMENTS, config.path)
    expected = TrainingSettings(epochs=2, max_minutes=3.0, stride=None, sample_prompt="师父", keep="last")
    assert settings == expected and type(settings.max_minutes) is float
