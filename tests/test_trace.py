"""utils/trace.py：跟踪到的数与 transformers 的 GPT-2、与残差和注意力的定义逐个比较。"""

import pytest
import torch
from gpt2_reference import build_ours, build_reference, save_bin

from conftest import tiny_config
from model.attention import attention_map
from model.language_model import LanguageModel
from utils.generation import Sampling, generate_tokens, read_prompt
from utils.hugging_face import read_weights_file
from utils.text_utils import train_tokenizer
from utils.trace import logit_lens, token_probabilities, trace_forward, trace_generation

VARIANTS = [
    {},
    {"position": "rope", "norm": "rms_norm", "activation": "swiglu", "qk_norm": True, "num_kv_heads": 2},
    {"num_kv_heads": 1, "activation": "relu2", "bias": False, "qkv_bias": False},
    {"tie_weights": False, "norm": "rms_norm", "drop_rate": 0.3},
    {"num_heads": 1, "num_layers": 1, "position": "rope", "hidden_dim": 48},
]


def build(**changes) -> LanguageModel:
    """权重都不是特殊值。"""
    model = LanguageModel(tiny_config(**changes))
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return model.eval()


def assert_close(result, expected):
    torch.testing.assert_close(result, expected, atol=1e-5, rtol=1e-5)


def test_every_number_equals_transformers(tmp_path):
    reference = build_reference()
    model = build_ours(read_weights_file(save_bin(reference, tmp_path, has_prefix=True)))
    token_ids = torch.randint(0, 300, (1, 24))
    trace = trace_forward(model, token_ids, attention_map)
    reference.set_attn_implementation("eager")
    with torch.inference_mode():
        expected = reference(token_ids, output_attentions=True, output_hidden_states=True)
    assert_close(trace.logits, expected.logits[0])
    assert_close(trace.token_embeddings, reference.transformer.wte(token_ids)[0].detach())
    assert len(trace.blocks) == len(expected.attentions) == 2
    for block, weights in zip(trace.blocks, expected.attentions, strict=True):
        assert_close(block.weights, weights[0])
    *stream, last = expected.hidden_states  # 最后一个已经过归一化
    for ours, theirs in zip(trace.stream, stream, strict=False):
        assert_close(ours, theirs[0])
    assert_close(trace.final_norm, last[0])


@pytest.mark.parametrize("changes", VARIANTS, ids=str)
def test_every_variant_adds_up(changes):
    model = build(**changes)
    token_ids = torch.randint(0, 300, (1, 9))
    trace = trace_forward(model, token_ids, attention_map)
    with torch.inference_mode():
        assert torch.equal(trace.logits, model(token_ids)[0])  # 跟踪不改变结果
        stream = trace.embeddings
        for block, module in zip(trace.blocks, model.trf_blocks, strict=True):
            assert torch.equal(block.entered, stream)
            assert_close(block.norm1, module.norm1(block.entered))
            heads = block.weights @ block.values
            assert_close(block.attention, module.attn.out_proj(heads.transpose(0, 1).flatten(1)))
            assert_close(block.middle, block.entered + block.attention)
            assert_close(block.norm2, module.norm2(block.middle))
            assert_close(block.left, block.middle + block.feed_forward)
            assert_close(block.weights.sum(dim=-1), torch.ones(model.cfg.num_heads, 9))
            assert not block.weights.triu(1).any()
            assert_close(block.scores, block.queries @ block.keys.mT / model.cfg.head_dim**0.5)
            stream = block.left
        assert_close(logit_lens(model, trace.stream[-1], 300), trace.logits)


def test_no_hook_stays_behind():
    model = build()
    trace_forward(model, torch.tensor([[1, 2, 3]]), attention_map)
    trace_generation(model, train_tokenizer("悟空", 300), torch.tensor([[1]]), 3, Sampling(), torch.Generator())
    assert not any(module._forward_hooks for module in model.modules())


@pytest.mark.parametrize(
    "sampling", [Sampling(), Sampling(1.5, 20, 0.9, 1.3), Sampling(0.7), Sampling(1.0, repetition_penalty=0.8)], ids=str
)
def test_steps_are_those_of_generation_even_past_the_context(corpus_text, sampling):
    tokenizer = train_tokenizer(corpus_text, 290)
    model, prompt, num_steps = build(), torch.tensor([[5, 6, 7]]), 20  # 上下文只有 16
    tokens = generate_tokens(
        model, read_prompt(model, prompt), tokenizer.vocab_size, sampling, torch.Generator().manual_seed(3)
    )
    expected = [next(tokens).item() for _ in range(num_steps)]
    if tokenizer.end_of_text_id in expected:
        expected = expected[: expected.index(tokenizer.end_of_text_id) + 1]
    steps = trace_generation(model, tokenizer, prompt, num_steps, sampling, torch.Generator().manual_seed(3))
    assert [step.token_id for step in steps] == expected

    seen = prompt
    for step in steps:
        assert step.num_tokens == seen.shape[1]
        with torch.inference_mode():
            logits = model.next_logits(seen[:, -16:])[:, : tokenizer.vocab_size]
        torch.testing.assert_close(step.logits, logits[0], atol=1e-4, rtol=1e-4)
        assert_close(step.probabilities, token_probabilities(step.logits[None], seen, sampling)[0])
        assert step.probabilities[step.token_id] > 0 and abs(step.probabilities.sum() - 1) < 1e-9
        seen = torch.cat((seen, torch.tensor([[step.token_id]])), dim=1)


def test_generation_stops_at_the_end_of_text():
    tokenizer, model = train_tokenizer("悟空", 300), build()
    with torch.no_grad():
        model.final_norm.weight.zero_()
        model.final_norm.bias.copy_(model.tok_emb.weight[tokenizer.end_of_text_id] * 100)
    steps = trace_generation(model, tokenizer, torch.tensor([[1, 2]]), 5, Sampling(), torch.Generator())
    assert [step.token_id for step in steps] == [tokenizer.end_of_text_id]
