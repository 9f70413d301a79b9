"""utils/run_identity.py：哪些差别不能接着训练，哪些只要说一声。"""

from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from soak_resume import make_trainer

from utils.errors import UserError
from utils.run_identity import RunIdentity, compare_runs
from utils.settings import TrainingSettings

PATH = Path("step-00000007.ckpt")


def identity(settings: TrainingSettings | None = None) -> RunIdentity:
    settings = settings or TrainingSettings()
    return RunIdentity.of(make_trainer(settings).model, "数据", settings, torch.float32, {})


def compare(ours: RunIdentity, allow_data_change: bool = False) -> list[str]:
    return compare_runs(PATH, asdict(identity()), ours, allow_data_change)


def test_same_command_has_no_notes():
    assert identity() == identity() and compare(identity()) == []


@pytest.mark.parametrize(
    ("ours", "message"),
    [
        (replace(identity(), config={**identity().config, "drop_rate": 0.5}), "drop_rate 是 0.2，现在的配置是 0.5"),
        (replace(identity(), tokenizer="别的"), "词表与检查点记录的不同"),
        (replace(identity(), data="别的"), "数据与检查点记录的不同"),
        (identity(TrainingSettings(seed=7)), "--seed 是 123，现在是 7。改回 --seed 123"),
        (identity(TrainingSettings(stride=7)), "--stride 是 16，现在是 7"),
        (identity(TrainingSettings(optimizer="muon")), "--optimizer 是 adamw，现在是 muon"),
    ],
)
def test_difference_that_breaks_the_run_is_refused(ours, message):
    with pytest.raises(UserError, match=message):
        compare(ours)


def test_changed_data_is_allowed_on_request():
    assert compare(replace(identity(), data="别的"), allow_data_change=True) == []


def test_other_settings_are_only_mentioned():
    (note,) = compare(identity(TrainingSettings(learning_rate=0.1)))
    assert note == "提示：learning_rate 由 0.0004 改为 0.1，从这里起用新的"
    (note,) = compare(identity(TrainingSettings(max_steps=20)))
    assert "max_steps 由 未指定 改为 20" in note
    assert compare(identity(TrainingSettings(stride=16))) == []  # 本来就是上下文长度
    assert compare(identity(TrainingSettings(save_minutes=1.0, keep="last", sample_prompt="师父"))) == []


def test_other_machine_says_that_bits_may_differ():
    environment = {**identity().environment, "线程数": 77, "torch": "9.9"}
    (note,) = compare(replace(identity(), environment=environment))
    assert "线程数由" in note and "变为 77" in note and "变为 9.9" in note and "不再逐位相同" in note
