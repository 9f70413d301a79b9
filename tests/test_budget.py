"""utils/budget.py：训练到什么时候为止。"""

import math

import pytest
from builders import make_trainer

from utils.budget import FINISHING_SECONDS, Budget, carry_over, plan_budget
from utils.settings import TrainingSettings
from utils.train_utils import Trainer


@pytest.fixture
def clock(monkeypatch) -> list[float]:
    """单调时钟的读数，测试自己拨。"""
    now = [0.0]
    monkeypatch.setattr("utils.budget.time.monotonic", lambda: now[0])
    return now


def at(step: int = 0, epoch: int = 1, samples_done: int = 0, batch_size: int = 4) -> Trainer:
    """走到这里的训练；一轮 30 个样本。"""
    trainer = make_trainer(TrainingSettings(batch_size=batch_size))
    trainer.step, trainer.epoch, trainer.samples_done = step, epoch, samples_done
    return trainer


def test_progress_is_the_largest_of_epochs_steps_and_time(clock):
    budget = Budget(max_steps=100, max_seconds=10.0)
    clock[0] = 2.0
    assert budget.progress(at(10)) == 0.2 and budget.progress(at(50)) == 0.5
    assert Budget(max_steps=100).progress(at(50)) == 0.5
    assert Budget(2, max_steps=100).progress(at(3, samples_done=12)) == 3 / 16
    assert Budget(2, max_steps=10).progress(at(3, samples_done=12)) == 3 / 10


def test_progress_of_an_undisturbed_run_is_the_share_of_its_steps():
    """一位不差：以前是这样算的，README 里的数都由此而来。"""
    budget = Budget(3)
    for step in range(24):
        trainer = at(step, 1 + step // 8, 4 * (step % 8))
        assert budget.progress(trainer) == step / 24 and budget.steps_left(trainer) == 24 - step


@pytest.mark.parametrize("batch_size", [1, 2, 3, 4, 7, 8, 30, 100])
@pytest.mark.parametrize("samples_done", [0, 1, 12, 29, 30])
def test_run_ends_with_the_last_sample_of_the_last_epoch_whatever_the_batch(batch_size, samples_done):
    """每更新一次，要走的就少一步；只有看完最后一个样本，进度才是 1。"""
    trainer, budget = at(413, 2, samples_done, batch_size), Budget(3)
    steps_left = 0
    while trainer.epoch < 3 or trainer.samples_done < 30:
        assert budget.progress(trainer) < 1
        if trainer.samples_done == 30:
            trainer.epoch, trainer.samples_done = trainer.epoch + 1, 0
        before = budget.steps_left(trainer)
        trainer.samples_done = min(30, trainer.samples_done + batch_size)
        steps_left += 1
        assert budget.steps_left(trainer) == before - 1
    assert budget.progress(trainer) == 1 and budget.steps_left(trainer) == 0
    assert budget.steps_left(at(413, 2, samples_done, batch_size)) == steps_left


def test_fewer_epochs_than_done_end_at_once():
    trainer = at(20, 3, 16)
    assert Budget(2).progress(trainer) >= 1 and Budget(2).steps_left(trainer) == 0


def test_epochs_at_the_end():
    assert Budget(3).epochs_at_end(at()) == 3
    assert Budget(3, max_steps=4).epochs_at_end(at()) == 0.5
    assert Budget(3).epochs_at_end(at(5, samples_done=19, batch_size=7)) == 3
    assert Budget(3, max_steps=9).epochs_at_end(at(5, samples_done=15)) == 1


def test_finished_run_has_nothing_left():
    trainer, budget = at(5, samples_done=20), Budget(3)
    budget.finish(trainer)
    assert budget.progress(trainer) == 1 and budget.steps_left(trainer) == 0


@pytest.mark.parametrize(
    ("done", "old", "new", "expected"),
    [(0, 30, 90, 0), (10, 30, 90, 30), (30, 30, 7, 7), (29, 30, 7, 6), (1, 30, 7, 0), (50, 30, 7, 7)],
)
def test_share_of_the_epoch_is_carried_over_to_another_corpus(done, old, new, expected):
    assert carry_over(done, old, new) == expected


def test_seconds_used_before_an_interruption_count(clock):
    clock[0] = 100.0
    budget = Budget(max_steps=100, max_seconds=10.0)
    budget.continue_after(4.0)
    clock[0] = 101.0
    assert budget.seconds == 5.0 and budget.progress(at()) == 0.5


def test_plan_takes_the_smaller_limit_and_leaves_time_to_finish(clock):
    clock[0] = 1001.5  # 命令开始之后 1.5 秒
    for settings, steps in (({"epochs": 3}, 24), ({"max_steps": 7}, 7)):
        trainer = make_trainer(TrainingSettings(batch_size=4, **settings))
        assert plan_budget(trainer, 0.0).steps_left(trainer) == steps
    assert plan_budget(make_trainer(), 0.0).max_seconds == math.inf
    trainer = make_trainer(TrainingSettings(batch_size=4, max_minutes=5, eval_iter=1))
    trainer.rehearse = lambda: 1.2  # 每步 4 个样本 1.2 秒：前向每个 0.1 秒
    # 截止前开始的最后一步；一次评估看 7 + 7 个样本
    expected = 300 - 1.5 - 1.2 - 0.1 * (7 + 7) - FINISHING_SECONDS
    assert plan_budget(trainer, 1000.0).max_seconds == pytest.approx(expected)


def test_finishing_never_takes_more_than_a_fifth_of_the_time(clock):
    clock[0] = 500.0
    trainer = make_trainer(TrainingSettings(batch_size=4, max_minutes=1))
    trainer.rehearse = lambda: 1000.0
    assert plan_budget(trainer, 500.0).max_seconds == pytest.approx(48)
