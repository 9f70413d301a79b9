"""utils/settings.py：命令行优先于配置文件，配置文件优先于默认值。"""

import argparse
from pathlib import Path

import pytest

from utils.cli import ArgumentParser
from utils.errors import UserError
from utils.settings import TrainingSettings, add_training_arguments

CONFIG = Path("x.json")


def settings(section: dict, *arguments: str) -> TrainingSettings:
    parser = ArgumentParser("")
    add_training_arguments(parser)
    return TrainingSettings.from_sources(section, parser.parse_args(arguments), CONFIG)


def test_defaults_are_those_of_the_original_project():
    plain = settings({})
    assert (plain.batch_size, plain.learning_rate, plain.epochs, plain.seed) == (2, 4e-4, 10, 123)


def test_flag_beats_file_beats_default():
    assert settings({"batch_size": 16, "epochs": 3}, "--epochs", "7") == TrainingSettings(batch_size=16, epochs=7)
    assert settings({"max_minutes": None}).max_minutes is None


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"batchsize": 4}, "未知字段 batchsize"),
        ({"batch_size": 0}, "batch_size 必须是 ≥1 的整数，收到 0"),
        ({"batch_size": "4"}, "batch_size 类型不对"),
        ({"batch_size": True}, "batch_size 类型不对"),
        ({"batch_size": 2.5}, "batch_size 必须是 ≥1 的整数"),
        ({"batch_size": None}, "batch_size"),
        ({"batch_size": [4]}, "batch_size"),
        ({"learning_rate": -1}, "learning_rate 必须是 >0 的有限数，收到 -1"),
        ({"optimizer": "sgd"}, "optimizer 应为 adamw | muon 之一"),
        ({"optimizer": 3}, "optimizer 类型不对"),
        ({"sample_prompt": 3}, "sample_prompt 类型不对"),
    ],
)
def test_wrong_value_in_the_file_is_named(section, message):
    with pytest.raises(UserError, match=message.replace("|", r"\|")):
        settings(section)


def test_muon_learning_rate_is_refused_where_muon_is_not_used():
    message = "--muon_learning_rate：只与 --optimizer muon 同用。加上 --optimizer muon，或去掉 --muon_learning_rate。"
    for section in ({}, {"optimizer": "adamw"}):
        with pytest.raises(UserError, match=message):
            settings(section, "--muon_learning_rate", "0.01")
    with pytest.raises(UserError, match=message):
        settings({"optimizer": "muon"}, "--optimizer", "adamw", "--muon_learning_rate", "0.01")
    assert settings({"optimizer": "muon"}, "--muon_learning_rate", "0.01").muon_learning_rate == 0.01
    assert settings({"muon_learning_rate": 0.01}).muon_learning_rate == 0.01  # 配置文件里的不管


def test_namespace_without_training_arguments_is_fine():
    assert TrainingSettings.from_sources({}, argparse.Namespace(), CONFIG) == TrainingSettings()
