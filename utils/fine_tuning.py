"""两种微调共有的几步：训练哪些参数，接着训练时哪些不能变。"""

import argparse
import hashlib

from torch import nn

from model.lora import LoRAConfig
from model.trainable import set_trainable
from utils.errors import UserError

FIXED_ARGUMENTS = ("trainable", "lora_rank", "lora_alpha", "lora_projections")


def choose_trainable(model: nn.Module, args: argparse.Namespace) -> None:
    """照 --trainable 冻结参数或加上 LoRA；秩超过矩阵的边长就不是低秩了，抛出 UserError。"""
    largest = model.cfg.emb_dim
    if args.trainable == "lora" and args.lora_rank > largest:
        reason = f"不能超过模型的 emb_dim={largest}，收到 {args.lora_rank}"
        raise UserError("--lora_rank", reason, "常用 4 到 64。")
    set_trainable(model, args.trainable, LoRAConfig(args.lora_rank, args.lora_alpha, args.lora_projections))


def fixed_arguments(args: argparse.Namespace) -> dict[str, object]:
    """接着训练时不能变的参数。"""
    return {name: getattr(args, name) for name in FIXED_ARGUMENTS}


def digest_of(records: list) -> str:
    """数据的指纹。"""
    return hashlib.sha256(repr(records).encode("utf-8")).hexdigest()
