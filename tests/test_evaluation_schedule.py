"""utils/evaluation_schedule.py：哪几步评估，每次看多少；中断后接着训练还是那几步。"""

import math
import signal
from dataclasses import replace

import pytest
import torch
from builders import before_step, make_short_trainer, make_trainer, start
from builders import run_steps as run

from utils.budget import Budget, plan_budget
from utils.errors import Terminated
from utils.evaluation_schedule import (
    EVALUATION_SHARE,
    MIN_INTERVALS,
    EvaluationSchedule,
    continue_evaluations,
    count_intervals,
    count_samples,
    forward_share,
)
from utils.evaluation_set import EVAL_BATCH
from utils.settings import TrainingSettings

DERIVED = TrainingSettings(batch_size=4)


def steps_evaluated(total: int, every: int | None = None, intervals: int = MIN_INTERVALS) -> list[int]:
    schedule = EvaluationSchedule(every, intervals)
    return [step for step in range(total + 1) if schedule.is_due(step, step / total)]


def test_points_are_dense_at_the_beginning_then_even():
    assert steps_evaluated(1000) == [0, 5, 10, 20, 40, *range(50, 1001, 50)]
    assert steps_evaluated(476)[:8] == [0, 5, 10, 20, 24, 48, 72, 96]
    assert steps_evaluated(140) == [0, 5, *range(7, 141, 7)]  # 7 / 140 * 20 舍入之后也不晚一步


@pytest.mark.parametrize("total", [20, 21, 24, 39, 40, 60, 119, 476, 7777, 123_456])
def test_any_run_has_at_least_twenty_points_and_the_planned_number_at_most(total):
    steps = steps_evaluated(total)
    assert 21 <= len(steps) <= EvaluationSchedule(None).count(total, total)
    assert (steps[0], steps[-1]) == (0, total)
    gaps = [later - earlier for earlier, later in zip(steps, steps[1:], strict=False)]
    assert max(gaps) <= math.ceil(total / MIN_INTERVALS)


def test_shorter_runs_are_evaluated_at_every_step():
    assert steps_evaluated(6) == [0, 1, 2, 3, 4, 5, 6]


def test_given_frequency_is_obeyed():
    assert steps_evaluated(12, every=5) == [0, 5, 10]
    assert run(make_trainer(replace(DERIVED, eval_freq=7)), 30)[1][1].step == 7


def test_run_of_the_trainer_follows_the_schedule():
    _, records = run(make_trainer(DERIVED), 200)
    assert [record.step for record in records] == steps_evaluated(200)


@pytest.mark.parametrize("stop", [1, 4, 5, 6, 9, 10, 11, 23, 60, 199])
@pytest.mark.parametrize("every", [None, 9])
def test_resumed_run_is_evaluated_at_the_same_steps(stop, every):
    """停在任何一步，评估过没有，接着训练的评估都落在不中断的那几步上。"""
    total, whole = 200, steps_evaluated(200, every)
    for evaluated in {[step for step in whole if step <= stop][-1], [step for step in whole if step < stop][-1]}:
        trainer = make_trainer(replace(DERIVED, eval_freq=every))
        trainer.step, trainer.evaluated_step = stop, evaluated
        schedule = EvaluationSchedule.of(trainer, Budget(max_steps=total))
        after = [step for step in range(stop, total + 1) if schedule.is_due(step, step / total)]
        assert after == [step for step in whole if step > evaluated]


def test_run_by_the_clock_has_its_points_spread_over_the_time(monkeypatch):
    """一步一秒，后一半慢三倍：步数的上限远得很，评估还是平摊在时间里。"""
    now = [0.0]
    monkeypatch.setattr("utils.budget.time.monotonic", lambda: now[0])
    trainer = make_trainer(DERIVED)
    trainer.on_step = lambda *_: now.__setitem__(0, now[0] + (1.0 if now[0] < 100 else 3.0))
    records = list(trainer.run(Budget(max_seconds=200.0)))
    assert [record.seconds for record in records] == pytest.approx(
        [0, 5, *range(10, 101, 10), *(100 + 3 * math.ceil(10 * k / 3) for k in range(1, 11))]
    )
    assert len(records) >= 21


def test_resumed_run_by_the_clock_neither_repeats_nor_skips(monkeypatch):
    now = [0.0]
    monkeypatch.setattr("utils.budget.time.monotonic", lambda: now[0])
    trainer = make_trainer(DERIVED)
    trainer.step, trainer.evaluated_step = 47, 40
    budget = Budget(max_seconds=200.0)
    budget.continue_after(47.0)
    schedule = EvaluationSchedule.of(trainer, budget)
    due = [step for step in range(47, 90) if schedule.is_due(step, step / 200)]
    assert due == [50, 60, 70, 80]


