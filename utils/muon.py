"""Muon：动量先正交化再更新矩阵 (Jordan et al. 2024)。道理见 docs/反向传播与优化器.md。"""

import math
from collections import defaultdict

import torch
from torch import Tensor

from utils import sharded_tensor

COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # 牛顿-舒尔茨迭代的五次多项式 ax + bx³ + cx⁵
ITERATIONS = 5
EPS = 1e-7
BATCH_ELEMENTS = 1 << 24  # 一批最多这么多个数，免得大模型叠在一起占去几 GB 内存


def orthogonalize(matrices: Tensor) -> Tensor:
    """(batch, rows, cols) -> 同形状，bfloat16：每个矩阵 UΣVᵀ 近似换成 UVᵀ，所有方向的更新便一样大。"""
    a, b, c = COEFFICIENTS
    x = matrices.bfloat16()
    is_tall = x.shape[-2] > x.shape[-1]
    if is_tall:
        x = x.mT  # 在短的一边相乘，算得少
    x = x / x.norm(dim=(-2, -1), keepdim=True).clamp(min=EPS)
    for _ in range(ITERATIONS):
        gram = x @ x.mT
        gram = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        x = torch.baddbmm(x, gram, x, beta=a)
    return x.mT if is_tall else x


class Muon(torch.optim.Optimizer):
    """数值等于 torch.optim.Muon；它一个矩阵一个矩阵地算，这里把形状相同的叠成一批，小模型上快一倍多。

    高的矩阵步长乘 √(rows/cols)：输出的维数多，每一维才走得与方阵一样远。
    """

    def __init__(self, params, lr: float, weight_decay: float, momentum: float):
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum})

    @torch.no_grad()
    def step(self) -> None:
        for group in self.param_groups:
            by_shape = defaultdict(list)
            for parameter in group["params"]:
                if parameter.grad is not None:
                    by_shape[parameter.shape].append(parameter)
            for (rows, cols), parameters in by_shape.items():
                learning_rate = group["lr"] * math.sqrt(max(1, rows / cols))
                count = max(1, BATCH_ELEMENTS // (rows * cols))
                for start in range(0, len(parameters), count):
                    self._update(parameters[start : start + count], group, learning_rate)

    def _update(self, parameters: list[Tensor], group: dict, learning_rate: float) -> None:
        """更新一批形状相同的矩阵。"""
        # 正交化要看整个矩阵：分了片就先凑齐，算完各更新自己的那几行
        moving = (self._accelerate(parameter, group["momentum"]) for parameter in parameters)
        updates = torch.stack([sharded_tensor.whole(update) for update in moving])
        for parameter, update in zip(parameters, orthogonalize(updates), strict=True):
            rows = sharded_tensor.split_like(update, parameter)
            parameter.mul_(1 - group["lr"] * group["weight_decay"]).add_(rows, alpha=-learning_rate)

    def _accelerate(self, parameter: Tensor, momentum: float) -> Tensor:
        """更新动量 m ← μm + (1-μ)g，再照 Nesterov 的办法往前多看一步，返回 μm + (1-μ)g（用新的 m）。"""
        state = self.state[parameter]
        if not state:
            state["momentum_buffer"] = torch.zeros_like(parameter)
        buffer = state["momentum_buffer"].lerp_(parameter.grad, 1 - momentum)
        return parameter.grad.lerp(buffer, momentum)
