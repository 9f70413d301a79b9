"""utils/loss_spikes.py：真的突然变大才说，说过不再唠叨。"""

import random

from utils.loss_spikes import MIN_STEPS, QUIET_STEPS, SpikeDetector


def spikes_in(losses: list[float]) -> list[int]:
    detector = SpikeDetector()
    return [step for step, loss in enumerate(losses, 1) if detector.describe_spike(step, loss)]


def noisy(start: float, end: float, count: int, noise: float) -> list[float]:
    """从 start 降到 end，带正态的抖动。"""
    generator = random.Random(0)
    return [end + (start - end) * (1 - i / count) ** 3 + generator.gauss(0, noise) for i in range(count)]


def test_falling_noisy_loss_is_no_spike():
    assert spikes_in(noisy(9.0, 3.0, 5000, 0.3)) == []


def test_sudden_rise_is_reported_once():
    losses = noisy(9.0, 3.0, 1000, 0.1)
    losses[700:720] = [9.0] * 20
    assert spikes_in(losses) == [701]


def test_hard_batch_of_a_model_that_is_nearly_perfect_is_no_spike():
    assert spikes_in([0.03] * 100 + [0.4] + [0.03] * 50) == []


def test_first_steps_are_no_spikes_and_a_later_rise_is_reported_again():
    assert spikes_in([1.0] * (MIN_STEPS - 1) + [9.0]) == []
    losses = [1.0] * 50 + [9.0] + [1.0] * (QUIET_STEPS + 150) + [9.0]
    assert spikes_in(losses) == [51, len(losses)]


def test_message_gives_both_losses():
    detector = SpikeDetector()
    texts = [detector.describe_spike(step, 2.0 if step < 60 else 8.0) for step in range(1, 61)]
    assert texts[-1] == "提示：第 60 步损失突然升到 8.000（前 59 步平均 2.000）；之后若降不回来，减小 --learning_rate"
