"""什么时候评估，每次看几个样本。没有指定 --eval_freq、--eval_iter 时，由这次训练有多长推出来。"""

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from utils.budget import Budget
    from utils.train_utils import Trainer

MIN_INTERVALS, MAX_INTERVALS = 20, 200  # 全程等分成几段，每走完一段评估一次
TOKENS_PER_INTERVAL = 1_000_000  # 长的训练分得细些：每段这么多 token，按时间停止的每段至少一分钟
SECONDS_PER_INTERVAL = 60.0
FIRST_STEP = 5  # 第一段里损失降得最快：第 5、10、20、40……步也评估
EVALUATION_SHARE = 0.03  # 评估至多占训练时间的这么多
BACKWARD_TIMES = 3  # 反向和更新的时间是前向的几倍，全部参数都训练时
MIN_EVAL_TOKENS, MAX_EVAL_TOKENS = 1_024, 65_536  # 一次评估看多少个 token；再少，损失就只是噪声
ROUNDING = 1e-9  # 7 / 140 * 20 这样的数不因舍入而晚一步


class EvaluationSchedule:
    """哪几步评估；从头到尾每一步都问一次 is_due。只看走到了哪里，所以中断后接着训练，评估的还是那几步。"""

    def __init__(self, every: int | None, intervals: int = MIN_INTERVALS):
        self.every, self.intervals = every, intervals
        self._reached = (-1, 0)

    @classmethod
    def of(cls, trainer: "Trainer", budget: "Budget") -> "EvaluationSchedule":
        """trainer 照 budget 训练要用的；接着训练的从上一次评估之后数起。"""
        intervals = count_intervals(trainer, budget.total_steps(trainer), budget.max_seconds)
        schedule = cls(trainer.settings.eval_freq, intervals)
        if trainer.evaluated_step is not None and trainer.step:
            share = trainer.evaluated_step / trainer.step
            schedule.is_due(trainer.evaluated_step, share * budget.progress(trainer))
        return schedule

    def is_due(self, step: int, progress: float) -> bool:
        """更新了 step 次、走完全程的 progress 之后，要不要评估；每个评估点只答应一次。"""
        place = self._place(step, progress)
        is_new = place > self._reached
        self._reached = max(place, self._reached)
        return is_new

    def _place(self, step: int, progress: float) -> tuple[int, int]:
        """(走完了几段, 第一段里过了几个加密的点)"""
        if self.every:
            return step // self.every, 0
        interval = math.floor(progress * self.intervals + ROUNDING)
        return interval, 0 if interval else (step // FIRST_STEP).bit_length()

    def count(self, steps_left: int, total_steps: int) -> int:
        """还有 steps_left 步时，至多还要评估几次。"""
        if self.every:
            return 2 + steps_left // self.every
        extra = int(total_steps / self.intervals / FIRST_STEP).bit_length()  # 第一段里加密的
        return 1 + min(steps_left, math.ceil(self.intervals * steps_left / total_steps) + extra)


def count_intervals(trainer: "Trainer", total_steps: int, max_seconds: float) -> int:
    """全程分成几段；只看计划，不看快慢。"""
    tokens = total_steps * samples_per_step(trainer) * trainer.tokens_per_sample
    wanted = min(tokens / TOKENS_PER_INTERVAL, max_seconds / SECONDS_PER_INTERVAL)
    return max(MIN_INTERVALS, min(MAX_INTERVALS, int(wanted)))


def samples_per_step(trainer: "Trainer") -> int:
    return trainer.settings.batch_size * trainer.settings.accumulation_steps


def forward_share(trainer: "Trainer") -> float:
    """只算前向，占训练同样多的样本的几成；训练的参数少，反向就省，估得宁多勿少。"""
    sizes = [(parameter.numel(), parameter.requires_grad) for parameter in trainer.model.parameters()]
    trained = sum(size for size, is_trained in sizes if is_trained) / sum(size for size, _ in sizes)
    return 1 / (1 + BACKWARD_TIMES * trained)


def count_samples(trainer: "Trainer", total_steps: int, seconds_per_step: float) -> int:
    """每次评估看训练、验证部分各几个样本，全部评估才不超过训练时间的 EVALUATION_SHARE；极短的训练除外。"""
    settings = trainer.settings
    max_seconds = 60 * (settings.max_minutes or math.inf)
    steps = math.ceil(min(total_steps, max_seconds / max(1e-9, seconds_per_step)))
    num_forward = EVALUATION_SHARE * steps * samples_per_step(trainer) / forward_share(trainer)
    passes = 4 if trainer.calc_accuracy else 2  # 两个部分；准确率另算一遍
    schedule = EvaluationSchedule(settings.eval_freq, count_intervals(trainer, total_steps, max_seconds))
    wanted = num_forward / passes / schedule.count(steps, steps)
    least, most = (tokens / trainer.tokens_per_sample for tokens in (MIN_EVAL_TOKENS, MAX_EVAL_TOKENS))
    return max(1, int(max(least, min(most, wanted))))


def plan_evaluations(trainer: "Trainer", total_steps: int, seconds_per_step: float) -> None:
    """没有指定每次看几个样本，就照训练的长短来定。"""
    if not trainer.settings.eval_iter:
        trainer.evaluate_on(count_samples(trainer, total_steps, seconds_per_step))


def continue_evaluations(trainer: "Trainer", num_samples: int | None) -> None:
    """接着训练：推出来的样本数沿用检查点里记的，前后的损失才能比较。早期的检查点没有记。"""
    if num_samples and not trainer.settings.eval_iter:
        trainer.evaluate_on(num_samples)
