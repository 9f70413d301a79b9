"""utils/sharded.py：只有形状的模型照同样的随机数填好，与整个建立的逐位相同。分片训练在 test_distributed.py。"""

import pytest
import torch

from conftest import tiny_config
from model.language_model import LanguageModel
from utils.sharded import RecordedStart

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
