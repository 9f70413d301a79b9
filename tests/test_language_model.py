"""model/language_model.py：与 transformers 的 GPT-2 逐数比较；变体、因果性、缓存。"""

import itertools
import math

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from conftest import ROOT, tiny_config
from model.config import ModelConfig, count_parameters
from model.language_model import LanguageModel
from utils.config_file import read_config

CHOICES = {
    "position": ("learned", "rope"),
    "norm": ("layer_norm", "rms_norm"),
    "activation": ("gelu", "gelu_exact", "swiglu", "relu2"),
    "qk_norm": (False, True),
    "num_kv_heads": (4, 2),
    "tie_weights": (True, False),
    "bias": (True, False),
}
ALL_COMBINATIONS = [dict(zip(CHOICES, values, strict=True)) for values in itertools.product(*CHOICES.values())]
ALL_COMBINATIONS += [{**ALL_COMBINATIONS[0], "out_proj": False, "norm_eps": 1e-12}]


def build(**changes) -> LanguageModel:
    """权重都不是特殊值的小模型：初始化为 0 的偏置也换成随机数，漏加了才看得出来。"""
    model = LanguageModel(tiny_config(**changes)).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return model


def copy_from_transformers(model: LanguageModel, reference: GPT2LMHeadModel) -> dict[str, torch.Tensor]:
    """{我们的名字: transformers 的张量}，形状与我们的一致；对权重和梯度都适用。"""
    source = reference.transformer

    names = {"tok_emb.weight": (source.wte.weight, None), "position.pos_emb.weight": (source.wpe.weight, None)}
    dim = model.cfg.emb_dim
    for index, block in enumerate(source.h):
        ours = f"trf_blocks.{index}."
        for offset, part in enumerate(("W_query", "W_key", "W_value")):
            columns = slice(offset * dim, (offset + 1) * dim)
            # GPT-2 的 Conv1D 把权重存成 (输入, 输出)，三个投影并排放
            names[f"{ours}attn.{part}.weight"] = (block.attn.c_attn.weight, lambda w, c=columns: w[:, c].T)
            names[f"{ours}attn.{part}.bias"] = (block.attn.c_attn.bias, lambda b, c=columns: b[c])
        for part, theirs in (
            ("attn.out_proj", block.attn.c_proj),
            ("ff.layers.0", block.mlp.c_fc),
            ("ff.layers.2", block.mlp.c_proj),
        ):
            names[f"{ours}{part}.weight"] = (theirs.weight, lambda w: w.T)
            names[f"{ours}{part}.bias"] = (theirs.bias, None)
        for part, theirs in (("norm1", block.ln_1), ("norm2", block.ln_2)):
            names[f"{ours}{part}.weight"] = (theirs.weight, None)
            names[f"{ours}{part}.bias"] = (theirs.bias, None)
    names["final_norm.weight"] = (source.ln_f.weight, None)
    names["final_norm.bias"] = (source.ln_f.bias, None)
    return {name: (parameter, pick or (lambda tensor: tensor)) for name, (parameter, pick) in names.items()}


def test_logits_and_gradients_equal_transformers():
    model = build()
    cfg = model.cfg
    reference = GPT2LMHeadModel(
        GPT2Config(
            vocab_size=cfg.vocab_size,
            n_positions=cfg.context_length,
            n_embd=cfg.emb_dim,
            n_layer=cfg.num_layers,
            n_head=cfg.num_heads,
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
        )
    ).eval()
    for parameter in reference.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    pairs = copy_from_transformers(model, reference)
    ours = dict(model.named_parameters())
    assert set(pairs) == set(ours)
    with torch.no_grad():
        for name, (parameter, pick) in pairs.items():
            ours[name].copy_(pick(parameter))

    token_ids = torch.randint(0, cfg.vocab_size, (3, cfg.context_length))
    logits, expected = model(token_ids), reference(token_ids).logits
    assert logits.shape == (3, cfg.context_length, cfg.vocab_size)
    torch.testing.assert_close(logits, expected, atol=1e-4, rtol=0)

    targets = torch.randint(0, cfg.vocab_size, (3 * cfg.context_length,))
    for output in (logits, expected):
        torch.nn.functional.cross_entropy(output.flatten(0, 1), targets).backward()
    for name, (parameter, pick) in pairs.items():
        torch.testing.assert_close(ours[name].grad, pick(parameter.grad), atol=1e-4, rtol=1e-3, msg=name)


