"""每一步的损失和学习率，留给曲线和报告。训练再长也只有一千来个点：满了就两两平均。"""

import math
from dataclasses import dataclass, field, fields
from typing import Any

MAX_POINTS = 1024  # 一张图也就画得出这么多；检查点里约占 40 KB
COLUMNS = ("step", "tokens", "seconds", "loss", "learning_rate")  # 一个点的各项，都是平均
SMOOTHING = 1 / 40  # 平滑时左右各取全程的这么多


@dataclass
class StepHistory:
    """逐步加进来；一个点起初是一步，每满 MAX_POINTS 个就合并一次，从此代表两倍的步数。"""

    width: int = 1  # 一个点是几步的平均
    points: list[list[float]] = field(default_factory=list)
    count: int = 0  # 还不满一个点的有几步
    sums: list[float] = field(default_factory=lambda: [0.0] * len(COLUMNS))  # 它们各项的和

    def add(self, **values: float) -> None:
        """一步的 COLUMNS 各项。"""
        self.count += 1
        self.sums = [total + values[name] for total, name in zip(self.sums, COLUMNS, strict=True)]
        if self.count < self.width:
            return
        self.points.append(self._mean())
        self.count, self.sums = 0, [0.0] * len(COLUMNS)
        if len(self.points) == MAX_POINTS:
            pairs = zip(self.points[::2], self.points[1::2], strict=True)
            self.points = [[(a + b) / 2 for a, b in zip(*pair, strict=True)] for pair in pairs]
            self.width *= 2

    def _mean(self) -> list[float]:
        return [total / self.count for total in self.sums]

    def column(self, name: str) -> list[float]:
        """各个点的一项，连同还不满的最后一个。"""
        points = [*self.points, self._mean()] if self.count else self.points
        return [point[COLUMNS.index(name)] for point in points]

    @classmethod
    def from_state(cls, state: dict) -> "StepHistory":
        """dataclasses.asdict 的逆；内容不对就抛出 ValueError、TypeError 或 LookupError。"""
        history = cls(**state)
        rows = [history.sums, *history.points]
        is_right = (
            state.keys() == {item.name for item in fields(cls)}
            and type(history.width) is int
            and type(history.count) is int
            and 0 <= history.count < history.width
            and len(history.points) < MAX_POINTS
            and all(len(row) == len(COLUMNS) and all(map(is_number, row)) for row in rows)
        )
        if not is_right:
            raise ValueError
        return history


def smooth(values: list[float]) -> list[float]:
    """(n,) -> (n,)，滑动平均。开头两边对称地窄，好跟上骤降；末尾只收窄右边。"""
    reach = max(1, round(len(values) * SMOOTHING))
    sums = [0.0]
    for value in values:
        sums.append(sums[-1] + value)
    result = []
    for index in range(len(values)):
        left = min(reach, index)
        start, end = index - left, min(index + left + 1, len(values))
        result.append((sums[end] - sums[start]) / (end - start))
    return result


def is_number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)
