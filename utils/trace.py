"""跟踪：用钩子记下一次真正的前向计算里的每个中间结果，模型的代码一行也不重写。"""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice

import torch
from torch import Tensor, nn

from utils.generation import Sampling, adjust_logits, generate_tokens, read_prompt
from utils.text_utils import Tokenizer

AttentionMap = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]  # model/attention.py 的 attention_map


@dataclass(frozen=True)
class BlockTrace:
    """一个 Transformer 块里，按计算的先后。残差流依次是 entered、middle、left。"""

    entered: Tensor  # (seq, emb_dim)
    norm1: Tensor  # (seq, emb_dim)，注意力的输入
    queries: Tensor  # (num_heads, seq, head_dim)，已经过 QK-norm 和 RoPE
    keys: Tensor  # 同上；几个头共用的键重复写出
    values: Tensor  # 同上
    scores: Tensor  # (num_heads, seq, seq)，遮住将来之前
    weights: Tensor  # (num_heads, seq, seq)，每行的和是 1
    attention: Tensor  # (seq, emb_dim)，注意力加进残差流的
    middle: Tensor  # (seq, emb_dim)
    norm2: Tensor  # (seq, emb_dim)，前馈网络的输入
    feed_forward: Tensor  # (seq, emb_dim)，前馈网络加进残差流的
    left: Tensor  # (seq, emb_dim)


@dataclass(frozen=True)
class Trace:
    """一次前向计算，去掉了 batch 轴。"""

    token_embeddings: Tensor  # (seq, emb_dim)
    embeddings: Tensor  # (seq, emb_dim)，加上位置之后
    blocks: list[BlockTrace]
    final_norm: Tensor  # (seq, emb_dim)
    logits: Tensor  # (seq, vocab_size)

    @property
    def stream(self) -> list[Tensor]:
        """残差流：嵌入之后和每个块之后，共 num_layers + 1 个 (seq, emb_dim)。"""
        return [self.embeddings, *(block.left for block in self.blocks)]


@torch.inference_mode()
def trace_forward(model: nn.Module, token_ids: Tensor, attention_map: AttentionMap) -> Trace:
    """跟踪 model(token_ids)，token_ids (1, seq)。

    融合内核不交出权重：查询和键由模型自己的 project 给出，分数和权重由 attention_map 照定义算。
    """
    inputs: dict[str, tuple] = {}
    outputs: dict[str, Tensor] = {}
    with _recording(model, inputs, outputs):
        logits = model(token_ids)

    def trace_block(name: str, block: nn.Module) -> BlockTrace:
        queries, keys, values = block.attn.project(*inputs[f"{name}.attn"][:2])
        share = queries.shape[1] // keys.shape[1]  # 相邻的 share 个查询头共用一个键头
        keys, values = (part.repeat_interleave(share, dim=1) for part in (keys, values))
        parts = (
            inputs[name][0],
            outputs[f"{name}.norm1"],
            *(queries, keys, values, *attention_map(queries, keys)),
            outputs[f"{name}.attn"],
            inputs[f"{name}.norm2"][0],
            outputs[f"{name}.norm2"],
            outputs[f"{name}.ff"],
            outputs[name],
        )
        return BlockTrace(*(part[0] for part in parts))

    blocks = [trace_block(f"trf_blocks.{layer}", block) for layer, block in enumerate(model.trf_blocks)]
    return Trace(outputs["tok_emb"][0], blocks[0].entered, blocks, outputs["final_norm"][0], logits[0])


@contextlib.contextmanager
def _recording(model: nn.Module, inputs: dict[str, tuple], outputs: dict[str, Tensor]) -> Iterator[None]:
    """其间每个模块的位置参数和结果按名字记下；离开时取下钩子，模型恢复原样。"""

    def hook(name: str) -> Callable:
        def record(module: nn.Module, args: tuple, output: Tensor) -> None:
            inputs[name], outputs[name] = args, output

        return record

    handles = [module.register_forward_hook(hook(name)) for name, module in model.named_modules()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@torch.inference_mode()
def logit_lens(model: nn.Module, stream: Tensor, vocab_size: int) -> Tensor:
    """残差流 (seq, emb_dim) 若到此为止，会回答什么：(seq, vocab_size) 的分数，用的是模型自己的最后两步。"""
    return model.out_head(model.final_norm(stream))[:, :vocab_size]


@dataclass(frozen=True)
class Step:
    """生成的一步。"""

    token_id: int
    logits: Tensor  # (vocab_size,)，模型给的分数
    probabilities: Tensor  # (vocab_size,)，抽签用的；温度为 0 时最高分的是 1
    num_tokens: int  # 抽之前已有的 token 数


def trace_generation(
    model: nn.Module,
    tokenizer: Tokenizer,
    token_ids: Tensor,
    max_new_tokens: int,
    sampling: Sampling,
    generator: torch.Generator,
) -> list[Step]:
    """跟踪 generate_tokens 从 token_ids (1, seq) 的续写；遇到文本结束符就停，那一步也在内。"""
    steps, outputs = [], {}
    with _recording(model.out_head, {}, outputs):
        prompt = read_prompt(model, token_ids)
        tokens = generate_tokens(model, prompt, tokenizer.vocab_size, sampling, generator)
        for next_ids in islice(tokens, max_new_tokens):
            logits = outputs[""][:, : tokenizer.vocab_size]  # 输出层最近一次的结果，抽签就是从它抽的
            probabilities = token_probabilities(logits, token_ids, sampling)
            steps.append(Step(next_ids.item(), logits[0], probabilities[0], token_ids.shape[1]))
            if next_ids.item() == tokenizer.end_of_text_id:
                break
            token_ids = torch.cat((token_ids, next_ids), dim=1)
    return steps


def token_probabilities(logits: Tensor, seen: Tensor, sampling: Sampling) -> Tensor:
    """抽签所用的概率，(batch, vocab_size) -> 同形状；温度为 0 时最高分的是 1。"""
    adjusted = adjust_logits(logits, seen, sampling)
    if sampling.temperature == 0:
        return torch.zeros_like(adjusted).scatter(1, adjusted.argmax(dim=-1, keepdim=True), 1.0)
    return adjusted.softmax(dim=-1)
