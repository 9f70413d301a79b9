"""与 transformers 的 GPT-2 对照：随机权重的小模型，两边的分数和贪心续写。"""

from pathlib import Path

import torch
from torch import Tensor
from transformers import GenerationConfig, GPT2Config, GPT2LMHeadModel

from model.config import ModelConfig
from model.language_model import LanguageModel
from utils.generation import Sampling, generate_tokens, read_prompt
from utils.model_file import ModelFile, build_model

SMALL = {"vocab_size": 300, "n_positions": 128, "n_embd": 32, "n_layer": 2, "n_head": 4}
CONTINUATION = 100
TOLERANCE = 1e-4


def build_reference(**changes) -> GPT2LMHeadModel:
    """随机的小模型；changes 改形状。"""
    return randomize(GPT2LMHeadModel(GPT2Config(**{**SMALL, **changes})), std=0.2)


def randomize(reference: GPT2LMHeadModel, std: float) -> GPT2LMHeadModel:
    """权重都不是特殊值：偏置和归一化也是随机数，漏读了才看得出来；位置嵌入大些，续写才不会只重复一个 token。"""
    for name, parameter in reference.named_parameters():
        torch.nn.init.normal_(parameter, std=0.5 if "wpe" in name else std)
    return reference.eval()


def save_bin(reference: GPT2LMHeadModel, folder: Path, has_prefix: bool, **options) -> Path:
    """早期发布的样子：pytorch_model.bin，里面还有因果掩码。"""
    reference.config.save_pretrained(folder)
    state = reference.state_dict()
    if not has_prefix:
        state = {name.removeprefix("transformer."): tensor for name, tensor in state.items() if "lm_head" not in name}
    size = reference.config.n_positions
    for layer in range(reference.config.n_layer):
        block = f"{'transformer.' if has_prefix else ''}h.{layer}.attn."
        state[f"{block}bias"] = torch.ones(1, 1, size, size, dtype=torch.uint8).tril()
        state[f"{block}masked_bias"] = torch.tensor(-1e4)
    torch.save(state, folder / "pytorch_model.bin", **options)
    return folder / "pytorch_model.bin"


def build_ours(file: ModelFile) -> LanguageModel:
    cfg = ModelConfig.from_dict(file.config)
    return build_model(lambda: LanguageModel(cfg), file, "它的配置").eval()


def continue_greedily(model: LanguageModel, token_ids: Tensor, count: int = CONTINUATION) -> list[int]:
    tokens = generate_tokens(model, read_prompt(model, token_ids), model.cfg.vocab_size, Sampling(), torch.Generator())
    return [next(tokens).item() for _ in range(count)]


def continue_reference(reference: GPT2LMHeadModel, token_ids: Tensor, count: int = CONTINUATION) -> list[int]:
    settings = GenerationConfig(max_new_tokens=count, do_sample=False, pad_token_id=0)
    return reference.generate(token_ids, generation_config=settings)[0, token_ids.shape[1] :].tolist()


@torch.inference_mode()
def assert_same_model(ours: LanguageModel, reference: GPT2LMHeadModel) -> None:
    """分数相差不到 TOLERANCE，贪心续写的 CONTINUATION 个 token 完全相同。"""
    token_ids = torch.randint(0, ours.cfg.vocab_size, (2, 24))
    torch.testing.assert_close(ours(token_ids), reference(token_ids).logits, atol=TOLERANCE, rtol=0)
    prompt = token_ids[:1, :8]
    assert continue_greedily(ours, prompt) == continue_reference(reference, prompt)
