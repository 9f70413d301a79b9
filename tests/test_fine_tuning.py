"""utils/fine_tuning.py：两种微调共有的几步。"""

import argparse

import pytest

from conftest import tiny_config
from model.language_model import LanguageModel
from model.lora import LoRAConfig
from model.trainable import set_trainable
from utils.errors import UserError
from utils.fine_tuning import check_lora_rank, digest_of, fixed_details, quote
from utils.labeled_text import LabeledText


def arguments(trainable: str, rank: int) -> argparse.Namespace:
    return argparse.Namespace(trainable=trainable, lora_rank=rank, lora_alpha=4.0, lora_projections="attention")


def test_rank_larger_than_the_matrix_is_refused():
    with pytest.raises(UserError, match="--lora_rank：不能超过模型的 emb_dim=32，收到 33"):
        check_lora_rank(arguments("lora", 33), tiny_config())
    check_lora_rank(arguments("lora", 32), tiny_config())
    check_lora_rank(arguments("all", 10**6), tiny_config())


def test_what_may_not_change_is_recorded():
    model = LanguageModel(tiny_config())
    start = fixed_details(model, arguments("all", 2))
    assert start.keys() == {"trainable", "起点的指纹"}  # 秩只对 lora 有用
    set_trainable(model, "lora", LoRAConfig(2))
    expected = {"lora_rank": 2, "lora_alpha": 4.0, "lora_projections": "attention"}
    assert fixed_details(model, arguments("lora", 2)) == {**start, "trainable": "lora", **expected}
    other = fixed_details(LanguageModel(tiny_config()), arguments("all", 2))
    assert other["起点的指纹"] != start["起点的指纹"]


def test_digest_tells_data_apart():
    records = [LabeledText("好", "甲"), LabeledText("坏", "乙")]
    assert digest_of(records) == digest_of(list(records))
    assert len({digest_of(records), digest_of(records[::-1]), digest_of(records[:1])}) == 3


def test_quoted_text_is_short_and_on_one_line():
    assert quote("恭喜\n中奖") == "“恭喜 中奖”"
    assert quote("长" * 13) == f"“{'长' * 12}……”"
