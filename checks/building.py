"""比较用的小模型、随机的输入，和把权重装进模块的办法。"""

import torch
from torch import Tensor, nn

from model.config import ModelConfig

SEED = 0
TINY_MODEL = {
    "vocab_size": 300,
    "context_length": 16,
    "emb_dim": 32,
    "num_heads": 4,
    "num_layers": 2,
    "drop_rate": 0.0,
    "qkv_bias": True,
}

Tensors = dict[str, Tensor]


def tiny_config(**changes) -> ModelConfig:
    """几毫秒就能算完的 GPT-2，可改任何字段。"""
    return ModelConfig.from_dict({**TINY_MODEL, **changes})


class WrongParameters(Exception):
    """模块的参数与应有的不同。"""

    def __init__(self, problem: str, guess: str):
        super().__init__(problem)
        self.problem, self.guess = problem, guess


def random_inputs(**shapes: tuple[int, ...]) -> Tensors:
    """{名字: 要求梯度的随机张量}；矩阵缩小到输出与输入差不多大。"""
    generator = torch.Generator().manual_seed(SEED)
    tensors = {}
    for name, shape in shapes.items():
        scale = shape[-1] ** -0.5 if len(shape) == 2 else 1.0
        tensors[name] = (torch.randn(shape, generator=generator) * scale).requires_grad_()
    return tensors


def linear_shapes(name: str, outputs: int, inputs: int, bias: bool = True) -> dict[str, tuple[int, ...]]:
    """一个线性层的参数的名字和形状。"""
    return {f"{name}.weight": (outputs, inputs)} | ({f"{name}.bias": (outputs,)} if bias else {})


def install(module: nn.Module, parameters: Tensors) -> nn.Module:
    """把 module 的参数换成给定的张量，梯度因此回到它们身上；名字和形状要恰好相同，否则抛出 WrongParameters。"""
    own = dict(module.named_parameters())
    for name in (name for name in parameters if name not in own):  # 依次序：集合的次序每次不同
        guess = "缺偏置" if name.endswith("bias") else "名字变了，或者没有用 nn.Parameter、nn.Linear 这样的部件"
        raise WrongParameters(f"缺少参数 {name}", guess)
    for name in (name for name in own if name not in parameters):
        guess = "多了偏置" if name.endswith("bias") else "权重没有共用" if name == "out_head.weight" else ""
        raise WrongParameters(f"多了参数 {name}", guess)
    places = {id(parameter): [] for parameter in own.values()}
    for owner in module.modules():
        for name, parameter in owner._parameters.items():
            if parameter is not None:
                places[id(parameter)].append((owner, name))
    for path, parameter in own.items():
        if parameter.shape != parameters[path].shape:
            shapes = f"{tuple(parameter.shape)}，应为 {tuple(parameters[path].shape)}"
            raise WrongParameters(f"{path} 的形状是 {shapes}", "形状不对")
        for owner, name in places[id(parameter)]:  # 共用的参数有几个名字
            del owner._parameters[name]
            setattr(owner, name, parameters[path])
    return module
