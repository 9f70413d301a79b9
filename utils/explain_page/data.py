"""网页里的数字：全部来自 utils/trace.py 的跟踪，按页面的次序一节一节整理。"""

from dataclasses import asdict, dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from utils.explain_page.pack import pack, pack_half, show_bytes, show_text, token_label, token_text
from utils.generation import Sampling
from utils.head_summary import HABITS, habit_masks, measure_habits, name_habits
from utils.text_utils import Tokenizer
from utils.trace import Step, Trace, logit_lens

SHOWN_DIMS = 48  # 向量只画前这么多维，统计量总是对全部维度算的
NUM_NEIGHBOURS = 6
NUM_RANDOM = 64  # 随机向量里取这么多个，各找最近的，求平均
NUM_GUESSES = 5  # 每层每个位置的答案取前几名
NUM_CANDIDATES = 12  # 生成的每一步取前几名
NUM_LABELS = 400  # 下一个 token 一节里，分数最高的这么多个有文字
MAX_ATTENTION_BYTES = 11_000_000  # 注意力一节最多占页面多少字节；再多就隔几层取一层


@dataclass(frozen=True)
class Explained:
    """要讲解的一次计算。"""

    model: nn.Module
    tokenizer: Tokenizer
    token_ids: list[int]
    trace: Trace
    sampling: Sampling
    steps: list[Step]


class Vocabulary:
    """页面用到的 token 的文字；用到一个记一个。"""

    def __init__(self, tokenizer: Tokenizer):
        self._tokenizer = tokenizer
        self.labels: dict[int, str] = {}

    def use(self, token_ids: Tensor) -> list:
        """记下这些 id，返回同样形状的列表。"""
        for token_id in token_ids.unique().tolist():
            self.labels.setdefault(token_id, token_label(self._tokenizer, token_id))
        return token_ids.tolist()


@torch.inference_mode()
def build_data(explained: Explained, loss: dict) -> dict:
    """页面的全部数据；loss 是 loss_section 的结果。"""
    model, vocabulary = explained.model, Vocabulary(explained.tokenizer)
    sections = {
        "tokens": token_section(explained.tokenizer, explained.token_ids),
        "embedding": embedding_section(explained, vocabulary),
        "attention": attention_section(explained),
        "stream": stream_section(explained.trace, model),
        "lens": lens_section(explained, vocabulary),
        "next": next_section(explained, vocabulary),
        "generation": generation_section(explained, vocabulary),
        "loss": loss,
    }
    vocabulary.use(torch.tensor([*explained.token_ids, *loss["ids"], *loss["best"]]))
    return {
        "config": model.cfg.to_dict() | {"head_dim": model.cfg.head_dim},
        "num_parameters": model.cfg.num_parameters,
        "characters": explained.tokenizer.count_text(torch.tensor(explained.token_ids))[0],
        "tokenizer_size": explained.tokenizer.vocab_size,
        **sections,
        "labels": vocabulary.labels,
    }


def token_section(tokenizer: Tokenizer, token_ids: list[int]) -> list[dict]:
    """每个 token 的 id、样子和字节；只有半个字的，还有它是哪个字的一部分。"""
    pieces = [tokenizer.token_bytes(token_id) for token_id in token_ids]
    text, section, end = b"".join(pieces), [], 0
    for token_id, piece in zip(token_ids, pieces, strict=True):
        start, end = end, end + len(piece)
        row = {"id": token_id, "label": token_label(tokenizer, token_id), "bytes": show_bytes(piece)}
        if not token_text(tokenizer, token_id):
            row["part_of"] = whole_characters(text, start, end)
        section.append(row)
    return section


def whole_characters(text: bytes, start: int, end: int) -> str:
    """text[start:end] 碰到的完整的字；10xxxxxx 是字符的后续字节。"""
    while start > 0 and text[start] & 0xC0 == 0x80:
        start -= 1
    while end < len(text) and text[end] & 0xC0 == 0x80:
        end += 1
    return show_text(text[start:end].decode("utf-8", errors="replace"))


def embedding_section(explained: Explained, vocabulary: Vocabulary) -> dict:
    """token 向量、位置向量、两者之和的前几维和长度，以及词表里方向最接近的几个 token。"""
    trace = explained.trace
    position = trace.embeddings - trace.token_embeddings
    parts = torch.stack((trace.token_embeddings, position, trace.embeddings))
    table = F.normalize(explained.model.tok_emb.weight[: explained.tokenizer.vocab_size], dim=-1)
    count = min(NUM_NEIGHBOURS + 1, len(table))  # 第一名总是自己
    nearest = (F.normalize(trace.token_embeddings, dim=-1) @ table.T).topk(count)
    return {
        "parts": pack(parts[..., :SHOWN_DIMS]),
        "norms": pack(parts.norm(dim=-1)),
        "neighbours": vocabulary.use(nearest.indices[:, 1:]),
        "similarities": pack(nearest.values[:, 1:]),
        "noise": chance_similarity(*table.shape),
    }


def chance_similarity(count: int, num_dims: int) -> float:
    """count 个 num_dims 维的随机向量，离一个向量最近的别的向量平均有多近（余弦）：低于它的相似说明不了什么。"""
    vectors = F.normalize(torch.randn(count, num_dims, generator=torch.Generator().manual_seed(0)), dim=-1)
    cosines = vectors[:NUM_RANDOM] @ vectors.T
    return cosines.fill_diagonal_(-1.0).amax(dim=-1).mean().item()


