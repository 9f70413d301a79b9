"""压缩权重的线性层：生成时一次只算一行，时间都花在读权重上，字节少了就快。

进出的张量都是 float32；一行的输入先舍入成内核要的精度，累加用 float32。
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class CompactLinear(nn.Module):
    """(..., in_features) -> (..., out_features)。一行和多行（读提示语）各有最快的算法，由子类给出。"""

    def __init__(self, linear: nn.Linear):
        super().__init__()
        self.bias = linear.bias

    @staticmethod
    def can_hold(weight: Tensor) -> bool:
        """这个格式存得下 weight 吗；存不下的层留着 float32。"""
        return True

    def one_row(self, x: Tensor) -> Tensor:
        """(1, in_features) -> (1, out_features)"""
        raise NotImplementedError

    def many_rows(self, x: Tensor) -> Tensor:
        """(rows, in_features) -> (rows, out_features)"""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        rows = x.reshape(-1, x.shape[-1])
        y = self.one_row(rows) if len(rows) == 1 else self.many_rows(rows)
        y = y.float() if self.bias is None else y + self.bias
        return y.view(*x.shape[:-1], -1)


class Float16Linear(CompactLinear):
    """权重存成 float16，每个数的舍入误差不超过万分之五。多行时 CPU 的 float16 矩阵乘法很慢，换回 float32 再算。"""

    def __init__(self, linear: nn.Linear):
        super().__init__(linear)
        self.weight = linear.weight.detach().half()

    @staticmethod
    def can_hold(weight: Tensor) -> bool:
        smallest, largest = torch.aminmax(weight)
        return bool(max(-smallest, largest) <= torch.finfo(torch.float16).max)

    def one_row(self, x: Tensor) -> Tensor:
        y = F.linear(x.half(), self.weight)
        # 超出 float16 的 65504 才会不是有限数，这一行就用 float32 重算
        return y if math.isfinite(y.float().sum().item()) else self.many_rows(x)

    def many_rows(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight.float())


class BFloat16Linear(CompactLinear):
    """权重存成 bfloat16，每个数的舍入误差不超过千分之四，不会溢出。"""

    def __init__(self, linear: nn.Linear):
        super().__init__(linear)
        self.weight = linear.weight.detach().bfloat16()

    def one_row(self, x: Tensor) -> Tensor:
        return torch.mv(self.weight, x[0].bfloat16())[None]  # 同样的一行，有矩阵指令的处理器上 mv 比 linear 快四成

    def many_rows(self, x: Tensor) -> Tensor:
        return F.linear(x.bfloat16(), self.weight)


class Int8Linear(CompactLinear):
    """权重存成 int8，每个输出通道一个尺度：w ≈ scale · q，q ∈ [-127, 127]。误差约百分之一。"""

    def __init__(self, linear: nn.Linear):
        super().__init__(linear)
        weight = linear.weight.detach()
        scales = weight.abs().amax(dim=1).div_(127).clamp_(min=torch.finfo(torch.bfloat16).tiny).bfloat16()
        self.weight = (weight / scales[:, None]).round_().clamp_(-127, 127).to(torch.int8)
        self.scales = scales  # 内核要求与输入同是 bfloat16；先舍入再量化，舍入的误差就不会进到结果里

    @staticmethod
    def can_hold(weight: Tensor) -> bool:
        return weight.shape[1] % 32 == 0  # 内核成组地读，凑不满一组时会读过界，也不报错

    def one_row(self, x: Tensor) -> Tensor:
        return torch._weight_int8pack_mm(x.bfloat16(), self.weight, self.scales)

    def many_rows(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight * self.scales.float()[:, None])


FORMATS = {"float16": Float16Linear, "bfloat16": BFloat16Linear, "int8": Int8Linear}


def compact_weights(model: nn.Module, name: str) -> None:
    """把 model 里的线性层都换成 FORMATS[name]；嵌入、归一化仍是 float32。

    bfloat16 时键和值本来就是 bfloat16 的乘积，KV 缓存也用它：上下文很长时，读缓存的字节也少一半。
    """
    model.cache_dtype = torch.bfloat16 if name == "bfloat16" else torch.float32
    for module in list(model.modules()):
        for child_name, child in module.named_children():
            if isinstance(child, nn.Linear) and FORMATS[name].can_hold(child.weight):
                setattr(module, child_name, FORMATS[name](child))
