"""语言模型：token id 进，下一个 token 的分数出。道理见 docs/语言模型与参数量.md。"""

import math

import torch
from torch import Tensor, nn

from model.config import ModelConfig
from model.dropout import Dropout
from model.kv_cache import KVCache
from model.layer_norm import build_norm
from model.lora import adapter_state_dict, backbone_fingerprint, merge_adapter, merged_state_dict
from model.position import POSITION_CLASSES
from model.transform_block import TransformBlock

INIT_STD = 0.02  # GPT-2 的初始化标准差


class LanguageModel(nn.Module):
    """GPT-2 (Radford et al. 2019)：嵌入 -> num_layers 个 Transformer 块 -> 归一化 -> 词表上的分数。

    state_dict 里除了权重还有 "_extra_state"：配置和分词器，模型文件因此能说明自己。
    """

    def __init__(self, cfg: ModelConfig):
        super().__init__()
        self.cfg = cfg
        self.tokenizer_state: dict | None = None  # 训练所用分词器的描述，见 utils/text_utils.py
        self.template: str | None = None  # 指令微调所用的提示语模板，见 utils/prompt_template.py
        self.cache_dtype: torch.dtype | None = None  # KV 缓存的精度；None 表示与权重相同
        self.tok_emb = nn.Embedding(cfg.vocab_size, cfg.emb_dim)
        self.position = POSITION_CLASSES[cfg.position](cfg)
        self.dropout = Dropout(cfg.drop_rate)
        self.trf_blocks = nn.ModuleList(TransformBlock(cfg, layer) for layer in range(cfg.num_layers))
        self.final_norm = build_norm(cfg)
        self.out_head = nn.Linear(cfg.emb_dim, cfg.vocab_size, bias=False)
        if cfg.tie_weights:
            self.out_head.weight = self.tok_emb.weight
        self.apply(_init_weights)
        for block in self.trf_blocks:
            # 残差上叠加了 2 × num_layers 次输出，按 1/√(2·num_layers) 缩小，总方差才不随深度增长
            for projection in (block.attn.out_proj, block.ff.out_proj):
                if isinstance(projection, nn.Linear):
                    nn.init.normal_(projection.weight, std=INIT_STD / math.sqrt(2 * cfg.num_layers))

    def features(self, token_ids: Tensor, cache: KVCache | None = None) -> Tensor:
        """(batch, seq) -> (batch, seq, emb_dim)，最后一层归一化之后、投影到词表之前的向量。"""
        start = cache.length if cache is not None else 0
        if start + token_ids.shape[1] > self.cfg.context_length:
            raise ValueError(f"{start} + {token_ids.shape[1]} 个 token 超过上下文长度 {self.cfg.context_length}")
        x = self.dropout(self.position.embed(self.tok_emb(token_ids), start))
        for block in self.trf_blocks:
            x = block(x, self.position, cache)
        if cache is not None:
            cache.length += token_ids.shape[1]
        return self.final_norm(x)

    def forward(self, token_ids: Tensor, cache: KVCache | None = None) -> Tensor:
        """(batch, seq) -> (batch, seq, vocab_size)

        给出 cache 时，token_ids 接在已缓存的 token 之后；总长超过 context_length 时抛出 ValueError。
        """
        return self.out_head(self.features(token_ids, cache))

    def next_logits(self, token_ids: Tensor, cache: KVCache | None = None) -> Tensor:
        """(batch, seq) -> (batch, vocab_size)，只算最后一个位置：生成时前面的分数用不着。"""
        return self.out_head(self.features(token_ids, cache)[:, -1])

    def new_cache(self, batch_size: int = 1) -> KVCache:
        """空的 KV 缓存，与模型在同一设备。"""
        weight = self.tok_emb.weight
        return KVCache(self.cfg, batch_size, weight.device, self.cache_dtype or weight.dtype)

    def get_extra_state(self) -> dict:
        state = {"config": self.cfg.to_dict(), "tokenizer": self.tokenizer_state}
        return {**state, "template": self.template} if self.template else state

    def set_extra_state(self, state: dict) -> None:
        self.tokenizer_state = state["tokenizer"]
        self.template = state.get("template")

    def plain_state_dict(self) -> dict:
        """写进模型文件的 state_dict：LoRA 已经合并，名字与没有加过一样。"""
        return merged_state_dict(self)

    def backbone_fingerprint(self) -> str:
        """主干的指纹，头和适配器不算；微调之前取，就是起点的指纹。"""
        return backbone_fingerprint(self)

    def adapter_state_dict(self) -> dict:
        """LoRA 学到的那一小部分，没有加过就是空的。"""
        if state := adapter_state_dict(self):
            state["_extra_state"] |= {"labels": getattr(self, "labels", None), "template": self.template}
        return state

    def merge_adapter(self, adapter: dict) -> None:
        """加上另存的适配器；不是给这个模型的就抛出 ValueError。"""
        merge_adapter(self, adapter)


def _init_weights(module: nn.Module) -> None:
    if isinstance(module, (nn.Linear, nn.Embedding)):
        nn.init.normal_(module.weight, std=INIT_STD)
    if isinstance(module, nn.Linear) and module.bias is not None:
        nn.init.zeros_(module.bias)
