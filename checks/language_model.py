"""检查 model/language_model.py 和 model/config.py：参照由嵌入、块、归一化、输出层的参照拼成。"""

import importlib.util
import math
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from checks.attention import MODE_SUSPECTS, changes_every_time
from checks.building import Tensors, install, random_inputs, tiny_config
from checks.comparison import Check, Suspect, fact_check
from checks.position import Learned
from checks.transform_block import Block, norm_shapes, normalize, parameter_shapes, under
from model.config import ModelConfig, count_parameters
from model.language_model import LanguageModel
from utils.config_file import read_config
from utils.hugging_face import to_hugging_face

USES = ("position", "layer_norm", "attention", "feed_forward", "transform_block", "kv_cache", "dropout")
ROOT = Path(__file__).resolve().parent.parent
PIECES = (5, 1, 1, 4, 1)
PUBLISHED = {"124M": 124_439_808, "355M": 354_823_168, "774M": 774_030_080, "1558M": 1_557_611_200}
INIT_STD = 0.02
LOOSE = 1e-4  # 层数多，舍入误差也多


@dataclass(frozen=True)
class Model:
    """语言模型，也能分几段接着算；每一步都可以改错。inputs 里有 token_ids 和各参数。"""

    cfg: ModelConfig
    pieces: tuple[int, ...] | None = None
    embeds_position: bool = True
    position_start: int = 0
    restarts: bool = False  # 每一段的位置都从 0 数起
    keeps_past: bool = True  # 各段看得见前面的段
    embedding_scale: float = 1.0
    layers: tuple[int, ...] | None = None
    norm: str = "final_norm"
    norm_first: bool = False  # final_norm 用在第一个块之前
    predicted: int = -1  # next_logits 取哪个位置

    def features(self, inputs: Tensors) -> Tensor:
        """(batch, seq) -> (batch, seq, emb_dim)"""
        token_ids = inputs["token_ids"]
        x = self.embedding_scale * F.embedding(token_ids, inputs["tok_emb.weight"])
        if self.cfg.position == "learned" and self.embeds_position:
            x = self._add_position(x, inputs["position.pos_emb.weight"])
        norm = under(inputs, "final_norm.")
        x = normalize(self.cfg, x, norm) if self.norm_first else x
        for layer in range(self.cfg.num_layers) if self.layers is None else self.layers:
            block = Block(self.cfg, pieces=self.pieces, keeps_past=self.keeps_past)
            x = block({**under(inputs, f"trf_blocks.{layer}."), "x": x})
        return normalize(self.cfg, x, norm) if self.norm and not self.norm_first else x

    def __call__(self, inputs: Tensors) -> Tensors:
        x = self.features(inputs)
        head = inputs["tok_emb.weight"] if self.cfg.tie_weights else inputs["out_head.weight"]
        logits = F.linear(x, head, inputs.get("out_head.bias"))
        return {"forward": logits, "next_logits": logits[:, self.predicted]}

    def _add_position(self, x: Tensor, table: Tensor) -> Tensor:
        parts, start = [], self.position_start
        for part in x.split(self.pieces or x.shape[1], dim=1):
            parts.append(Learned(start)({"x": part, "pos_emb.weight": table}))
            start += 0 if self.restarts else part.shape[1]
        return torch.cat(parts, dim=1)


def model_shapes(cfg: ModelConfig) -> dict[str, tuple[int, ...]]:
    """语言模型的参数。"""
    shapes = {"tok_emb.weight": (cfg.vocab_size, cfg.emb_dim)}
    if cfg.position == "learned":
        shapes["position.pos_emb.weight"] = (cfg.context_length, cfg.emb_dim)
    for layer in range(cfg.num_layers):
        shapes |= parameter_shapes(cfg, f"trf_blocks.{layer}.")
    shapes |= norm_shapes(cfg, "final_norm")
    return shapes if cfg.tie_weights else shapes | {"out_head.weight": (cfg.vocab_size, cfg.emb_dim)}


