"""model/attention.py：与定义、与 torch.nn 逐数比较。"""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from conftest import tiny_config
from model.attention import (
    BLOCK,
    MultiHeadAttention,
    QKNorm,
    attention_by_definition,
    attention_in_blocks,
    causal_mask,
)
from model.kv_cache import KVCache
from model.position import LearnedPosition, RotaryPosition


def attention_pair():
    """同样权重的 MultiHeadAttention 和 nn.MultiheadAttention。"""
    cfg = tiny_config()
    ours = MultiHeadAttention(cfg, layer=0)
    theirs = nn.MultiheadAttention(cfg.emb_dim, cfg.num_heads, batch_first=True)
    with torch.no_grad():
        parts = (ours.W_query, ours.W_key, ours.W_value)
        theirs.in_proj_weight.copy_(torch.cat([part.weight for part in parts]))
        theirs.in_proj_bias.copy_(torch.cat([part.bias for part in parts]))
        theirs.out_proj.load_state_dict(ours.out_proj.state_dict())
    return cfg, ours, theirs


def test_equals_torch_multihead_attention_in_outputs_and_gradients():
    cfg, ours, theirs = attention_pair()
    x = torch.randn(2, 7, cfg.emb_dim, requires_grad=True)
    y = x.detach().clone().requires_grad_()
    mask = ~causal_mask(7, 7)  # nn.MultiheadAttention 的 True 表示遮住
    out, (expected, _) = ours(x, LearnedPosition(cfg)), theirs(y, y, y, attn_mask=mask, need_weights=False)
    torch.testing.assert_close(out, expected, atol=1e-5, rtol=1e-5)
    weights = torch.randn_like(out)
    (out * weights).sum().backward()
    (expected * weights).sum().backward()
    torch.testing.assert_close(x.grad, y.grad, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(ours.out_proj.weight.grad, theirs.out_proj.weight.grad, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(ours.W_key.weight.grad, theirs.in_proj_weight.grad[32:64], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(("num_queries", "num_keys"), [(5, 5), (1, 5), (3, 5)])
def test_definition_equals_fused_kernel(num_queries, num_keys):
    queries = torch.randn(2, 4, num_queries, 8)
    keys, values = torch.randn(2, 2, 4, num_keys, 8)
    mask = causal_mask(num_queries, num_keys)
    expected = F.scaled_dot_product_attention(queries, keys, values, attn_mask=mask)
    torch.testing.assert_close(attention_by_definition(queries, keys, values), expected)


@pytest.mark.parametrize("seq", [1, BLOCK - 1, BLOCK, BLOCK + 1, 3 * BLOCK])
def test_blocks_equal_the_definition_in_outputs_and_gradients(seq):
    queries, keys, values = (part.requires_grad_() for part in torch.randn(3, 1, 2, seq, 8))
    results = []
    for attend in (attention_in_blocks, attention_by_definition):
        out = attend(queries, keys, values)
        out.square().sum().backward()
        results.append((out.detach(), *(part.grad.clone() for part in (queries, keys, values))))
        queries.grad = keys.grad = values.grad = None
    for ours, expected in zip(*results, strict=True):
        torch.testing.assert_close(ours, expected, atol=1e-5, rtol=1e-4)


def test_dropout_in_blocks_keeps_the_mean_and_changes_with_every_call():
    queries, keys, values = torch.randn(3, 1, 2, BLOCK + 40, 8)
    expected = attention_by_definition(queries, keys, values)
    samples = torch.stack([attention_in_blocks(queries, keys, values, 0.2) for _ in range(400)])
    assert not torch.equal(samples[0], samples[1])
    error = samples.std(dim=0) / 20 + 1e-6  # 400 次的均值的标准误
    assert ((samples.mean(dim=0) - expected) / error).abs().max() < 6


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_long_training_sequences_equal_the_fused_kernel(dtype):
    """训练时 bfloat16 走分块的定义，评估时 float32 走融合内核，两者相符。"""
    cfg = tiny_config(context_length=2 * BLOCK + 7)
    attention, x = MultiHeadAttention(cfg, layer=0).train(), torch.randn(2, 2 * BLOCK + 7, cfg.emb_dim)
    expected = attention(x, LearnedPosition(cfg))
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype == torch.bfloat16):
        result = attention(x, LearnedPosition(cfg))
    torch.testing.assert_close(result.float(), expected, atol=1e-6 if dtype == torch.float32 else 2e-2, rtol=0)


def test_bfloat16_cache_stays_close_to_float32():
    cfg = tiny_config()
    attention, x = MultiHeadAttention(cfg, layer=0), torch.randn(1, 9, cfg.emb_dim)
    with torch.autocast("cpu", dtype=torch.bfloat16):  # 像 BFloat16Linear 那样，输出层自己转换精度
        cache, outputs = KVCache(cfg, batch_size=1, dtype=torch.bfloat16), []
        for part in x.split([4, 1, 3, 1], dim=1):
            outputs.append(attention(part, LearnedPosition(cfg), cache))
            cache.length += part.shape[1]
    torch.testing.assert_close(torch.cat(outputs, dim=1).float(), attention(x, LearnedPosition(cfg)), atol=2e-2, rtol=0)


@pytest.mark.parametrize("num_kv_heads", [1, 2, 4])
def test_module_equals_definition_with_shared_key_heads(num_kv_heads):
    cfg = tiny_config(num_kv_heads=num_kv_heads)
    attention = MultiHeadAttention(cfg, layer=0)
    x = torch.randn(3, 6, cfg.emb_dim)
    queries, keys, values = (
        attention._split_heads(part(x)) for part in (attention.W_query, attention.W_key, attention.W_value)
    )
    share = cfg.num_heads // num_kv_heads  # 相邻的 share 个查询头共用一个键头
    keys, values = keys.repeat_interleave(share, dim=1), values.repeat_interleave(share, dim=1)
    expected = attention.out_proj(attention_by_definition(queries, keys, values).transpose(1, 2).flatten(2))
    torch.testing.assert_close(attention(x, LearnedPosition(cfg)), expected, atol=1e-6, rtol=1e-5)


def test_causal_mask_aligns_last_query_with_last_key():
    assert causal_mask(2, 4).int().tolist() == [[1, 1, 1, 0], [1, 1, 1, 1]]


@pytest.mark.parametrize("position_class", [LearnedPosition, RotaryPosition])
def test_cached_chunks_equal_one_pass(position_class):
    cfg = tiny_config(qk_norm=True)
    attention, position = MultiHeadAttention(cfg, layer=1), position_class(cfg)
    x = torch.randn(2, 9, cfg.emb_dim)
    cache, outputs = KVCache(cfg, batch_size=2), []
    for part in x.split([4, 1, 3, 1], dim=1):
        outputs.append(attention(part, position, cache))
        cache.length += part.shape[1]
    torch.testing.assert_close(torch.cat(outputs, dim=1), attention(x, position), atol=1e-6, rtol=1e-5)


def test_head_norm_makes_mean_square_one():
    normed = QKNorm(8)(torch.randn(2, 4, 5, 8) * 100)
    torch.testing.assert_close(normed.square().mean(dim=-1), torch.ones(2, 4, 5), atol=1e-4, rtol=1e-4)


def test_bfloat16_on_the_cpu_equals_float32_to_its_precision():
    cfg = tiny_config(qk_norm=True)
    attention, position = MultiHeadAttention(cfg, layer=0), RotaryPosition(cfg)
    x = torch.randn(2, 12, cfg.emb_dim)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        low = attention(x, position)
    assert low.dtype == torch.bfloat16
    torch.testing.assert_close(low.float(), attention(x, position), atol=0.02, rtol=0.02)


def test_attention_dropout_keeps_the_mean():
    cfg = tiny_config(drop_rate=0.3)
    attention, x = MultiHeadAttention(cfg, layer=0), torch.randn(1, 6, cfg.emb_dim)
    position = LearnedPosition(cfg)
    average = torch.stack([attention(x, position) for _ in range(3000)]).mean(dim=0)
    torch.testing.assert_close(average, attention.eval()(x, position), atol=0.03, rtol=0)


def test_dropout_acts_only_in_training():
    cfg = tiny_config(drop_rate=0.5)
    attention, x = MultiHeadAttention(cfg, layer=0), torch.randn(1, 8, cfg.emb_dim)
    position = LearnedPosition(cfg)
    attention.eval()
    assert torch.equal(attention(x, position), attention(x, position))
    attention.train()
    assert not torch.equal(attention(x, position), attention(x, position))
