"""比较：同样的输入，我们的模块和参照各算一遍，看输出和梯度差多少。

不同时，拿我们的结果去对照一个个“故意写错的参照”：与哪一个相同，就是犯了哪一种错。
"""

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from checks.building import SEED, Tensors, WrongParameters
from checks.failure import describe_exception

TOLERANCE = 2e-5  # float32 的舍入误差在 1e-6 上下；最细微的错（GELU 换了近似）差 2e-4

UNKNOWN = "猜不出；从差得最远的那个数找起"
WRONG_SHAPE = "猜不出；把各步的形状打印出来，看从哪一步起不对"
NOT_A_NUMBER = "猜不出；算出了 nan：是不是整行都遮住了，或者有 0 ÷ 0、∞ − ∞、给负数开方"

Function = Callable[[Tensors], Tensors | Tensor]


@dataclass(frozen=True)
class Suspect:
    """一种已知的错法：照 changes 改动参照，得到的就是犯这个错的人会得到的结果。"""

    guess: str
    changes: dict


@dataclass(frozen=True)
class Check:
    """一项比较。build_reference(**changes) 返回一个函数；不给 changes 时就是正确的参照。"""

    name: str
    inputs: Callable[[], Tensors]  # 要求梯度的输入，也包括权重
    ours: Function
    build_reference: Callable[..., Function]
    suspects: list[Suspect] = field(default_factory=list)
    tolerance: float = TOLERANCE


@dataclass(frozen=True)
class Result:
    """一项比较的结果；problem 为空表示相同。差别算不出来时是 None。"""

    name: str
    output_difference: float | None = None
    gradient_difference: float | None = None
    problem: str = ""  # 哪里不同
    guess: str = ""  # 猜是什么错；空表示猜不出
    clue: str = ""  # 猜不出时的线索
    trace: str = ""  # 出错的文件和行

    @property
    def passed(self) -> bool:
        return not self.problem


@dataclass(frozen=True)
class Measured:
    """算一遍的结果：输出，以及它的一个随机加权和对每个输入的梯度。"""

    outputs: Tensors
    gradients: Tensors


def compare(check: Check, max_mistakes: int = 2) -> Result:
    """做一项比较，最多猜到几处错同时有；我们的代码抛出什么异常都变成结果里的一句话。"""
    expected = measure(check.build_reference(), check.inputs())
    try:
        found = measure(check.ours, check.inputs())
    except WrongParameters as error:
        return Result(check.name, problem=error.problem, guess=error.guess)
    except Exception as error:  # 学习者的代码可能抛出任何异常
        problem, trace = describe_exception(error)
        return Result(check.name, problem=problem, trace=trace)
    output = difference(found.outputs, expected.outputs)
    gradient = difference(found.gradients, expected.gradients)
    shown = {"output_difference": output, "gradient_difference": gradient if found.gradients else None}
    if max(output, gradient) <= check.tolerance:
        return Result(check.name, **shown)
    guess = _guess(check, found, max_mistakes)
    if problem := _wrong_shapes(found.outputs, expected.outputs):
        return Result(check.name, problem=problem, guess=guess, clue=WRONG_SHAPE)
    if output > check.tolerance:
        problem, clue = _worst(found.outputs, expected.outputs), _clue(found.outputs, expected.outputs)
        return Result(check.name, **shown, problem=problem, guess=guess, clue=clue)
    problem = f"输出相同，梯度不同：{_worst(found.gradients, expected.gradients)}"
    return Result(check.name, **shown, problem=problem, guess=guess or "是不是用了 detach()、.data 或 no_grad()")


def measure(function: Function, inputs: Tensors) -> Measured:
    """固定随机数，算输出和梯度。"""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        outputs = function(inputs)
    outputs = outputs if isinstance(outputs, dict) else {"输出": outputs}
    for name, output in outputs.items():
        if not isinstance(output, Tensor):
            raise WrongParameters(f"{name}应为张量，得到 {type(output).__name__}", "忘了写 return" * (output is None))
    leaves = {name: tensor for name, tensor in inputs.items() if tensor.requires_grad}
    if not leaves:
        return Measured({name: output.detach() for name, output in outputs.items()}, {})
    generator = torch.Generator().manual_seed(SEED)
    parts = [(output * torch.randn(output.shape, generator=generator)).sum() for output in outputs.values()]
    gradients = [None] * len(leaves)
    if (total := sum(parts)).requires_grad:
        gradients = torch.autograd.grad(total, list(leaves.values()), allow_unused=True)
    return Measured(
        {name: output.detach() for name, output in outputs.items()},
        {
            name: torch.zeros_like(leaf) if gradient is None else gradient
            for (name, leaf), gradient in zip(leaves.items(), gradients, strict=True)
        },
    )