SUSPECTS = [
    Suspect("没有加位置嵌入", {"embeds_position": False}),
    Suspect("位置嵌入错位：多了 1", {"position_start": 1}),
    Suspect("漏了 final_norm", {"norm": ""}),
    Suspect("final_norm 用在了块之前，应在所有块之后", {"norm_first": True}),
    Suspect("漏了最后一个块", {"layers": (0,)}),
    Suspect("漏了第一个块", {"layers": (1,)}),
    Suspect("块的次序反了", {"layers": (1, 0)}),
    Suspect("第一个块用了两次", {"layers": (0, 0)}),
    Suspect("一个块也没有过", {"layers": ()}),
    Suspect("token 嵌入多乘了 √emb_dim", {"embedding_scale": math.sqrt(32)}),
    Suspect("next_logits 取了第一个位置，应为最后一个", {"predicted": 0}),
    Suspect("next_logits 取了倒数第二个位置，应为最后一个", {"predicted": -2}),
]
PIECE_SUSPECTS = [
    Suspect("位置嵌入错位：接着缓存时从 0 数起", {"restarts": True}),
    Suspect("缓存没有传给各块：每一段看不见前面的", {"keeps_past": False, "restarts": False}),
    Suspect("缓存的 length 没有增加：每一段各算各的", {"keeps_past": False, "restarts": True, "length": 0}),
]
POSITION_CHANGES = {"embeds_position", "position_start", "restarts"}  # RoPE 没有位置嵌入
LLAMA = tiny_config(position="rope", norm="rms_norm", activation="swiglu", num_kv_heads=2, qk_norm=True, hidden_dim=48)
UNTIED = tiny_config(tie_weights=False, bias=False, qkv_bias=False)
EARLY = tiny_config(activation="gelu_exact", norm_eps=1e-12, out_proj=False, tie_weights=False)  # 本项目早期版本的结构


def model_inputs(cfg: ModelConfig, **more: tuple[int, ...]) -> Tensors:
    token_ids = torch.randint(cfg.vocab_size, (2, sum(PIECES)), generator=torch.Generator().manual_seed(1))
    return {"token_ids": token_ids, **random_inputs(**model_shapes(cfg), **more)}


def load(model: LanguageModel, inputs: Tensors) -> LanguageModel:
    return install(model, {name: tensor for name, tensor in inputs.items() if name != "token_ids"}).eval()


def _applicable(suspects: list[Suspect], cfg: ModelConfig) -> list[Suspect]:
    return [s for s in suspects if cfg.position == "learned" or POSITION_CHANGES.isdisjoint(s.changes)]


def _whole(name: str, cfg: ModelConfig) -> Check:
    def ours(inputs: Tensors) -> Tensors:
        model, token_ids = load(LanguageModel(cfg), inputs), inputs["token_ids"]
        return {"forward": model(token_ids), "next_logits": model.next_logits(token_ids)}

    return Check(
        name, lambda: model_inputs(cfg), ours, lambda **changes: Model(cfg, **changes), _applicable(SUSPECTS, cfg)
    )


def _in_pieces(name: str, cfg: ModelConfig) -> Check:
    """缓存的读写不求梯度，只比较输出。"""

    @torch.no_grad()
    def ours(inputs: Tensors) -> Tensors:
        model = load(LanguageModel(cfg), inputs)
        cache = model.new_cache(len(inputs["token_ids"]))
        logits = torch.cat([model(part, cache) for part in inputs["token_ids"].split(PIECES, dim=1)], dim=1)
        return {"forward": logits, "缓存的 token 数": torch.tensor(float(cache.length))}

    def build_reference(length: int = sum(PIECES), **changes):
        model = Model(cfg, **{"pieces": PIECES} | changes)
        return lambda inputs: {"forward": model(inputs)["forward"], "缓存的 token 数": torch.tensor(float(length))}

    def inputs() -> Tensors:
        return {key: tensor.detach() for key, tensor in model_inputs(cfg).items()}

    return Check(name, inputs, ours, build_reference, _applicable(PIECE_SUSPECTS, cfg))


