"""训练到什么时候为止：按轮数、步数还是时间，以及按时间时要给收尾留多少。"""

import math
import time
from typing import TYPE_CHECKING

from utils.evaluation_schedule import plan_evaluations

if TYPE_CHECKING:
    from utils.train_utils import Trainer

FINISHING_SECONDS = 3.0  # 训练结束后写样文、画曲线大约要几秒


class Budget:
    """轮数、步数、时间，先到者为准。"""

    def __init__(self, total_steps: int, max_seconds: float = math.inf, seconds_per_step: float = 0.0):
        self.total_steps, self.max_seconds, self.seconds_per_step = total_steps, max_seconds, seconds_per_step
        self.continue_after(0.0)

    def continue_after(self, seconds: float) -> None:
        """从现在起接着计时，之前已经训练了 seconds 秒。"""
        self._started = time.monotonic() - seconds

    @property
    def seconds(self) -> float:
        """训练至今的秒数，中断的时间不算；用单调时钟，改系统时间没有影响。"""
        return time.monotonic() - self._started

    @property
    def planned_seconds(self) -> float:
        """照试跑的快慢，训练一共要多少秒。"""
        return min(self.total_steps * self.seconds_per_step, self.max_seconds)

    def progress(self, step: int) -> float:
        """0 是刚开始，达到 1 就该停。"""
        return max(step / self.total_steps, self.seconds / max(1e-9, self.max_seconds))


def plan_budget(trainer: "Trainer", command_started: float) -> Budget:
    """试跑几步，定下总步数和训练的时间；--max_minutes 管整个命令，所以要给结束时的评估和画图留出时间。"""
    settings = trainer.settings
    seconds_per_step = trainer.rehearse()
    limit = settings.epochs * trainer.steps_per_epoch
    total_steps = min(limit, settings.max_steps or limit)
    plan_evaluations(trainer, total_steps, seconds_per_step)
    if not settings.max_minutes:
        return Budget(total_steps, seconds_per_step=seconds_per_step)
    seconds = 60 * settings.max_minutes
    finishing = seconds_per_step + trainer.evaluation_seconds(seconds_per_step) + FINISHING_SECONDS
    if not trainer.evaluates_everything:
        finishing += trainer.forward_seconds(seconds_per_step) * len(trainer.validate_loader.dataset)
    max_seconds = command_started + seconds - min(finishing, seconds / 5) - time.monotonic()
    return Budget(total_steps, max_seconds, seconds_per_step)
