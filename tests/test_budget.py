"""utils/budget.py：训练到什么时候为止。"""

import math

import pytest
from test_train_utils import make_trainer

from utils.budget import FINISHING_SECONDS, Budget, plan_budget
from utils.settings import TrainingSettings


@pytest.fixture
def clock(monkeypatch) -> list[float]:
    """单调时钟的读数，测试自己拨。"""
    now = [0.0]
    monkeypatch.setattr("utils.budget.time.monotonic", lambda: now[0])
    return now


def test_progress_is_the_larger_of_steps_and_time(clock):
    budget = Budget(100, max_seconds=10.0)
    clock[0] = 2.0
    assert budget.progress(10) == 0.2 and budget.progress(50) == 0.5
    assert Budget(100).progress(50) == 0.5


def test_seconds_used_before_an_interruption_count(clock):
    clock[0] = 100.0
    budget = Budget(100, max_seconds=10.0)
    budget.continue_after(4.0)
    clock[0] = 101.0
    assert budget.seconds == 5.0 and budget.progress(0) == 0.5


def test_plan_takes_the_smaller_limit_and_leaves_time_to_finish(clock):
    clock[0] = 1001.5  # 命令开始之后 1.5 秒
    assert plan_budget(make_trainer(TrainingSettings(batch_size=4, epochs=3)), 0.0).total_steps == 24
    assert plan_budget(make_trainer(TrainingSettings(batch_size=4, max_steps=7)), 0.0).total_steps == 7
    assert plan_budget(make_trainer(), 0.0).max_seconds == math.inf
    trainer = make_trainer(TrainingSettings(batch_size=4, max_minutes=5, eval_iter=1))
    trainer.rehearse = lambda: 1.2  # 每步 4 个样本 1.2 秒：前向每个 0.1 秒
    # 截止前开始的最后一步；一次评估看 4 + 4 个样本，最后还要看整个验证部分的 7 个
    expected = 300 - 1.5 - 1.2 - 0.1 * (4 + 4 + 7) - FINISHING_SECONDS
    assert plan_budget(trainer, 1000.0).max_seconds == pytest.approx(expected)


def test_finishing_never_takes_more_than_a_fifth_of_the_time(clock):
    clock[0] = 500.0
    trainer = make_trainer(TrainingSettings(batch_size=4, max_minutes=1))
    trainer.rehearse = lambda: 1000.0
    assert plan_budget(trainer, 500.0).max_seconds == pytest.approx(48)
