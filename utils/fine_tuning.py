"""两种微调共有的检查。"""

import argparse
from typing import Any

from utils.errors import UserError


def check_lora_rank(args: argparse.Namespace, cfg: Any) -> None:
    """秩超过矩阵的边长就不是低秩了，参数比原来的还多；抛出 UserError。"""
    if args.trainable == "lora" and args.lora_rank > cfg.emb_dim:
        raise UserError("--lora_rank", f"不能超过模型的 emb_dim={cfg.emb_dim}，收到 {args.lora_rank}", "常用 4 到 64。")