@pytest.mark.parametrize(
    ("size", "expected"),
    [("124M", 124_439_808), ("355M", 354_823_168), ("774M", 774_030_080), ("1558M", 1_557_611_200)],
)
def test_shipped_gpt2_configs_have_the_published_sizes(size, expected):
    cfg = read_config(ROOT / f"configs/gpt2_config_{size}.json", ModelConfig.from_dict).model
    with torch.device("meta"):
        model = LanguageModel(cfg)
    assert sum(parameter.numel() for parameter in model.parameters()) == expected
    assert sum(count_parameters(cfg).values()) == expected


@pytest.mark.parametrize("changes", ALL_COMBINATIONS, ids=lambda changes: "-".join(map(str, changes.values())))
def test_every_variant_is_causal_cached_and_counted(changes):
    model = build(**changes, qkv_bias=changes["bias"])
    token_ids = torch.randint(0, 300, (2, 12))
    logits = model(token_ids)
    assert logits.shape == (2, 12, 300)

    changed = token_ids.clone()
    changed[:, 8] = (changed[:, 8] + 1) % 300
    future = model(changed)
    assert torch.equal(future[:, :8], logits[:, :8])  # 将来的 token 改变不了过去的分数
    assert not torch.allclose(future[:, 8:], logits[:, 8:])

    cache, outputs = model.new_cache(2), []
    for part in token_ids.split([5, 1, 1, 4, 1], dim=1):
        outputs.append(model(part, cache))
    torch.testing.assert_close(torch.cat(outputs, dim=1), logits, atol=1e-4, rtol=1e-4)

    parameters = sum(parameter.numel() for parameter in model.parameters())
    assert parameters == sum(count_parameters(model.cfg).values())
    logits.sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_more_tokens_than_the_context_are_refused():
    model = build()
    with pytest.raises(ValueError, match="超过上下文长度 16"):
        model(torch.zeros(1, 17, dtype=torch.long))
    cache = model.new_cache()
    model(torch.zeros(1, 16, dtype=torch.long), cache)
    with pytest.raises(ValueError, match="超过上下文长度 16"):
        model(torch.zeros(1, 1, dtype=torch.long), cache)


def test_position_matters_with_both_kinds():
    for position in ("learned", "rope"):
        model = build(position=position)
        forward, backward = torch.tensor([[5, 6, 7]]), torch.tensor([[6, 5, 7]])
        assert not torch.allclose(model(forward)[:, -1], model(backward)[:, -1])


def test_next_logits_is_the_last_position():
    model, token_ids = build(), torch.randint(0, 300, (2, 6))
    torch.testing.assert_close(model.next_logits(token_ids), model(token_ids)[:, -1])


def test_initial_loss_is_a_uniform_guess():
    model = LanguageModel(tiny_config()).eval()
    token_ids = torch.randint(0, 300, (4, 16))
    loss = torch.nn.functional.cross_entropy(model(token_ids).flatten(0, 1), token_ids.flatten().roll(1))
    assert abs(loss.item() - math.log(300)) < 0.1


def test_initialisation_follows_gpt2():
    model = LanguageModel(tiny_config(emb_dim=128, num_layers=8, vocab_size=2000))
    assert abs(model.tok_emb.weight.std().item() - 0.02) < 0.001
    block = model.trf_blocks[0]
    assert abs(block.attn.W_query.weight.std().item() - 0.02) < 0.001
    for projection in (block.attn.out_proj, block.ff.out_proj):
        assert abs(projection.weight.std().item() - 0.02 / math.sqrt(16)) < 0.0005
        assert projection.bias.abs().max() == 0


def test_tied_weights_are_one_tensor_and_untied_two():
    assert (model := LanguageModel(tiny_config())).out_head.weight is model.tok_emb.weight
    assert (model := LanguageModel(tiny_config(tie_weights=False))).out_head.weight is not model.tok_emb.weight
