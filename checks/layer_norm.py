"""检查 model/layer_norm.py：参照是 F.layer_norm 和 F.rms_norm。"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from checks.building import Tensors, install, random_inputs, tiny_config
from checks.comparison import Check, Suspect, fact_check
from model.layer_norm import LayerNorm, RMSNorm, build_norm, layer_norm_by_definition, rms_norm_by_definition

USES = ()
EPS = 1e-5  # GPT-2 的取值；不从 model/ 引用，那边改错了才看得出来
OTHER_EPS = 1e-3  # 配置里写了 norm_eps 时
DIM = 16
SCALES = (1.0, 0.01, 3.0)  # 有一行的方差只有 1e-4，eps 写错一点也显出来


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor | None, eps: float = EPS) -> Tensor:
    return F.layer_norm(x, weight.shape, weight, bias, eps)


def rms_norm(x: Tensor, weight: Tensor, eps: float = EPS) -> Tensor:
    return F.rms_norm(x, weight.shape, weight, eps)


@dataclass(frozen=True)
class Normalize:
    """照公式写的归一化，每一步都可以改错；centers 只减分子，LayerNorm 的方差总是对均值算的。"""

    centers: bool
    about_mean: bool
    flips: bool = False  # 均值减去 x
    axis: int | tuple[int, ...] = -1
    divisor: int = 0  # 方差除以 n - divisor
    sums: bool = False  # 忘了除以 n
    eps: float = EPS
    eps_outside: bool = False  # ε 加在根号外面
    power: float = 0.5  # 0.5 是开平方
    scales: bool = True
    shifts: bool = True
    shifts_first: bool = False

    def __call__(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        mean = x.mean(dim=self.axis, keepdim=True)
        deviation = x - mean if self.about_mean else x
        count = x.numel() // mean.numel()
        variance = deviation.square().sum(dim=self.axis, keepdim=True) / (1 if self.sums else count - self.divisor)
        scale = variance**self.power + self.eps if self.eps_outside else (variance + self.eps) ** self.power
        y = (x - mean if self.centers else x) / (-scale if self.flips else scale)
        if self.shifts_first and bias is not None:
            return (y + bias) * weight
        y = y * weight if self.scales else y
        return y + bias if self.shifts and bias is not None else y


SHARED = [
    *(Suspect("eps 不对：应为 1e-5", {"eps": eps}) for eps in (0.0, 1e-12, 1e-8, 1e-6, 1e-4, 1e-3)),
    Suspect("eps 的位置不对：应加在根号里面", {"eps_outside": True}),
    Suspect("归一化的轴不对：应为最后一维 dim=-1", {"axis": -2}),
    Suspect("归一化的轴不对：应为最后一维 dim=-1", {"axis": 0}),
    Suspect("归一化的轴不对：每个 token 应单独归一化", {"axis": (0, 1, 2)}),
    Suspect("没有开平方：除以的是方差", {"power": 1.0}),
    Suspect("没有除以标准差", {"power": 0.0}),
    Suspect("没有乘缩放 γ（weight）", {"scales": False}),
]
LAYER_NORM_SUSPECTS = [
    *SHARED,
    Suspect("用了无偏方差：应除以 n，不是 n-1，即 unbiased=False", {"divisor": 1}),
    Suspect("没有减去均值", {"centers": False}),
    Suspect("分子的次序反了：应为 x 减均值", {"flips": True}),
    Suspect("方差没有减去均值：算成了 E[x²]", {"about_mean": False}),
    Suspect("没有减去均值：算成了 RMSNorm", {"centers": False, "about_mean": False}),
    Suspect("没有加偏置 β（bias）", {"shifts": False}),
    Suspect("次序不对：应先乘 γ 再加 β", {"shifts_first": True}),
]
RMS_NORM_SUSPECTS = [
    *SHARED,
    Suspect("多减了均值：RMSNorm 不减均值", {"centers": True}),
    Suspect("多减了均值：算成了 LayerNorm", {"centers": True, "about_mean": True}),
    Suspect("应取平均，写成了求和", {"sums": True}),
]


def _inputs(*names: str) -> Tensors:
    tensors = random_inputs(x=(3, 5, DIM), **{name: (DIM,) for name in names})
    x = tensors["x"].detach() * torch.tensor(SCALES).view(3, 1, 1) + torch.tensor([0.5, 0.005, 1.0]).view(3, 1, 1)
    return {**tensors, "x": x.requires_grad_()}


def _parameters(inputs: Tensors) -> Tensors:
    return {name: tensor for name, tensor in inputs.items() if name != "x"}


def _build(correct, centers: bool):
    """不改动时是 torch 的内核，改动时是照公式写的那一个。"""

    def build_reference(**changes):
        function = Normalize(**{"centers": centers, "about_mean": centers} | changes) if changes else correct
        return lambda inputs: function(*inputs.values())

    return build_reference


def _layer_norm_inputs() -> Tensors:
    return _inputs("weight", "bias")


def _rms_norm_inputs() -> Tensors:
    return _inputs("weight")


def _configured_check(norm: str, inputs: Callable[[], Tensors], correct: Callable[..., Tensor]) -> Check:
    """照配置建立的，ε 也要照配置。"""
    cfg = tiny_config(emb_dim=DIM, norm=norm, norm_eps=OTHER_EPS)
    return Check(
        f"{norm}，norm_eps",
        inputs,
        lambda inputs: install(build_norm(cfg), _parameters(inputs))(inputs["x"]),
        lambda eps=OTHER_EPS: lambda inputs: correct(*inputs.values(), eps=eps),
        [Suspect("eps 不对：应为配置里的 norm_eps", {"eps": EPS})],
    )


def _initial() -> dict[str, float]:
    norms = {"LayerNorm": LayerNorm(DIM), "RMSNorm": RMSNorm(DIM)}
    return {
        f"{kind} 的 {name}，{end}": getattr(parameter, end)().item()
        for kind, norm in norms.items()
        for name, parameter in norm.named_parameters()
        for end in ENDS
    }


ENDS = ("min", "max")
LAYER_NORM_ONES, LAYER_NORM_ZEROS, RMS_NORM_ONES = (
    dict.fromkeys([f"{place}，{end}" for end in ENDS], value)
    for place, value in (("LayerNorm 的 weight", 1.0), ("LayerNorm 的 bias", 0.0), ("RMSNorm 的 weight", 1.0))
)
INITIAL_SUSPECTS = [
    Suspect("LayerNorm 的 γ（weight）应从 1 开始，写成了 0", dict.fromkeys(LAYER_NORM_ONES, 0.0)),
    Suspect("LayerNorm 的 β（bias）应从 0 开始，写成了 1", dict.fromkeys(LAYER_NORM_ZEROS, 1.0)),
    Suspect("RMSNorm 的 γ（weight）应从 1 开始，写成了 0", dict.fromkeys(RMS_NORM_ONES, 0.0)),
]


CHECKS = [
    Check(
        "layer_norm_by_definition",
        _layer_norm_inputs,
        lambda inputs: layer_norm_by_definition(*inputs.values()),
        _build(layer_norm, centers=True),
        LAYER_NORM_SUSPECTS,
    ),
    Check(
        "LayerNorm",
        _layer_norm_inputs,
        lambda inputs: install(LayerNorm(DIM), _parameters(inputs))(inputs["x"]),
        _build(layer_norm, centers=True),
        LAYER_NORM_SUSPECTS,
    ),
    Check(
        "LayerNorm，bias=False",
        _rms_norm_inputs,
        lambda inputs: install(LayerNorm(DIM, bias=False), _parameters(inputs))(inputs["x"]),
        _build(lambda x, weight: layer_norm(x, weight, None), centers=True),
        [suspect for suspect in LAYER_NORM_SUSPECTS if not any(key.startswith("shifts") for key in suspect.changes)],
    ),
    Check(
        "rms_norm_by_definition",
        _rms_norm_inputs,
        lambda inputs: rms_norm_by_definition(*inputs.values()),
        _build(rms_norm, centers=False),
        RMS_NORM_SUSPECTS,
    ),
    Check(
        "RMSNorm",
        _rms_norm_inputs,
        lambda inputs: install(RMSNorm(DIM), _parameters(inputs))(inputs["x"]),
        _build(rms_norm, centers=False),
        RMS_NORM_SUSPECTS,
    ),
    _configured_check("layer_norm", _layer_norm_inputs, layer_norm),
    _configured_check("rms_norm", _rms_norm_inputs, rms_norm),
    fact_check(
        "刚建好的参数", _initial, LAYER_NORM_ONES | LAYER_NORM_ZEROS | RMS_NORM_ONES, INITIAL_SUSPECTS, tolerance=0.0
    ),
]