def _sizes() -> dict[str, float]:
    """用 meta 设备建立模型：只有形状，不占内存。"""
    found = {}
    for size in PUBLISHED:
        cfg = read_config(ROOT / f"configs/gpt2_config_{size}.json", ModelConfig.from_dict).model
        with torch.device("meta"), mock.patch.object(nn.init, "normal_"):  # 没有数可初始化，不必白等
            model = LanguageModel(cfg)
        found[size] = sum(parameter.numel() for parameter in model.parameters())
        found[f"{size}，count_parameters"] = sum(count_parameters(cfg).values())
    return found


def _size_suspects() -> list[Suspect]:
    """各种漏算和多算，让四种大小一起错。"""
    shapes = {"124M": (12, 768), "355M": (24, 1024), "774M": (36, 1280), "1558M": (48, 1600)}
    kinds = {
        "输出层没有与 token 嵌入共用": lambda layers, dim: 50257 * dim,
        "漏了位置嵌入": lambda layers, dim: -1024 * dim,
        "查询、键、值缺偏置": lambda layers, dim: -3 * layers * dim,
        "out_proj 缺偏置": lambda layers, dim: -layers * dim,
        "前馈网络缺偏置": lambda layers, dim: -5 * layers * dim,
        "归一化缺偏置": lambda layers, dim: -(2 * layers + 1) * dim,
        "漏了 final_norm": lambda layers, dim: -2 * dim,
        "输出层多了偏置": lambda layers, dim: 50257,
    }
    suspects = []
    for guess, extra in kinds.items():
        counts = {size: PUBLISHED[size] + extra(*shape) for size, shape in shapes.items()}
        formula = {f"{size}，count_parameters": count for size, count in counts.items()}
        suspects.append(Suspect(guess, counts | formula))
        suspects.append(Suspect(guess, counts))
        suspects.append(Suspect(f"count_parameters：{guess}", formula))
    return suspects


def _deviations() -> dict[str, float]:
    """标准差都除以 0.02。"""
    model = LanguageModel(tiny_config(emb_dim=128, num_layers=8, vocab_size=2000, context_length=512))
    parts = {
        "token 嵌入": [model.tok_emb],
        "位置嵌入": [model.position.pos_emb],
        "查询、键、值": [part for b in model.trf_blocks for part in (b.attn.W_query, b.attn.W_key, b.attn.W_value)],
        "前馈第一层": [block.ff.layers[0] for block in model.trf_blocks],
        "attn.out_proj": [block.attn.out_proj for block in model.trf_blocks],
        "ff.out_proj": [block.ff.out_proj for block in model.trf_blocks],
    }
    biases = [parameter for name, parameter in model.named_parameters() if name.endswith("bias")]
    deviations = {name: torch.cat([layer.weight.flatten() for layer in layers]) for name, layers in parts.items()}
    return {name: tensor.std().item() / INIT_STD for name, tensor in deviations.items()} | {
        "偏置最大": max(bias.abs().max().item() for bias in biases)
    }


