"""utils/step_history.py：每一步都算进去，点数有限，存了再读接着加也一样。"""

from dataclasses import asdict

import pytest
from builders import filled

from utils.step_history import COLUMNS, MAX_POINTS, StepHistory, smooth


def test_short_run_keeps_every_step_exactly():
    history = filled(MAX_POINTS - 1)
    assert history.width == 1
    assert history.column("step") == list(range(1, MAX_POINTS))
    assert history.column("loss") == [1000 / step for step in range(1, MAX_POINTS)]
    assert history.column("learning_rate") == [1e-3 * (step % 7) for step in range(1, MAX_POINTS)]


@pytest.mark.parametrize("num_steps", [MAX_POINTS, MAX_POINTS + 1, 5000, 40_001])
def test_long_run_is_bounded_and_every_step_counts(num_steps):
    history = filled(num_steps)
    assert len(history.column("loss")) <= MAX_POINTS and len(history.column("loss")) >= MAX_POINTS / 2
    counts = [history.width] * len(history.points) + [history.count] * bool(history.count)
    assert sum(counts) == num_steps
    for name, total in (
        ("loss", sum(1000 / k for k in range(1, num_steps + 1))),
        ("step", num_steps * (num_steps + 1) / 2),
    ):
        weighted = sum(value * count for value, count in zip(history.column(name), counts, strict=True))
        assert weighted == pytest.approx(total)
    width = history.width
    assert history.column("loss")[3] == pytest.approx(
        sum(1000 / step for step in range(3 * width + 1, 4 * width + 1)) / width
    )
    assert history.column("step") == sorted(history.column("step"))


@pytest.mark.parametrize("stop", [1, 1023, 1024, 3001])
def test_stored_and_continued_equals_uninterrupted_bit_for_bit(stop):
    restored = StepHistory.from_state(asdict(filled(stop)))
    assert asdict(filled(5000, restored, stop + 1)) == asdict(filled(5000))


@pytest.mark.parametrize(
    "spoil",
    [
        lambda state: state.pop("sums"),
        lambda state: state.update(more=1),
        lambda state: state.update(width=0),
        lambda state: state.update(count=2),
        lambda state: state.update(sums=[0.0]),
        lambda state: state["points"].append([0.0]),
        lambda state: state["points"].append([float("nan")] * len(COLUMNS)),
        lambda state: state["points"].append(["1"] * len(COLUMNS)),
        lambda state: state.update(points=[[0.0] * len(COLUMNS)] * MAX_POINTS),
        lambda state: state.update(points=None),
    ],
)
def test_damaged_state_is_refused(spoil):
    state = asdict(filled(5))
    spoil(state)
    with pytest.raises((ValueError, TypeError, LookupError)):
        StepHistory.from_state(state)


def test_smoothing_averages_noise_away_without_lagging():
    noisy = [5.0 + (-1) ** index for index in range(400)]
    assert smooth(noisy)[0] == noisy[0] and all(abs(value - 5) < 0.1 for value in smooth(noisy)[10:])
    line = [10 - index / 40 for index in range(400)]  # 直线平滑之后还是它自己，末尾的半窗除外
    assert smooth(line)[:390] == pytest.approx(line[:390]) and smooth(line)[-1] == pytest.approx(line[-1], abs=0.2)
    assert smooth([3.0]) == [3.0] and smooth([]) == []
