"""utils/fsdp.py：只有形状的模型照同样的随机数填好，与整个建立的逐位相同。真的分片训练在 test_distributed.py。"""

import pytest
import torch

from conftest import tiny_config
from model.language_model import LanguageModel
from utils.fsdp import RecordedStart, Sharded
from utils.settings import TrainingSettings
from utils.training_memory import TrainingMemory

CONFIGS = [
    {},
    {"tie_weights": False, "bias": False},
    {"position": "rope", "norm": "rms_norm", "activation": "swiglu", "num_kv_heads": 2, "qk_norm": True},
]


@pytest.mark.parametrize("changes", CONFIGS, ids=str)
def test_model_filled_piece_by_piece_is_the_model_built_whole(changes):
    cfg = tiny_config(**changes)
    torch.manual_seed(11)
    whole = LanguageModel(cfg)
    state = torch.get_rng_state()
    torch.manual_seed(11)
    start = RecordedStart()
    with torch.device("meta"), start:
        model = LanguageModel(cfg)
    assert all(parameter.is_meta for parameter in model.parameters())  # 谁也没有占内存
    start.name_parameters(model)
    start.fill(model, torch.device("cpu"))
    if cfg.tie_weights:
        model.out_head.weight = model.tok_emb.weight  # 没有分片的 to_empty 会拆开共用的
    for (name, ours), expected in zip(model.named_parameters(), whole.parameters(), strict=True):
        assert torch.equal(ours, expected), name
    assert torch.equal(torch.get_rng_state(), state)  # 随机数也正好用到同一处
    token_ids = torch.randint(0, cfg.vocab_size, (2, 8))
    assert torch.equal(model.eval()(token_ids), whole.eval()(token_ids))


def test_accumulated_gradient_counts_whole(monkeypatch):
    monkeypatch.setattr("utils.processes.world_size", lambda: 4)
    cfg, size = tiny_config(), 10**9

    def memory(**settings) -> int:
        whole = TrainingMemory(cfg, TrainingSettings(batch_size=2, **settings), torch.device("cpu"), size, size)
        return Sharded(torch.float32).own_memory(whole).num_parameters

    assert memory(accumulation_steps=4) == memory()  # 四个进程各算一批，没有累积
    assert memory(accumulation_steps=8) - memory() == size - size // 4


def test_everyone_writes_with_the_scores_of_the_main_process(monkeypatch):
    model, token_ids = LanguageModel(tiny_config()).eval(), torch.tensor([[1, 2, 3]])
    monkeypatch.setattr("utils.fsdp.dist.broadcast", lambda tensor, src: tensor.fill_(7.0))
    with torch.no_grad():
        own = model.next_logits(token_ids)
        with Sharded(torch.float32).writing_together(model):
            assert (model.next_logits(token_ids) == 7).all()
        assert torch.equal(model.next_logits(token_ids), own)
