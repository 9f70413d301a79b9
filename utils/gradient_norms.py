"""梯度的范数：裁剪用总的，报告画每一块的。"""

import re
from collections import defaultdict

import torch
from torch import Tensor, nn

from utils import sharded_tensor
from utils.parallel import OneProcess

EPS = 1e-6  # 与 nn.utils.clip_grad_norm_ 相同
BLOCK = re.compile(r"trf_blocks\.(\d+)\.")
EMBEDDINGS = ("tok_emb", "position")


def clip_gradients(
    model: nn.Module, limit: float, parallel: OneProcess | None = None
) -> tuple[float, dict[str, Tensor]]:
    """总范数超过 limit 就按比例缩小全部梯度；-> (缩小之前的总范数, {参数名: 它的范数})

    结果与 nn.utils.clip_grad_norm_ 逐位相同；各参数的范数本来就要算，留下来不多花时间。
    """
    parallel = parallel or OneProcess()
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.grad is not None}
    gradients = [sharded_tensor.local(parameter.grad) for parameter in trained.values()]
    norms = parallel.whole_norms(list(torch._foreach_norm(gradients)))
    total = torch.linalg.vector_norm(torch.stack(norms))
    torch._foreach_mul_(gradients, (limit / (total + EPS)).clamp(max=1.0))
    return total.item(), dict(zip(trained, norms, strict=True))


def norms_by_part(norms: dict[str, Tensor]) -> dict[str, float]:
    """{参数名: 范数} -> {嵌入、第 1 层 … 输出: 范数}，依前向的次序；共用的输出矩阵算在嵌入里。"""
    squares = defaultdict(float)
    for name, norm in norms.items():
        squares[_part_of(name)] += norm.item() ** 2
    return {part: square**0.5 for part, square in squares.items()}


def _part_of(name: str) -> str:
    if match := BLOCK.match(name):
        return f"第 {int(match[1]) + 1} 层"  # 给人看的从 1 数起
    return "嵌入" if name.startswith(EMBEDDINGS) else "输出"
