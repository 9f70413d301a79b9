"""训练到什么时候为止：按轮数、步数还是时间，以及按时间时要给收尾留多少。"""

import math
import time
from typing import TYPE_CHECKING

from utils.evaluation_schedule import plan_evaluations

if TYPE_CHECKING:
    from utils.train_utils import Trainer

FINISHING_SECONDS = 3.0  # 训练结束后写样文、画曲线大约要几秒
ENDLESS = 2**63 - 1  # 不限


class Budget:
    """轮数、步数、时间，先到者为准。轮数按样本数算：中途换了批量，也正好看完这么多轮。"""

    def __init__(
        self,
        epochs: int = ENDLESS,
        max_steps: int = ENDLESS,
        max_seconds: float = math.inf,
        seconds_per_step: float = 0.0,
    ):
        self.epochs, self.max_steps, self.max_seconds = epochs, max_steps, max_seconds
        self.seconds_per_step = seconds_per_step
        self.continue_after(0.0)

    def continue_after(self, seconds: float) -> None:
        """从现在起接着计时，之前已经训练了 seconds 秒。"""
        self._started = time.monotonic() - seconds

    @property
    def seconds(self) -> float:
        """训练至今的秒数，中断的时间不算；用单调时钟，改系统时间没有影响。"""
        return time.monotonic() - self._started

    def progress(self, trainer: "Trainer") -> float:
        """0 是刚开始，达到 1 就该停。"""
        total = self.epochs * trainer.steps_per_epoch
        done = total - self._steps_in_epochs(trainer)
        return max(done / total, trainer.step / self.max_steps, self.seconds / max(1e-9, self.max_seconds))

    def _steps_in_epochs(self, trainer: "Trainer") -> int:
        """还没用过的样本，照现在的批量要更新几次参数。"""
        samples_left = len(trainer.train_loader.sampler) - trainer.samples_done
        in_this_epoch = math.ceil(samples_left / trainer.update_size)
        return max(0, (self.epochs - trainer.epoch) * trainer.steps_per_epoch + in_this_epoch)

    def steps_left(self, trainer: "Trainer") -> int:
        """还要走几步；按时间停止的不算在内。"""
        return max(0, min(self._steps_in_epochs(trainer), self.max_steps - trainer.step))

    def total_steps(self, trainer: "Trainer") -> int:
        """照现在的批量，从头到尾要走几步。"""
        return min(self.epochs * trainer.steps_per_epoch, self.max_steps)

    def epochs_at_end(self, trainer: "Trainer") -> float:
        """到停下时一共看了几轮。"""
        done = trainer.samples_done / len(trainer.train_loader.sampler)
        return min(self.epochs, trainer.epoch - 1 + done + self.steps_left(trainer) / trainer.steps_per_epoch)

    def planned_seconds(self, trainer: "Trainer") -> float:
        """照试跑的快慢，训练一共要多少秒。"""
        return min((trainer.step + self.steps_left(trainer)) * self.seconds_per_step, self.max_seconds)

    def finish(self, trainer: "Trainer") -> None:
        """走到这里为止。"""
        self.max_steps = trainer.step


def plan_budget(trainer: "Trainer", command_started: float) -> Budget:
    """试跑几步，定下训练的时间；--max_minutes 管整个命令，所以要给结束时的评估和画图留出时间。"""
    settings = trainer.settings
    seconds_per_step = trainer.rehearse()
    limits = settings.epochs, settings.max_steps or ENDLESS
    plan_evaluations(trainer, Budget(*limits).total_steps(trainer), seconds_per_step)
    if not settings.max_minutes:
        return Budget(*limits, seconds_per_step=seconds_per_step)
    seconds = 60 * settings.max_minutes
    finishing = seconds_per_step + trainer.evaluation_seconds(seconds_per_step) + FINISHING_SECONDS
    if not trainer.evaluates_everything:
        finishing += trainer.forward_seconds(seconds_per_step) * len(trainer.validate_loader.dataset)
    max_seconds = command_started + seconds - min(finishing, seconds / 5) - time.monotonic()
    return Budget(*limits, max_seconds, seconds_per_step)


def carry_over(samples_done: int, old_size: int, new_size: int) -> int:
    """数据换过，一轮由 old_size 个样本变成 new_size 个：做过的照份额折算；做完的仍是做完，没做完的仍没做完。"""
    return min(samples_done, old_size) * new_size // old_size
