"""交叉熵：模型给正确答案的概率越低，损失越大。道理见 docs/损失与困惑度.md。"""

import torch
from torch import Tensor

IGNORE_INDEX = -100  # 目标为它的位置不计损失


def cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """平均的 -log p(目标)，单位 nat/token，只算目标不是 IGNORE_INDEX 的行；数值等于 F.cross_entropy。
    一行也不计时是 0。

    logits (rows, vocab_size), targets (rows,) -> 标量，float32
    """
    return _CrossEntropy.apply(logits, targets)


class _CrossEntropy(torch.autograd.Function):
    """梯度是 (p - 目标的独热向量) / 计损失的行数，由前向的结果就地算出，不必再建几张同样大的表。"""

    @staticmethod
    def forward(ctx, logits: Tensor, targets: Tensor) -> Tensor:
        supervised = targets != IGNORE_INDEX
        columns = targets.where(supervised, 0)[:, None]
        count = supervised.sum().clamp(min=1)
        log_p = logits.log_softmax(dim=-1, dtype=torch.float32)
        loss = -log_p.gather(1, columns).squeeze(1).where(supervised, 0.0).sum() / count
        if ctx.needs_input_grad[0]:
            gradient = log_p.exp_().scatter_add_(1, columns, -torch.ones_like(columns, dtype=torch.float32))
            gradient.div_(count)[~supervised] = 0.0
            ctx.save_for_backward(gradient.to(logits.dtype))
        return loss

    @staticmethod
    def backward(ctx, grad_output: Tensor) -> tuple[Tensor, None]:
        (gradient,) = ctx.saved_tensors
        return gradient * grad_output, None
