"""两种微调共有的检查和记录：低秩的秩，接着训练时哪些不能变，数据的指纹，怎样指认一条数据。"""

import argparse
import hashlib
from typing import Any

from torch import nn

from utils.errors import UserError

LORA_ARGUMENTS = ("lora_rank", "lora_alpha", "lora_projections")
QUOTED_CHARACTERS = 12
SHOWN_DIGITS = 12  # 起点的指纹记开头几位


def check_lora_rank(args: argparse.Namespace, cfg: Any) -> None:
    """秩超过矩阵的边长就不是低秩了，参数比原来的还多；抛出 UserError。"""
    if args.trainable == "lora" and args.lora_rank > cfg.emb_dim:
        raise UserError("--lora_rank", f"不能超过模型的 emb_dim={cfg.emb_dim}，收到 {args.lora_rank}", "常用 4 到 64。")


def fixed_details(model: nn.Module, args: argparse.Namespace) -> dict[str, object]:
    """接着训练时不能变的：训练哪些参数，从哪个模型开始。model 还没有训练过。"""
    names = ("trainable", *LORA_ARGUMENTS) if args.trainable == "lora" else ("trainable",)
    return {name: getattr(args, name) for name in names} | {"起点的指纹": model.backbone_fingerprint()[:SHOWN_DIGITS]}


def digest_of(records: list) -> str:
    """数据的指纹。"""
    return hashlib.sha256(repr(records).encode("utf-8")).hexdigest()


def quote(text: str) -> str:
    """开头的几个字，写在一行里，供人在数据文件里找。"""
    shown = " ".join(text.split())
    return f"“{shown}”" if len(shown) <= QUOTED_CHARACTERS else f"“{shown[:QUOTED_CHARACTERS]}……”"
