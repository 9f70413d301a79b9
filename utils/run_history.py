"""训练报告的素材：每次评估时另外看到的东西和样文。随检查点保存，接着训练的报告才有全程。"""

from dataclasses import asdict, dataclass, field, fields
from typing import Any

from utils.step_history import StepHistory, is_number


@dataclass(frozen=True)
class Sample:
    """模型写的一段。"""

    prompt: str  # 给它的开头
    text: str  # 它写的
    expected: str = ""  # 本来应该写什么；没有标准答案则为空
    copied: list[list[int]] | None = None  # text 里照抄原文的片段 [开始, 结束)；没有查过则为 None

    @property
    def copy_rate(self) -> float:
        """照抄的占多少。"""
        return sum(end - start for start, end in self.copied or []) / max(1, len(self.text))


@dataclass(frozen=True)
class Observation:
    """一次评估时，Evaluation 以外的东西。"""

    step: int
    tokens_per_second: float | None  # 上次评估以来的训练速度，评估的时间不算；还没有训练则为 None
    memory_bytes: int  # 进程占的内存；在 GPU 上是显存的峰值
    gradient_norms: dict[str, float]  # 最近一步各部分的梯度范数；还没有训练则为空
    samples: list[Sample] = field(default_factory=list)  # 多数评估不写


@dataclass
class RunHistory:
    """一次训练至今的全部素材。"""

    commands: list[str] = field(default_factory=list)  # 开始时和每次接着训练时的命令
    observations: list[Observation] = field(default_factory=list)
    gradient_norms: dict[str, float] = field(default_factory=dict)  # 最近一步的
    sampling_seconds: float = 0.0  # 写样文一共用了多久
    steps: StepHistory = field(default_factory=StepHistory)  # 每一步的损失和学习率

    @property
    def num_sampled(self) -> int:
        """写过几次样文。"""
        return sum(bool(observation.samples) for observation in self.observations)

    def state(self) -> dict:
        return asdict(self)

    @classmethod
    def from_state(cls, state: dict) -> "RunHistory":
        """state() 的逆；内容不对就抛出 ValueError、TypeError 或 LookupError。"""
        observations = [_observation_of(item) for item in state["observations"]]
        steps = StepHistory.from_state(state["steps"]) if "steps" in state else StepHistory()  # 早期的检查点没有
        history = cls(**{**state, "observations": observations, "steps": steps})
        is_right = (
            state.keys() | {"steps"} == {item.name for item in fields(cls)}
            and isinstance(history.commands, list)
            and all(isinstance(command, str) for command in history.commands)
            and _are_norms(history.gradient_norms)
            and is_number(history.sampling_seconds)
        )
        if not is_right:
            raise ValueError
        return history


def _observation_of(state: dict) -> Observation:
    norms = {name.replace("块", "层"): norm for name, norm in state["gradient_norms"].items()}  # 早期的叫“第 1 块”
    samples = [Sample(**item) for item in state["samples"]]
    observation = Observation(**{**state, "gradient_norms": norms, "samples": samples})
    is_right = (
        type(observation.step) is int
        and (observation.tokens_per_second is None or is_number(observation.tokens_per_second))
        and type(observation.memory_bytes) is int
        and _are_norms(observation.gradient_norms)
        and all(map(_is_sample, observation.samples))
    )
    if not is_right:
        raise ValueError
    return observation


def _is_sample(sample: Sample) -> bool:
    texts = (sample.prompt, sample.text, sample.expected)
    cuts = [0, *(position for start, end in sample.copied or [] for position in (start, end)), len(sample.text)]
    return (
        all(isinstance(text, str) for text in texts) and all(type(cut) is int for cut in cuts) and cuts == sorted(cuts)
    )


def _are_norms(value: Any) -> bool:
    return all(isinstance(name, str) and is_number(norm) for name, norm in value.items())