def difference(found: Tensors, expected: Tensors) -> float:
    """各张量里最大的差；参照里最大的数大于 1 时，除以它。都是 nan 算相同，名字或形状不同算无穷大。"""
    if found.keys() != expected.keys():
        return math.inf
    largest = 0.0
    for name, reference in expected.items():
        if found[name].shape != reference.shape:
            return math.inf
        if reference.numel() == 0:
            continue
        same = (found[name] == reference) | (found[name].isnan() & reference.isnan())
        gap = (found[name] - reference).abs().where(~same, 0.0) / reference.abs().nan_to_num().max().clamp(min=1.0)
        largest = max(largest, gap.nan_to_num(nan=math.inf).max().item())
    return largest


def _guess(check: Check, found: Measured, max_mistakes: int) -> str:
    """与哪个写错的参照相同；一处错都不像时，再试几处同时错的。"""
    for count in range(1, max_mistakes + 1):
        for suspects in itertools.combinations(check.suspects, count):
            names = [name for suspect in suspects for name in suspect.changes]
            if len(names) == len(set(names)) and _is_same(check, found, suspects):
                return "；".join(suspect.guess for suspect in suspects)
    return ""


def _is_same(check: Check, found: Measured, suspects: tuple[Suspect, ...]) -> bool:
    changes = {name: value for suspect in suspects for name, value in suspect.changes.items()}
    try:
        wrong = measure(check.build_reference(**changes), check.inputs())
    except Exception:  # 几处错合在一起可能根本算不了
        return False
    pairs = ((found.outputs, wrong.outputs), (found.gradients, wrong.gradients))
    return all(difference(*pair) <= check.tolerance for pair in pairs)


def _clue(found: Tensors, expected: Tensors) -> str:
    """哪个模块都可能有的毛病：算出 nan，整个输出乘了一个数。"""
    if any(tensor.isnan().any() and not expected[name].isnan().any() for name, tensor in found.items()):
        return NOT_A_NUMBER
    ours, right = (torch.cat([part.flatten().double() for part in parts.values()]) for parts in (found, expected))
    factor = (ours @ right / (right @ right)).item()
    if not abs(factor) > TOLERANCE or difference({"": ours}, {"": factor * right}) > TOLERANCE:
        return UNKNOWN
    return "整个输出的符号反了" if abs(factor + 1) < TOLERANCE else f"整个输出恰好是应有的 {factor:.4g} 倍"


def _wrong_shapes(found: Tensors, expected: Tensors) -> str:
    for name, reference in expected.items():
        if name not in found:
            return f"缺少{name}"
        if found[name].shape != reference.shape:
            return f"{name}的形状是 {tuple(found[name].shape)}，应为 {tuple(reference.shape)}"
    return ""


def _worst(found: Tensors, expected: Tensors) -> str:
    """差得最远的一个数。"""
    gaps = {name: (found[name] - reference).abs().nan_to_num(nan=math.inf) for name, reference in expected.items()}
    name = max(gaps, key=lambda name: gaps[name].max().item())
    place = torch.unravel_index(gaps[name].argmax(), gaps[name].shape)
    index = f"[{', '.join(str(axis.item()) for axis in place)}]" if place else ""
    values = [tensors[name][place].item() for tensors in (found, expected)]
    return f"{name}{index} 是 {values[0]:.4g}，应为 {values[1]:.4g}"


def fact_check(name: str, ours: Callable[[], dict], expected: dict, suspects: list, tolerance: float) -> Check:
    """比较几个数，如标准差、参数个数；没有梯度。"""

    def as_tensors(values: dict) -> Tensors:
        return {key: torch.as_tensor(value, dtype=torch.float64).detach() for key, value in values.items()}

    def build_reference(**changes) -> Function:
        return lambda inputs: as_tensors(expected | changes)

    return Check(name, dict, lambda inputs: as_tensors(ours()), build_reference, suspects, tolerance)