def attention_section(explained: Explained) -> dict:
    """每个头的习惯；放得下的层还有分数、查询、键和值。权重由页面从分数算出。"""
    texts = [token_text(explained.tokenizer, token_id) for token_id in explained.token_ids]
    masks = habit_masks(explained.token_ids, texts)
    shares = [measure_habits(block.weights, masks) for block in explained.trace.blocks]
    layers = choose_layers(explained.trace)
    blocks = [explained.trace.blocks[layer] for layer in layers]
    return {
        "habits": HABITS,
        "shares": pack(torch.stack(shares)),
        "names": [name_habits(share, masks) for share in shares],
        "layers": layers,
        "scores": [pack(block.scores) for block in blocks],
        "queries": [pack_half(block.queries) for block in blocks],
        "keys": [pack_half(block.keys) for block in blocks],
        "values": [pack_half(block.values) for block in blocks],
    }


def choose_layers(trace: Trace) -> list[int]:
    """放哪几层的注意力：全部放得下就全部，否则均匀地取，首尾总在内（只放得下一层时取最后一层）。"""
    block, num_layers = trace.blocks[0], len(trace.blocks)
    num_bytes = 4 * block.scores.numel() + 2 * 3 * block.queries.numel()  # 查询、键、值是 float16
    count = MAX_ATTENTION_BYTES // (num_bytes * 4 // 3)  # base64 把三个字节写成四个
    if count >= num_layers:
        return list(range(num_layers))
    if count < 2:
        return [num_layers - 1]
    return [round(index * (num_layers - 1) / (count - 1)) for index in range(count)]


def stream_section(trace: Trace, model: nn.Module) -> dict:
    """残差流的长度、每个块加了多少、每次归一化之前和之后。"""
    sites = [site for block in trace.blocks for site in ((block.entered, block.norm1), (block.middle, block.norm2))]
    sites.append((trace.stream[-1], trace.final_norm))
    sublayers = [part for block in trace.blocks for part in (block.attention, block.feed_forward)]
    vectors = torch.stack([torch.stack(site) for site in sites])  # (归一化的次数, 前后, seq, emb_dim)
    return {
        "norms": pack(vectors[:, 0].norm(dim=-1)),
        "added": pack(torch.stack(sublayers).norm(dim=-1)),
        "vectors": pack(vectors[..., :SHOWN_DIMS]),
        "means": pack(vectors.mean(dim=-1)),
        "stds": pack(vectors.std(dim=-1, unbiased=False)),
    }


def lens_section(explained: Explained, vocabulary: Vocabulary) -> dict:
    """(num_layers + 1, seq) 个位置各自的前几名、它们的概率，和整个分布的熵（nat）。"""
    ids, probabilities, entropies = [], [], []
    for stream in explained.trace.stream:
        log_p = logit_lens(explained.model, stream, explained.tokenizer.vocab_size).log_softmax(dim=-1)
        best = log_p.topk(min(NUM_GUESSES, log_p.shape[-1]))
        ids.append(best.indices)
        probabilities.append(best.values.exp())
        entropies.append(-(log_p.exp() * log_p).sum(dim=-1))
    return {
        "ids": vocabulary.use(torch.stack(ids)),
        "probabilities": pack(torch.stack(probabilities)),
        "entropies": pack(torch.stack(entropies)),
    }


def next_section(explained: Explained, vocabulary: Vocabulary) -> dict:
    """最后一个位置的全部分数，一个不少：滑块要用它们重算。"""
    logits = explained.steps[0].logits
    vocabulary.use(logits.topk(min(NUM_LABELS, len(logits))).indices)
    return {"logits": pack(logits), "sampling": asdict(explained.sampling)}


def generation_section(explained: Explained, vocabulary: Vocabulary) -> dict:
    """每一步的候选和抽中的 token，以及 KV 缓存有多大。"""
    cache = explained.model.new_cache()
    bytes_per_token = 2 * cache.keys[:, :, :, 0].numel() * cache.keys.element_size()  # 键和值各一份
    steps = []
    for step in explained.steps:
        best = step.probabilities.topk(min(NUM_CANDIDATES, int((step.probabilities > 0).sum())))
        steps.append(
            {
                "id": step.token_id,
                "probability": step.probabilities[step.token_id].item(),
                "num_tokens": step.num_tokens,
                "ids": vocabulary.use(best.indices),
                "probabilities": best.values.tolist(),
            }
        )
        vocabulary.use(torch.tensor([step.token_id]))
    return {"steps": steps, "bytes_per_token": bytes_per_token, "shape": list(cache.keys.shape)}


@torch.inference_mode()
def loss_section(model: nn.Module, tokenizer: Tokenizer, token_ids: list[int], num_context: int) -> dict:
    """token_ids 里第 num_context 个起，每个 token 的损失是怎样算出来的；num_context 至少是 1。

    损失 = log Σ exp(分数) − 正确答案的分数。
    """
    logits = model(torch.tensor([token_ids]))[0, num_context - 1 : -1, : tokenizer.vocab_size].float()
    targets = torch.tensor(token_ids[num_context:], dtype=torch.long)
    right = logits.gather(1, targets[:, None])
    return {
        "ids": token_ids,
        "num_context": num_context,
        "labels": [token_label(tokenizer, token_id) for token_id in token_ids],
        "num_characters": len(tokenizer.decode(token_ids[num_context:])),
        "right": pack(right[:, 0]),
        "log_sums": pack(logits.logsumexp(dim=-1)),
        "ranks": ((logits > right).sum(dim=-1) + 1).tolist(),
        "best": logits.argmax(dim=-1).tolist(),
        "best_probabilities": pack(logits.softmax(dim=-1).amax(dim=-1)),
    }
