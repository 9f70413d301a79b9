"""utils/memory.py：开始之前的估计，与手算、与真正量到的峰值相比。"""

import json
import os
import subprocess
import sys

import pytest

from conftest import ROOT, tiny_config
from model.attention import BLOCK
from model.config import ModelConfig, count_parameters
from utils.memory import (
    ATTENTION_BLOCK,
    estimate_generation_bytes,
    estimate_training_bytes,
    keep_freed_memory,
    largest_batch_size,
)

MIDDLE = {
    "vocab_size": 4096,
    "context_length": 128,
    "emb_dim": 256,
    "num_heads": 4,
    "num_layers": 4,
    "drop_rate": 0.0,
    "qkv_bias": True,
}
# 先走完一步极小的训练，把各种库都载入；之后再多用的内存就是这个模型的
MEASURE = """
import json, sys
import torch
from benchmarks.machine import peak_bytes
from model.config import ModelConfig
from model.language_model import LanguageModel
from utils.optimizers import build_optimizers
from utils.settings import TrainingSettings
from utils.train_utils import calc_loss_batch

def train(cfg, batch_size):
    model = LanguageModel(cfg)
    optimizers = build_optimizers(model, TrainingSettings(optimizer=sys.argv[2]))
    token_ids = torch.randint(0, cfg.vocab_size, (batch_size, cfg.context_length + 1))
    for _ in range(2):  # 第二步时优化器的状态才都在
        calc_loss_batch(model, token_ids[:, :-1], token_ids[:, 1:]).backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()

values = json.loads(sys.argv[1])
train(ModelConfig.from_dict({**values, "emb_dim": 32, "vocab_size": 64, "context_length": 8, "num_layers": 1}), 2)
before = peak_bytes()
train(ModelConfig.from_dict(values), int(sys.argv[3]))
print(peak_bytes() - before)
"""


def estimate(values: dict, batch_size: int) -> int:
    cfg = ModelConfig.from_dict(values)
    return estimate_training_bytes(cfg, sum(count_parameters(cfg).values()), batch_size, "cpu")


def measure(values: dict, optimizer: str, batch_size: int) -> int:
    """真的训练两步，返回内存峰值（字节）。"""
    arguments = [json.dumps(values), optimizer, str(batch_size)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, *arguments], cwd=ROOT, env=environment, capture_output=True, timeout=120
    )
    assert done.returncode == 0, done.stderr.decode()
    return int(done.stdout)


def test_training_estimate_by_hand():
    # 1,000 个参数各 16 字节；激活 3 × 16 个 token × 32 维 × 2 层 × 16 份；分数 48 个 token × 300 个词 × 3 份
    assert estimate_training_bytes(tiny_config(), 1000, 3) == 16_000 + 48 * 32 * 2 * 16 * 4 + 48 * 300 * 3 * 4


def test_attention_table_is_counted_only_where_it_is_written_out():
    plain, dropout = tiny_config(), tiny_config(drop_rate=0.1)
    # 3 个样本 × 4 头 × 16 × 16 的表 × 2 层 × 3 份
    table = 3 * 4 * 16 * 16 * 2 * 3 * 4
    assert estimate_training_bytes(dropout, 1000, 3, "cpu") - estimate_training_bytes(plain, 1000, 3, "cpu") == table
    assert estimate_training_bytes(dropout, 1000, 3, "cuda") == estimate_training_bytes(plain, 1000, 3, "cuda")


def test_attention_table_is_about_halved_in_a_long_context():
    def table(context_length: int) -> int:
        plain, dropout = (tiny_config(drop_rate=rate, context_length=context_length) for rate in (0.0, 0.1))
        return estimate_training_bytes(dropout, 1000, 1, "cpu") - estimate_training_bytes(plain, 1000, 1, "cpu")

    assert ATTENTION_BLOCK == BLOCK
    # 四块查询各与 1、2、3、4 块键相乘，是整张表的 10/16
    assert table(4 * BLOCK) == 4 * (4 * BLOCK) ** 2 * 10 // 16 * 2 * 3 * 4


def test_generation_estimate_by_hand():
    # 2 层的键和值各 4 头 × 8 维，正弦和余弦各 8 维；4 字节一个数
    assert estimate_generation_bytes(tiny_config(), 1000) == 4 * (1000 + 16 * (2 * 2 * 32 + 2 * 8))
    assert estimate_generation_bytes(tiny_config(), 1000, 1) == 1000 + 4 * 16 * (2 * 2 * 32 + 2 * 8)
    assert estimate_generation_bytes(tiny_config(num_kv_heads=1), 0) == 4 * 16 * (2 * 2 * 8 + 2 * 8)


def test_estimate_grows_in_proportion_to_the_batch_and_the_model():
    one, two, three = (estimate(MIDDLE, batch_size) for batch_size in (1, 2, 3))
    assert two - one == three - two > 0
    for name in ("vocab_size", "context_length", "emb_dim", "num_layers"):
        assert estimate({**MIDDLE, name: 2 * MIDDLE[name]}, 1) > one, name


@pytest.mark.parametrize(
    ("changes", "optimizer", "batch_size"),
    [
        ({}, "adamw", 8),
        ({"vocab_size": 50257}, "adamw", 2),
        ({"num_layers": 8, "activation": "swiglu", "position": "rope", "norm": "rms_norm"}, "muon", 16),
        ({"drop_rate": 0.1, "context_length": 1024}, "adamw", 2),
    ],
    ids=["gpt2", "large-vocabulary", "modern", "dropout"],
)
def test_estimate_is_within_a_factor_of_two_of_the_measured_peak(changes, optimizer, batch_size):
    values = {**MIDDLE, **changes}
    measured, estimated = measure(values, optimizer, batch_size), estimate(values, batch_size)
    assert 0.5 < estimated / measured < 2, f"估计 {estimated / 1e6:.0f} MB，实际 {measured / 1e6:.0f} MB"


def test_keeping_freed_memory_is_harmless_where_there_is_no_mallopt(monkeypatch):
    class Library:
        def __init__(self, name):
            pass

    for library in (Library, lambda name: (_ for _ in ()).throw(OSError("没有"))):
        monkeypatch.setattr("utils.memory.ctypes.CDLL", library)
        keep_freed_memory()


def test_largest_batch_just_fits():
    cfg, count = tiny_config(drop_rate=0.1), 1000
    available = 3_000_000
    batch_size = largest_batch_size(cfg, count, "cpu", available)
    assert batch_size > 1
    assert estimate_training_bytes(cfg, count, batch_size, "cpu") <= available
    assert estimate_training_bytes(cfg, count, batch_size + 1, "cpu") > available
    assert largest_batch_size(cfg, count, "cpu", 10) == 0