def test_long_runs_get_more_points_but_not_without_end():
    trainer = make_trainer(DERIVED)  # 一步 64 个 token
    assert count_intervals(trainer, 10**5, math.inf) == 20
    assert count_intervals(trainer, 10**6, math.inf) == 64
    assert count_intervals(trainer, 10**9, math.inf) == 200
    assert count_intervals(trainer, 10**9, 60 * 45.0) == 45  # 按时间停止的，每段至少一分钟
    assert count_intervals(trainer, 10**9, 60.0) == 20


@pytest.mark.parametrize("total", [3_000, 50_000, 4 * 10**6])
@pytest.mark.parametrize("changes", [{}, {"eval_freq": 100}, {"max_minutes": 10.0}, {"accumulation_steps": 5}])
@pytest.mark.parametrize("with_accuracy", [False, True])
def test_all_evaluations_together_take_at_most_three_percent(total, changes, with_accuracy, monkeypatch):
    monkeypatch.setattr("utils.evaluation_schedule.MIN_EVAL_TOKENS", 16)  # 只有极短的训练才碰到下限
    trainer = make_trainer(replace(DERIVED, **changes))
    trainer.calc_accuracy = (lambda loader: 0.5) if with_accuracy else None
    seconds_per_step = 0.01
    num_samples = count_samples(trainer, total, seconds_per_step)
    steps = min(total, 60_000) if "max_minutes" in changes else total
    intervals = count_intervals(trainer, total, 600.0 if "max_minutes" in changes else math.inf)
    points = len(steps_evaluated(steps, trainer.settings.eval_freq, intervals))
    seconds_per_forward = seconds_per_step / (4 * trainer.settings.accumulation_steps) * forward_share(trainer)
    spent = points * 2 * (2 if with_accuracy else 1) * num_samples * seconds_per_forward
    if num_samples > 1:  # 一次一个样本还超过，就没有更少的了
        assert spent <= EVALUATION_SHARE * steps * seconds_per_step


def test_samples_are_neither_too_few_to_mean_anything_nor_without_end():
    trainer = make_trainer(DERIVED)  # 一个样本 16 个 token
    assert count_samples(trainer, 24, 0.01) == 64
    assert count_samples(trainer, 10**8, 0.01) == 4096


def test_only_what_is_trained_is_cheap_to_evaluate():
    """只训练一层时反向省了，评估占的份额就大，样本要少些。"""
    trainer = make_trainer(DERIVED)
    assert forward_share(trainer) == 1 / 4
    all_trained = count_samples(trainer, 10**5, 0.01)
    trainer.model.requires_grad_(False)
    trainer.model.final_norm.requires_grad_(True)
    assert forward_share(trainer) > 0.9 and count_samples(trainer, 10**5, 0.01) < all_trained / 3


def test_plan_decides_the_samples_unless_they_are_given():
    given = make_trainer(replace(DERIVED, eval_iter=1))
    derived = make_trainer(replace(DERIVED, epochs=1))
    for trainer in (given, derived):
        trainer.rehearse = lambda: 0.01
        plan_budget(trainer, 0.0)
    assert len(given.validate_sample.dataset) == min(EVAL_BATCH, 7)
    assert len(derived.validate_sample.dataset) == len(derived.train_sample.dataset) == 7  # 全部


def test_samples_are_those_of_the_checkpoint():
    for eval_iter, recorded, expected in ((None, 3, 3), (None, None, 7), (1, 3, min(EVAL_BATCH, 7))):
        trainer = make_trainer(replace(DERIVED, eval_iter=eval_iter))
        continue_evaluations(trainer, recorded)
        assert len(trainer.validate_sample.dataset) == expected


def test_schedule_moves_no_random_state():
    trainer, before = make_trainer(DERIVED), torch.get_rng_state()
    EvaluationSchedule.of(trainer, Budget(max_steps=100))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("stop", [1, 6, 30])
def test_killed_and_resumed_run_has_the_evaluations_of_the_whole_one(tmp_path, stop):
    """同样的步，同样的样本，同样的损失；样本数照检查点里的，不照现在的计划。"""

    def evaluations(folder: str, *stops: int) -> list[tuple]:
        (tmp_path / folder).mkdir()
        for count, at in enumerate((*stops, None)):
            torch.manual_seed(1)
            trainer = make_short_trainer(eval_freq=None)
            trainer.evaluate_on(2 if count == 0 else 3)
            run = start(trainer, tmp_path / folder / "m.pth", Budget(max_steps=60))
            if count:
                run.prepare(is_resuming=True)
            if at is None:
                run.run()
                return [(item.step, item.train_loss.hex(), item.validate_loss.hex()) for item in run.files.records]
            before_step(trainer, at, lambda: signal.raise_signal(signal.SIGTERM))
            with pytest.raises(Terminated):
                run.run()

    whole = evaluations("whole")
    assert len(whole) >= 21
    assert evaluations("killed", stop) == whole
