"""两种微调共有的几步：训练哪些参数，接着训练时哪些不能变，怎样指认一条数据。"""

import argparse
import hashlib

from torch import nn

from model.lora import PREFIX, LoRAConfig, fingerprint
from model.trainable import set_trainable
from utils.errors import UserError

LORA_ARGUMENTS = ("lora_rank", "lora_alpha", "lora_projections")
QUOTED_CHARACTERS = 12
SHOWN_DIGITS = 12  # 起点的指纹记开头几位


def choose_trainable(model: nn.Module, args: argparse.Namespace) -> None:
    """照 --trainable 冻结参数或加上 LoRA；秩超过矩阵的边长就不是低秩了，抛出 UserError。"""
    largest = model.cfg.emb_dim
    if args.trainable == "lora" and args.lora_rank > largest:
        reason = f"不能超过模型的 emb_dim={largest}，收到 {args.lora_rank}"
        raise UserError("--lora_rank", reason, "常用 4 到 64。")
    set_trainable(model, args.trainable, LoRAConfig(args.lora_rank, args.lora_alpha, args.lora_projections))


def fixed_details(model: nn.Module, args: argparse.Namespace) -> dict[str, object]:
    """接着训练时不能变的：训练哪些参数，从哪个模型开始。model 还没有训练过。"""
    names = ("trainable", *LORA_ARGUMENTS) if args.trainable == "lora" else ("trainable",)
    fresh = {name for name, _ in model.named_parameters() if PREFIX in name or name.startswith("out_head.")}
    return {name: getattr(args, name) for name in names} | {"起点的指纹": fingerprint(model, fresh)[:SHOWN_DIGITS]}


def digest_of(records: list) -> str:
    """数据的指纹。"""
    return hashlib.sha256(repr(records).encode("utf-8")).hexdigest()


def quote(text: str) -> str:
    """开头的几个字，写在一行里，供人在数据文件里找。"""
    shown = " ".join(text.split())
    return f"“{shown}”" if len(shown) <= QUOTED_CHARACTERS else f"“{shown[:QUOTED_CHARACTERS]}……”"
