"""utils/generation.py：抽样规则、缓存、停止。"""

from itertools import islice

import pytest
import torch
from transformers import (
    LogitsProcessorList,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from conftest import tiny_config
from model.language_model import LanguageModel
from utils.generation import (
    Sampling,
    generate_text,
    generate_tokens,
    keep_top_k,
    keep_top_p,
    penalize_repetition,
    read_prompt,
    read_text_prompt,
    sample_next_token,
    stream_text,
)
from utils.text_utils import train_tokenizer

LOGITS = torch.tensor([[2.0, 1.0, 0.5, -1.0, -3.0], [0.0, 3.0, 3.0, 1.0, -2.0]])
GREEDY = Sampling()
NO_TOKENS = torch.zeros(2, 0, dtype=torch.long)


def build(**changes) -> LanguageModel:
    model = LanguageModel(tiny_config(**changes)).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model


def take(model, token_ids, count, sampling=GREEDY, seed=0, vocab_size=300):
    generator = torch.Generator().manual_seed(seed)
    tokens = generate_tokens(model, read_prompt(model, token_ids), vocab_size, sampling, generator)
    return torch.cat([next(tokens) for _ in range(count)], dim=1)


def test_greedy_takes_the_best_of_each_row():
    picked = sample_next_token(LOGITS, NO_TOKENS, Sampling(), torch.Generator())
    assert picked.tolist() == [[0], [1]]


def test_top_k_acts_on_each_row_and_equals_transformers():
    kept = keep_top_k(LOGITS, 2)
    assert torch.isfinite(kept).sum(dim=1).tolist() == [2, 2]
    assert torch.equal(kept, TopKLogitsWarper(2)(None, LOGITS.clone()))
    assert torch.equal(keep_top_k(LOGITS, 99), LOGITS)


@pytest.mark.parametrize("p", [0.05, 0.5, 0.75, 0.9, 0.999])
def test_top_p_equals_transformers(p):
    logits = torch.randn(6, 50)
    assert torch.equal(keep_top_p(logits, p), TopPLogitsWarper(p)(None, logits.clone()))


def test_top_p_one_keeps_everything():
    assert torch.equal(keep_top_p(LOGITS, 1.0), LOGITS)


def test_repetition_penalty_equals_transformers():
    seen = torch.tensor([[0, 3, 0], [1, 1, 4]])
    expected = RepetitionPenaltyLogitsProcessor(1.7)(seen, LOGITS.clone())
    torch.testing.assert_close(penalize_repetition(LOGITS, seen, 1.7), expected)


def test_sampled_frequencies_follow_the_processed_distribution():
    seen = torch.tensor([[0, 2]])
    processors = LogitsProcessorList(
        [
            RepetitionPenaltyLogitsProcessor(1.3),
            TemperatureLogitsWarper(0.8),
            TopKLogitsWarper(4),
            TopPLogitsWarper(0.95),
        ]
    )
    expected = processors(seen, LOGITS[:1].clone()).softmax(dim=-1)[0]
    sampling, generator = Sampling(0.8, 4, 0.95, 1.3), torch.Generator().manual_seed(0)
    rows, seen_rows = LOGITS[:1].expand(20_000, -1), seen.expand(20_000, -1)
    picked = sample_next_token(rows, seen_rows, sampling, generator).flatten()
    counts = torch.bincount(picked, minlength=5) / len(picked)
    torch.testing.assert_close(counts, expected, atol=0.015, rtol=0)


@pytest.mark.parametrize("temperature", [1e-3, 1e-30, 1e-50, 1e-300])
def test_tiny_temperature_does_not_overflow(temperature):
    picked = sample_next_token(LOGITS * 100, NO_TOKENS, Sampling(temperature=temperature), torch.Generator())
    assert picked[0].item() == 0 and picked[1].item() in (1, 2)


@pytest.mark.parametrize("penalty", [1e-60, 1e-310, 1e60, 1e308])
def test_extreme_penalty_does_not_overflow(penalty):
    sampling = Sampling(temperature=1.0, repetition_penalty=penalty)
    sample_next_token(LOGITS, torch.tensor([[0, 3], [1, 4]]), sampling, torch.Generator())


def test_sampling_uses_only_its_own_generator():
    model, prompt = build(), torch.tensor([[1, 2, 3]])
    before = torch.get_rng_state()
    first = take(model, prompt, 8, Sampling(1.0), seed=5)
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(10)
    assert torch.equal(first, take(model, prompt, 8, Sampling(1.0), seed=5))
    assert not torch.equal(first, take(model, prompt, 8, Sampling(1.0), seed=6))


@pytest.mark.parametrize("position", ["learned", "rope"])
def test_cached_equals_uncached_also_past_the_context(position):
    model = build(position=position)
    prompt = torch.randint(0, 300, (3, 5))
    generated = take(model, prompt, 40)  # 上下文只有 16
    expected = prompt
    for _ in range(40):
        logits = model(expected[:, -16:])[:, -1]
        expected = torch.cat((expected, logits.argmax(dim=-1, keepdim=True)), dim=1)
    assert torch.equal(generated, expected[:, 5:])


def test_prompt_longer_than_the_context_uses_its_end():
    model, prompt = build(), torch.randint(0, 300, (2, 50))
    assert torch.equal(take(model, prompt, 5), take(model, prompt[:, -16:], 5))


@pytest.mark.parametrize("length", [3, 12, 40])  # 16 个 token 的上下文：写不满、写满、开头就超过
def test_one_reading_of_the_prompt_serves_several_samples(length):
    model, token_ids = build(position="rope"), torch.randint(0, 300, (1, length))
    prompt, generator = read_prompt(model, token_ids), torch.Generator().manual_seed(3)
    for _ in range(3):
        seed = generator.get_state()
        shared = list(islice(generate_tokens(model, prompt, 300, Sampling(1.0), generator), 10))
        again = torch.Generator()
        again.set_state(seed)
        alone = list(islice(generate_tokens(model, read_prompt(model, token_ids), 300, Sampling(1.0), again), 10))
        assert torch.equal(torch.cat(shared), torch.cat(alone))


def test_padded_vocabulary_is_never_sampled():
    model = build(tie_weights=False)
    with torch.no_grad():
        model.out_head.weight[250:] *= 100
    tokens = take(model, torch.tensor([[1]]), 100, Sampling(1.5), vocab_size=250)
    assert tokens.max() < 250


@pytest.fixture(scope="module")
def tokenizer(corpus_text):
    return train_tokenizer(corpus_text, 300)


def test_stream_starts_with_the_prompt_and_joins_to_the_whole(tokenizer):
    model, prompt = build(), "话说孙悟空👍"
    read = read_text_prompt(model, tokenizer, prompt)
    pieces = list(stream_text(model, tokenizer, read, 60, Sampling(1.0), torch.Generator().manual_seed(1)))
    assert pieces[0] == prompt
    whole = generate_text(model, tokenizer, prompt, 60, Sampling(1.0), torch.Generator().manual_seed(1))
    assert "".join(pieces) == whole
    token_ids = torch.tensor([tokenizer.encode(prompt)])
    expected = take(model, token_ids, 60, Sampling(1.0), seed=1)[0].tolist()
    if tokenizer.end_of_text_id in expected:
        expected = expected[: expected.index(tokenizer.end_of_text_id)]
    assert whole == tokenizer.decode(token_ids[0].tolist() + expected)


def test_stops_at_end_of_text(tokenizer):
    model = build(tie_weights=False)
    with torch.no_grad():  # 让文本结束符总是最可能的
        model.final_norm.weight.zero_()
        model.final_norm.bias.fill_(1.0)
        model.out_head.weight.zero_()
        model.out_head.weight[tokenizer.end_of_text_id] = 1.0
    assert generate_text(model, tokenizer, "悟空", 50, Sampling(), torch.Generator()) == "悟空"
