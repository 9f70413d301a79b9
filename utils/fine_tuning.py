"""两种微调共有的检查和记录：低秩的秩，接着训练时哪些不能变，数据的指纹。"""

import argparse
import hashlib
from typing import Any

from utils.errors import UserError

FIXED_ARGUMENTS = ("trainable", "lora_rank", "lora_alpha", "lora_projections")


def check_lora_rank(args: argparse.Namespace, cfg: Any) -> None:
    """秩超过矩阵的边长就不是低秩了，参数比原来的还多；抛出 UserError。"""
    if args.trainable == "lora" and args.lora_rank > cfg.emb_dim:
        raise UserError("--lora_rank", f"不能超过模型的 emb_dim={cfg.emb_dim}，收到 {args.lora_rank}", "常用 4 到 64。")


def fixed_arguments(args: argparse.Namespace) -> dict[str, object]:
    """接着训练时不能变的参数。"""
    return {name: getattr(args, name) for name in FIXED_ARGUMENTS}


def digest_of(records: list) -> str:
    """数据的指纹。"""
    return hashlib.sha256(repr(records).encode("utf-8")).hexdigest()
