"""生成：由分数挑出下一个 token，接上，再猜下一个。道理见 docs/采样.md。"""

import argparse
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn

from utils.console import hint
from utils.text_utils import StreamDecoder, Tokenizer, text_to_token_ids


@dataclass(frozen=True)
class Sampling:
    """怎样从分数里挑：默认每次取分数最高的。"""

    temperature: float = 0.0  # 0 取最高分；越大分布越平
    top_k: int | None = None  # 只在分数最高的 k 个里抽
    top_p: float | None = None  # 只在累计概率刚好达到 p 的最可能的那些里抽
    repetition_penalty: float = 1.0  # 大于 1 时压低出现过的 token


def penalize_repetition(logits: Tensor, seen: Tensor, penalty: float) -> Tensor:
    """出现过的 token：正分除以 penalty，负分乘以 penalty (Keskar et al. 2019, 4.1 节)。

    logits (batch, vocab_size), seen (batch, seq) -> (batch, vocab_size)
    """
    scores = logits.gather(1, seen)
    scores = torch.where(scores > 0, scores / penalty, scores * penalty)
    return logits.scatter(1, seen, scores)


def keep_top_k(logits: Tensor, k: int) -> Tensor:
    """低于第 k 名的分数变成 -∞，与它同分的都留下 (Fan et al. 2018)。(batch, vocab_size) -> 同形状"""
    threshold = logits.topk(min(k, logits.shape[-1])).values[:, [-1]]
    return logits.masked_fill(logits < threshold, -torch.inf)


def keep_top_p(logits: Tensor, p: float) -> Tensor:
    """从最可能的开始累计，达到 p 之后的变成 -∞；最可能的总会留下 (Holtzman et al. 2020, 3.1 节)。

    (batch, vocab_size) -> 同形状
    """
    ordered, indices = logits.sort(descending=True)
    probabilities = ordered.softmax(dim=-1)
    before = probabilities.cumsum(dim=-1) - probabilities  # 排在自己前面的概率之和
    return logits.scatter(1, indices, ordered.masked_fill(before >= p, -torch.inf))


def adjust_logits(logits: Tensor, seen: Tensor, sampling: Sampling) -> Tensor:
    """依次是重复惩罚、温度、top-k、top-p；温度为 0 时只有重复惩罚。

    logits (batch, vocab_size), 已有的 token (batch, seq) -> (batch, vocab_size)，float64
    """
    logits = logits.double()  # 温度和惩罚再极端也不会变成 0 / 0
    if sampling.repetition_penalty != 1.0:
        logits = penalize_repetition(logits, seen, sampling.repetition_penalty).nan_to_num()
    if sampling.temperature == 0:
        return logits
    # 先减去最大值，温度极小时也不会溢出；分布不变
    logits = (logits - logits.max(dim=-1, keepdim=True).values) / sampling.temperature
    if sampling.top_k is not None:
        logits = keep_top_k(logits, sampling.top_k)
    if sampling.top_p is not None:
        logits = keep_top_p(logits, sampling.top_p)
    return logits


def sample_next_token(logits: Tensor, seen: Tensor, sampling: Sampling, generator: torch.Generator) -> Tensor:
    """logits (batch, vocab_size), 已有的 token (batch, seq) -> (batch, 1)"""
    logits = adjust_logits(logits, seen, sampling)
    if sampling.temperature == 0:
        return logits.argmax(dim=-1, keepdim=True)
    # 在 CPU 上抽签：同一台机器上，同一个种子不论模型在哪个设备都抽到同样的结果
    return torch.multinomial(logits.softmax(dim=-1).cpu(), 1, generator=generator).to(seen.device)


def sampling_of(args: argparse.Namespace, vocab_size: int) -> Sampling:
    """命令行的参数说的怎样抽样；不起作用的、超过词表的说一声。"""
    top_k, top_p = args.top_k, getattr(args, "top_p", None)
    if args.temperature == 0 and (top_k or top_p):
        hint("提示：--temperature 是 0，每次取最可能的，--top_k 和 --top_p 不起作用")
    elif top_k and top_k > vocab_size:
        hint(f"提示：--top_k 已降为词表大小 {vocab_size}")
        top_k = vocab_size
    return Sampling(args.temperature, top_k, top_p, getattr(args, "repetition_penalty", 1.0))


@dataclass(frozen=True)
class Prompt:
    """读过的开头：可以从这里反复续写，不必重读。"""

    token_ids: Tensor  # (batch, seq)
    cache: Any  # model.new_cache() 的结果，开头的键和值在最前面
    logits: Tensor  # (batch, vocab_size)，开头之后第一个 token 的分数


@torch.inference_mode()
def read_prompt(model: nn.Module, token_ids: Tensor) -> Prompt:
    """读一遍开头 (batch, seq)，至少一个 token；超过上下文长度时只读最后 context_length 个。"""
    cache = model.new_cache(token_ids.shape[0])
    logits = model.next_logits(token_ids[:, -model.cfg.context_length :], cache)
    return Prompt(token_ids, cache, logits)


@torch.inference_mode()
def _next_logits(model: nn.Module, token_ids: Tensor, cache: Any) -> Tensor:
    """接着缓存算下一个 token 的分数。上下文满了就只看最后 context_length 个 token，位置都变了，缓存用不上。"""
    if token_ids.shape[1] > model.cfg.context_length:
        return model.next_logits(token_ids[:, -model.cfg.context_length :])
    return model.next_logits(token_ids[:, cache.length :], cache)


def generate_tokens(
    model: nn.Module, prompt: Prompt, vocab_size: int, sampling: Sampling, generator: torch.Generator
) -> Iterator[Tensor]:
    """无尽地逐个产生 token，每次 (batch, 1)；只抽前 vocab_size 个 id，词表的补齐部分抽不到。"""
    token_ids, cache, logits = prompt.token_ids, prompt.cache, prompt.logits
    cache.length = min(token_ids.shape[1], model.cfg.context_length)  # 上一次续写留在后面的作废
    while True:
        next_ids = sample_next_token(logits[:, :vocab_size], token_ids, sampling, generator)
        yield next_ids
        token_ids = torch.cat((token_ids, next_ids), dim=1)
        logits = _next_logits(model, token_ids, cache)


def stream_text(
    model: nn.Module,
    tokenizer: Tokenizer,
    prompt: Prompt,
    max_new_tokens: int,
    sampling: Sampling,
    generator: torch.Generator,
) -> Iterator[str]:
    """先交出开头，再随生成一点一点交出文字；遇到文本结束符就停。各段相连等于整体解码。"""
    decoder = StreamDecoder(tokenizer)
    yield "".join(decoder.push(token_id) for token_id in prompt.token_ids[0].tolist())
    tokens = generate_tokens(model, prompt, tokenizer.vocab_size, sampling, generator)
    for next_ids in islice(tokens, max_new_tokens):
        if next_ids.item() == tokenizer.end_of_text_id:
            break
        yield decoder.push(next_ids.item())
    yield decoder.finish()


def generate_text(
    model: nn.Module,
    tokenizer: Tokenizer,
    text: str,
    max_new_tokens: int,
    sampling: Sampling,
    generator: torch.Generator,
) -> str:
    """从 text 续写，返回 stream_text 的全部文字。"""
    prompt = read_text_prompt(model, tokenizer, text)
    return "".join(stream_text(model, tokenizer, prompt, max_new_tokens, sampling, generator))


def read_text_prompt(model: nn.Module, tokenizer: Tokenizer, text: str) -> Prompt:
    """读一段文字作开头。"""
    return read_prompt(model, text_to_token_ids(text, tokenizer).to(next(model.parameters()).device))
