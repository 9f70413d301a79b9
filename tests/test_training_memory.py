"""utils/training_memory.py：内存不够时说出改哪些参数能行。"""

import pytest
import torch

from conftest import tiny_config
from model.classifier import Classifier
from model.lora import LoRAConfig
from model.trainable import set_trainable
from utils import training_memory
from utils.errors import RunError
from utils.memory import estimate_training_bytes
from utils.settings import TrainingSettings
from utils.training_memory import TrainingMemory

COUNT = tiny_config().num_parameters


def memory(batch_size: int = 8, accumulation_steps: int = 1) -> TrainingMemory:
    settings = TrainingSettings(batch_size=batch_size, accumulation_steps=accumulation_steps)
    return TrainingMemory(tiny_config(), settings, torch.device("cpu"), COUNT, COUNT)


@pytest.fixture
def set_available(monkeypatch):
    """假装机器上只有装得下 n 个样本的内存。"""

    def set_samples(samples: int) -> None:
        available = estimate_training_bytes(tiny_config(), COUNT, samples, "cpu")
        for module in ("utils.device", "utils.training_memory"):
            monkeypatch.setattr(f"{module}.available_memory", lambda device: available)

    return set_samples


def test_batch_that_does_not_fit_names_one_that_does(set_available):
    set_available(3)
    memory(3).check()
    with pytest.raises(RunError, match=r"预计需要 .* GB，可用 .*如 --batch_size 2 --accumulation_steps 8"):
        memory(8, 2).check()


def test_model_that_does_not_fit_at_all_says_so(set_available):
    set_available(0)
    with pytest.raises(RunError, match="减小 emb_dim / num_layers / --batch_size；现在一批一个样本也装不下"):
        memory(1).check()


def lack(plan: TrainingMemory) -> str:
    with pytest.raises(RunError) as error, plan.explain_lack():
        torch.empty(2**60, dtype=torch.int8)
    return str(error.value)


def test_lack_of_memory_while_training_suggests_half_the_batch():
    assert "改用 --batch_size 4 --accumulation_steps 2，参数的更新不变" in lack(memory(8))
    assert "改用 --batch_size 3 --accumulation_steps 6" in lack(memory(9, 2))
    assert "改用 --batch_size 1 --accumulation_steps 7" in lack(memory(7))  # 3 不能整除 7，更新就变了
    assert "再加 --resume 就能接着训练" in lack(memory(8))


def test_single_sample_that_does_not_fit_needs_a_smaller_model():
    assert "减小配置里的 context_length（现在是 16），或换更小的配置" in lack(memory(1))


def test_other_errors_pass_unchanged():
    with pytest.raises(RuntimeError, match="形状"), memory().explain_lack():
        raise RuntimeError("形状不符")
    assert training_memory.is_out_of_memory(MemoryError())


def test_fine_tuning_counts_what_is_really_trained_read_and_written():
    """样本比上下文短，分类的头只有几个分数，冻结的没有梯度和动量。"""
    cfg = tiny_config(context_length=64)
    classifier = Classifier(cfg, ["好", "坏"])
    set_trainable(classifier, "head", LoRAConfig())
    token_ids = torch.zeros(9, dtype=torch.long)
    datasets = [[(token_ids[:4], token_ids[:4])], [(token_ids, token_ids)]]
    plan = TrainingMemory.of_model(classifier, datasets, TrainingSettings(), torch.device("cpu"))
    assert (plan.cfg.context_length, plan.cfg.vocab_size) == (9, 2)
    assert plan.num_parameters == sum(parameter.numel() for parameter in classifier.parameters())
    assert plan.num_trained == 2 * 32 + 2 + 2 * 32
    whole = estimate_training_bytes(plan.cfg, plan.num_parameters, 1, "cpu")
    frozen = estimate_training_bytes(plan.cfg, plan.num_parameters, 1, "cpu", plan.num_trained)
    assert whole - frozen == 12 * (plan.num_parameters - plan.num_trained)
