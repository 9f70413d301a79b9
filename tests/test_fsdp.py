"""utils/fsdp.py：谁建立模型，要多少内存。真的分片训练在 test_distributed.py。"""

import torch

from conftest import tiny_config
from model.language_model import LanguageModel
from utils.fsdp import Sharded
from utils.settings import TrainingSettings
from utils.training_memory import TrainingMemory


def test_only_the_main_process_builds_the_model_with_the_same_random_numbers(monkeypatch):
    def create(rank: int) -> tuple[Sharded, LanguageModel]:
        monkeypatch.setattr("utils.processes.rank", lambda: rank)
        torch.manual_seed(11)
        parallel = Sharded(torch.float32)
        return parallel, parallel.create(lambda: LanguageModel(tiny_config()), torch.device("cpu"))

    torch.manual_seed(11)
    expected, state = LanguageModel(tiny_config()), torch.get_rng_state()
    main, model = create(0)
    assert torch.equal(torch.get_rng_state(), state)
    ours = main._whole.state_dict()
    assert all(torch.equal(ours[name], value) for name, value in expected.named_parameters())
    other, empty = create(1)
    assert other._whole is None and all(p.is_meta for m in (model, empty) for p in m.parameters())


def test_accumulated_gradient_counts_whole(monkeypatch):
    monkeypatch.setattr("utils.processes.world_size", lambda: 4)
    cfg, size = tiny_config(), 10**9

    def memory(rank: int = 1, **settings) -> int:
        monkeypatch.setattr("utils.processes.rank", lambda: rank)
        whole = TrainingMemory(cfg, TrainingSettings(batch_size=2, **settings), torch.device("cpu"), size, size)
        return Sharded(torch.float32).own_memory(whole).num_parameters

    assert memory(accumulation_steps=4) == memory()  # 四个进程各算一批，没有累积
    assert memory(accumulation_steps=8) - memory() == size - size // 4
    assert memory(rank=0) - memory(rank=1) == size  # 进程 0 开头和保存时有整个的权重


def test_everyone_writes_with_the_scores_of_the_main_process(monkeypatch):
    model, token_ids = LanguageModel(tiny_config()).eval(), torch.tensor([[1, 2, 3]])
    monkeypatch.setattr("utils.fsdp.dist.broadcast", lambda tensor, src: tensor.fill_(7.0))
    with torch.no_grad():
        own = model.next_logits(token_ids)
        with Sharded(torch.float32).writing_together(model):
            assert (model.next_logits(token_ids) == 7).all()
        assert torch.equal(model.next_logits(token_ids), own)
