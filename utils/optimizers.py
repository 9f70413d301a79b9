"""优化器：参数怎么分组、各用什么更新规则，学习率怎么随进度变化。道理见 docs/反向传播与优化器.md。"""

import torch
from torch import nn

from utils import sharded_tensor
from utils.muon import Muon
from utils.settings import TrainingSettings

ADAM_BETAS = (0.9, 0.95)
MUON_MOMENTUM = 0.95
STATE_NAMES = {torch.optim.AdamW: {"step", "exp_avg", "exp_avg_sq"}, Muon: {"momentum_buffer"}}  # 每个参数的状态


def build_optimizers(model: nn.Module, settings: TrainingSettings) -> list[torch.optim.Optimizer]:
    """AdamW (Loshchilov & Hutter 2019)；muon 时隐藏层的矩阵改用 Muon (Jordan et al. 2024)。

    权重衰减只作用于矩阵：偏置和归一化的缩放没有变大的倾向，衰减它们只会碍事。
    """
    trainable = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    hidden = [p for name, p in trainable if p.dim() == 2 and not _is_vocabulary_or_position(name)]
    use_muon = settings.optimizer == "muon" and hidden
    by_muon = {id(parameter) for parameter in hidden} if use_muon else set()
    others = [parameter for _, parameter in trainable if id(parameter) not in by_muon]
    groups = [
        {"params": [p for p in others if p.dim() >= 2], "weight_decay": settings.weight_decay},
        {"params": [p for p in others if p.dim() < 2], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    optimizers = []
    if groups:
        optimizers.append(torch.optim.AdamW(groups, lr=settings.learning_rate, betas=ADAM_BETAS, fused=True))
    if use_muon:
        decay = {"weight_decay": settings.weight_decay, "momentum": MUON_MOMENTUM}
        optimizers.append(Muon(hidden, lr=settings.muon_learning_rate, **decay))
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["peak_lr"] = group["lr"]
    return optimizers


def _is_vocabulary_or_position(name: str) -> bool:
    """嵌入表和输出层逐行代表一个 token 或位置，行与行不该被 Muon 正交化混在一起。"""
    return any(part in name for part in ("tok_emb", "pos_emb", "out_head"))


def load_optimizer_state(optimizer: torch.optim.Optimizer, state: dict) -> None:
    """装回 state_dict()["state"] 里的动量；学习率等仍用现在的设置。名字或形状不符时抛出 ValueError。"""
    groups = optimizer.state_dict()["param_groups"]
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for index, values in state.items():
        if values.keys() != STATE_NAMES[type(optimizer)]:
            raise ValueError(f"优化器状态 {index} 的名字不符")
        shape = parameters[index].shape
        if any(value.shape != (() if name == "step" else shape) for name, value in values.items()):
            raise ValueError(f"优化器状态 {index} 的形状不符")
    split = {
        index: {
            name: value if name == "step" else sharded_tensor.split_like(value, parameters[index])
            for name, value in values.items()
        }
        for index, values in state.items()
    }
    optimizer.load_state_dict({"state": split, "param_groups": groups})


def set_learning_rate(optimizers: list[torch.optim.Optimizer], factor: float) -> None:
    """每个参数组的学习率 = 自己的最大值 × factor。"""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = group["peak_lr"] * factor


def learning_rate_factor(step: int, warmup_steps: int, progress: float) -> float:
    """第 step 步（从 0 数起）的学习率与最大值之比：预热系数 × 衰减系数，后者随 progress ∈ [0, 1] 线性降到 0。"""
    warmup = min(1.0, (step + 1) / (warmup_steps + 1))
    return warmup * max(0.0, 1.0 - progress)
