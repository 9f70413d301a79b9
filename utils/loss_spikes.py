"""损失突然变大：常见的原因是学习率太大，或语料里有一段乱码，值得说一声。"""

from collections import deque
from statistics import fmean, pstdev

WINDOW = 100  # 与最近这么多步比较
MIN_STEPS = 20  # 不到这么多步时看不出常态
DEVIATIONS = 8.0  # 高出这么多个标准差
MIN_RATIO = 1.2  # 并且至少高出两成：后期的标准差很小
MIN_RISE = 0.5  # 并且至少高出半个 nat：微调到后来损失接近 0，一条难的就是好几倍
QUIET_STEPS = 100  # 说过之后这么多步不再说


class SpikeDetector:
    """逐步看训练损失（nat/token）；只说话，不影响训练。"""

    def __init__(self):
        self._recent: deque[float] = deque(maxlen=WINDOW)
        self._quiet_until = MIN_STEPS

    def describe_spike(self, step: int, loss: float) -> str | None:
        """第 step 步的损失比最近的高得出奇，就返回一行说明。"""
        text = None
        if step > self._quiet_until and len(self._recent) >= MIN_STEPS:
            mean = fmean(self._recent)
            if loss > max(mean + DEVIATIONS * pstdev(self._recent), mean * MIN_RATIO, mean + MIN_RISE):
                self._quiet_until = step + QUIET_STEPS
                before = f"前 {len(self._recent)} 步平均 {mean:.3f}"
                text = f"提示：第 {step} 步损失突然升到 {loss:.3f}（{before}）；之后若降不回来，减小 --learning_rate"
        self._recent.append(loss)
        return text
