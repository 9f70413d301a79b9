"""检查 model/feed_forward.py：参照是 F.gelu、F.relu、F.silu 和 F.linear。"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from checks.building import Tensors, install, linear_shapes, random_inputs, tiny_config
from checks.comparison import Check, Suspect
from model.config import ModelConfig
from model.feed_forward import GELU, SquaredReLU, build_feed_forward, gelu_by_definition

USES = ()
Activation = Callable[[Tensor], Tensor]


def gelu(x: Tensor) -> Tensor:
    return F.gelu(x, approximate="tanh")


@dataclass(frozen=True)
class TanhGELU:
    """tanh 近似的 GELU，每一步都可以改错。"""

    half: float = 0.5
    one: float = 1.0
    factor: float = math.sqrt(2 / math.pi)
    cubic: float = 0.044715
    power: int = 3

    def __call__(self, x: Tensor) -> Tensor:
        return self.half * x * (self.one + torch.tanh(self.factor * (x + self.cubic * x**self.power)))


# 错法：{激活函数: 猜测}
WRONG_GELU = {
    F.gelu: "GELU 用了 erf 的精确式，应为 tanh 近似",
    lambda x: x * torch.sigmoid(1.702 * x): "GELU 用了 sigmoid(1.702x) 的近似，应为 tanh 近似",
    TanhGELU(half=1.0): "GELU 漏了开头的 0.5",
    TanhGELU(one=0.0): "GELU 的括号里漏了 1 +",
    TanhGELU(factor=1.0): "GELU 漏了系数 √(2/π)",
    TanhGELU(factor=2 / math.pi): "GELU 的 2/π 没有开平方",
    TanhGELU(factor=math.sqrt(math.pi / 2)): "GELU 的 √(2/π) 写倒了",
    TanhGELU(cubic=0.0): "GELU 漏了 0.044715x³ 这一项",
    TanhGELU(cubic=0.44715): "GELU 的 0.044715 错了小数点",
    TanhGELU(power=2): "GELU 的 x³ 写成了 x²",
    F.relu: "用了 ReLU，不是 GELU",
    F.silu: "用了 SiLU，不是 GELU",
    torch.tanh: "只有 tanh，不是 GELU",
    lambda x: x: "没有激活函数",
}
WRONG_EXACT_GELU = {
    gelu: "GELU 用了 tanh 近似，应为 erf 的精确式",
    lambda x: x * torch.sigmoid(1.702 * x): "GELU 用了 sigmoid(1.702x) 的近似，应为 erf 的精确式",
    F.relu: "用了 ReLU，不是 GELU",
    F.silu: "用了 SiLU，不是 GELU",
    lambda x: x: "没有激活函数",
}
WRONG_SQUARED_RELU = {
    F.relu: "ReLU 之后没有平方",
    torch.square: "平方之前没有 ReLU，负数也留下了",
    lambda x: F.relu(x) ** 3: "ReLU 之后是立方，应为平方",
    lambda x: F.relu(-x).square(): "ReLU 的符号反了",
    gelu: "用了 GELU，不是 ReLU²",
    lambda x: x: "没有激活函数",
}
WRONG_GATE = {
    torch.sigmoid: "门用了 sigmoid，应为 SiLU（x·sigmoid(x)）",
    gelu: "门用了 GELU（那是 GeGLU），应为 SiLU",
    F.gelu: "门用了 GELU（那是 GeGLU），应为 SiLU",
    F.relu: "门用了 ReLU（那是 ReGLU），应为 SiLU",
    lambda x: x: "门没有激活函数，应为 SiLU",
}


def as_suspects(wrong: dict[Activation, str]) -> list[Suspect]:
    return [Suspect(guess, {"activation": function}) for function, guess in wrong.items()]


def squared_relu(x: Tensor) -> Tensor:
    return F.relu(x).square()


@dataclass(frozen=True)
class Plain:
    """两层的前馈网络。"""

    activation: Activation
    activates_last: bool = False
    adds_input: bool = False
    bias: tuple[bool, bool] = (True, True)

    def __call__(self, inputs: Tensors) -> Tensor:
        up, down = (
            lambda x, n=name, b=has_bias: F.linear(x, inputs[f"{n}.weight"], inputs.get(f"{n}.bias") if b else None)
            for name, has_bias in zip(("layers.0", "layers.2"), self.bias, strict=True)
        )
        if self.activates_last:
            return self.activation(down(up(inputs["x"])))
        output = down(self.activation(up(inputs["x"])))
        return inputs["x"] + output if self.adds_input else output


@dataclass(frozen=True)
class Gated:
    """SwiGLU 前馈网络。"""

    activation: Activation = F.silu
    swaps: bool = False  # gate 与 up 对调
    combine: Callable[[Tensor, Tensor], Tensor] = torch.mul
    activates_product: bool = False
    projects: bool = True
    adds_input: bool = False

    def __call__(self, inputs: Tensors) -> Tensor:
        gate, up = (F.linear(inputs["x"], inputs[f"{n}.weight"], inputs.get(f"{n}.bias")) for n in ("gate", "up"))
        gate, up = (up, gate) if self.swaps else (gate, up)
        hidden = self.combine(gate if self.activates_product else self.activation(gate), up)
        hidden = self.activation(hidden) if self.activates_product else hidden
        if not self.projects:
            return hidden
        output = F.linear(hidden, inputs["out_proj.weight"], inputs.get("out_proj.bias"))
        return inputs["x"] + output if self.adds_input else output


ADDS_INPUT = Suspect("多加了残差：残差在块里加，这里不加", {"adds_input": True})
PLAIN_SUSPECTS = [
    ADDS_INPUT,
    Suspect("激活函数的位置不对：应在两个线性层之间", {"activates_last": True}),
    Suspect("第一层没有加偏置", {"bias": (False, True)}),
    Suspect("第二层没有加偏置", {"bias": (True, False)}),
]
GATED_SUSPECTS = [
    *as_suspects(WRONG_GATE),
    ADDS_INPUT,
    Suspect("激活了乘积：只该激活 gate，再乘 up", {"activates_product": True}),
    Suspect("漏了 out_proj：没有降回 emb_dim 维", {"projects": False}),
    Suspect("gate 与 up 用反了：激活的应是 gate", {"swaps": True}),
    Suspect("门应与 up 逐元素相乘，写成了相加", {"combine": torch.add}),
    Suspect("漏了 up：没有乘上它", {"combine": lambda gate, up: gate}),
    Suspect("漏了 gate：只用了 up", {"combine": lambda gate, up: up}),
]


def parameter_shapes(cfg: ModelConfig) -> dict[str, tuple[int, ...]]:
    """前馈网络的参数。"""
    ups, down = (("gate", "up"), "out_proj") if cfg.activation == "swiglu" else (("layers.0",), "layers.2")
    shapes = {}
    for name in ups:
        shapes |= linear_shapes(name, cfg.hidden_dim, cfg.emb_dim, cfg.bias)
    return shapes | linear_shapes(down, cfg.emb_dim, cfg.hidden_dim, cfg.bias)


def _points() -> Tensors:
    return {"x": torch.linspace(-6, 6, 101).requires_grad_()}


def _activation_check(name: str, ours: Activation, correct: Activation, wrong: dict[Activation, str]) -> Check:
    def build_reference(activation: Activation = correct):
        return lambda inputs: activation(inputs["x"])

    return Check(name, _points, lambda inputs: ours(inputs["x"]), build_reference, as_suspects(wrong))


def _module_check(kind: str, build_reference, suspects: list[Suspect]) -> Check:
    cfg = tiny_config(activation=kind, hidden_dim=48)

    def ours(inputs: Tensors) -> Tensor:
        parameters = {name: tensor for name, tensor in inputs.items() if name != "x"}
        return install(build_feed_forward(cfg), parameters)(inputs["x"])

    def inputs() -> Tensors:
        return random_inputs(x=(2, 5, cfg.emb_dim), **parameter_shapes(cfg))

    return Check(f"前馈网络，{kind}", inputs, ours, build_reference, suspects)


CHECKS = [
    _activation_check("gelu_by_definition", gelu_by_definition, gelu, WRONG_GELU),
    _activation_check("GELU", lambda x: GELU()(x), gelu, WRONG_GELU),
    _activation_check("SquaredReLU", lambda x: SquaredReLU()(x), squared_relu, WRONG_SQUARED_RELU),
    _module_check(
        "gelu",
        lambda activation=gelu, **changes: Plain(activation, **changes),
        PLAIN_SUSPECTS + as_suspects(WRONG_GELU),
    ),
    _module_check(
        "gelu_exact",
        lambda activation=F.gelu, **changes: Plain(activation, **changes),
        PLAIN_SUSPECTS + as_suspects(WRONG_EXACT_GELU),
    ),
    _module_check(
        "relu2",
        lambda activation=squared_relu, **changes: Plain(activation, **changes),
        PLAIN_SUSPECTS + as_suspects(WRONG_SQUARED_RELU),
    ),
    _module_check("swiglu", lambda **changes: Gated(**changes), GATED_SUSPECTS),
]
