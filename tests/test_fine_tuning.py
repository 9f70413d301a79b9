"""utils/fine_tuning.py：两种微调共有的检查。"""

import argparse

import pytest

from conftest import tiny_config
from utils.errors import UserError
from utils.fine_tuning import check_lora_rank


def test_rank_larger_than_the_matrix_is_refused():
    arguments = argparse.Namespace(trainable="lora", lora_rank=33)
    with pytest.raises(UserError, match="--lora_rank：不能超过模型的 emb_dim=32，收到 33"):
        check_lora_rank(arguments, tiny_config())
    arguments.lora_rank = 32
    check_lora_rank(arguments, tiny_config())
    check_lora_rank(argparse.Namespace(trainable="all", lora_rank=10**6), tiny_config())