INSIDE = ("token 嵌入", "位置嵌入", "查询、键、值", "前馈第一层")
WRITES = ("attn.out_proj", "ff.out_proj")
SHRUNK = 1 / math.sqrt(2 * 8)
LINEAR_DEFAULT = 1 / math.sqrt(3 * 128) / INIT_STD  # nn.Linear 的默认：±1/√in 之间均匀
DEVIATIONS = dict.fromkeys(INSIDE, 1.0) | dict.fromkeys(WRITES, SHRUNK) | {"偏置最大": 0.0}
NOT_ZERO = {"偏置最大": 1 / math.sqrt(128)}
DEFAULTS = dict.fromkeys(INSIDE[:2], 1 / INIT_STD) | dict.fromkeys(INSIDE[2:], LINEAR_DEFAULT) | NOT_ZERO
DEVIATION_SUSPECTS = [
    Suspect("残差投影的初始化标准差没有按 1/√(2·num_layers) 缩小", dict.fromkeys(WRITES, 1.0)),
    Suspect("缩小的倍数不对：应为 1/√(2·num_layers)，漏了 2", dict.fromkeys(WRITES, 1 / math.sqrt(8))),
    Suspect("缩小的倍数不对：应为 1/√(2·num_layers)，漏了开平方", dict.fromkeys(WRITES, 1 / 16)),
    Suspect("只缩小了注意力的投影，前馈网络的也要", {"ff.out_proj": 1.0}),
    Suspect("只缩小了前馈网络的投影，注意力的也要", {"attn.out_proj": 1.0}),
    Suspect("嵌入的初始化标准差不对：应为 0.02，不是 nn.Embedding 的默认值 1", dict.fromkeys(INSIDE[:2], 50.0)),
    Suspect("位置嵌入的初始化标准差不对：应为 0.02，不是 nn.Embedding 的默认值 1", {"位置嵌入": 50.0}),
    Suspect("线性层没有初始化：还是 nn.Linear 的默认值", dict.fromkeys(INSIDE[2:], LINEAR_DEFAULT)),
    Suspect("漏了 self.apply：各层还是 PyTorch 的默认值", DEFAULTS),
    Suspect("偏置没有清零", NOT_ZERO),
    *(
        Suspect("初始化标准差不对：应为 0.02", {name: value * factor for name, value in DEVIATIONS.items()})
        for factor in (0.1, 0.5, 2.0, 5.0, 10.0, 50.0)
    ),
]


def _modes() -> dict[str, float]:
    model = LanguageModel(tiny_config(drop_rate=0.5, num_layers=1))
    block = model.trf_blocks[0]
    block.dropout.drop_rate = block.attn.drop_rate = 0.0  # 只看嵌入之后的 dropout
    token_ids = torch.arange(9)[None]
    return {
        "训练时丢弃": changes_every_time(model.train(), token_ids),
        "评估时丢弃": changes_every_time(model.eval(), token_ids),
    }


def _transformers(cfg: ModelConfig, inputs: Tensors) -> Tensor:
    """transformers 的 GPT-2 用同样的权重算出的分数。"""
    from transformers import GPT2Config, GPT2LMHeadModel  # 载入要两三秒，只在用到时载入

    shape = {"vocab_size": cfg.vocab_size, "n_positions": cfg.context_length, "n_embd": cfg.emb_dim}
    depth = {"n_layer": cfg.num_layers, "n_head": cfg.num_heads}
    model = GPT2LMHeadModel(GPT2Config(**shape, **depth, bos_token_id=0, eos_token_id=0)).eval()
    weights = to_hugging_face(inputs | {"out_head.weight": inputs["tok_emb.weight"]}, cfg.to_dict())
    return torch.func.functional_call(model, weights, (inputs["token_ids"],)).logits


def _transformers_check() -> Check:
    cfg = tiny_config()
    return Check(
        "transformers 的 GPT-2",
        lambda: model_inputs(cfg),
        lambda inputs: load(LanguageModel(cfg), inputs)(inputs["token_ids"]),
        lambda: lambda inputs: _transformers(cfg, inputs),
        tolerance=LOOSE,
    )


CHECKS = [
    _whole("GPT-2", tiny_config()),
    _whole("RoPE、RMSNorm、SwiGLU、GQA", LLAMA),
    _whole("不共用输出层、没有偏置", UNTIED),
    _whole("gelu_exact、无 out_proj", EARLY),
    _in_pieces("接着缓存，GPT-2", tiny_config()),
    _in_pieces("接着缓存，RoPE、GQA", LLAMA),
    fact_check(
        "四种大小的参数个数",
        _sizes,
        PUBLISHED | {f"{size}，count_parameters": count for size, count in PUBLISHED.items()},
        _size_suspects(),
        tolerance=0.0,
    ),
    fact_check("初始化的标准差（÷ 0.02）", _deviations, DEVIATIONS, DEVIATION_SUSPECTS, tolerance=0.02),
    fact_check("训练时丢，评估时不丢", _modes, {"训练时丢弃": 1, "评估时丢弃": 0}, MODE_SUSPECTS, 0.1),
]
if importlib.util.find_spec("transformers") is not None:  # 只装了运行依赖时没有它
    CHECKS.append(_transformers_check())
