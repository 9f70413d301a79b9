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
        (replace(identity(), config={**identity().config, "drop_rate": 0.5}), "drop_rate 是 0.2，现在是 0.5"),
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


def test_checkpoint_from_before_a_field_existed_means_its_default():
    """没有 norm_eps 的检查点是用 1e-5 训练的。"""
    recorded = asdict(identity())
    del recorded["config"]["norm_eps"]
    assert compare_runs(PATH, recorded, identity(), False) == []
    changed = replace(identity(), config={**identity().config, "norm_eps": 1e-3})
    with pytest.raises(UserError, match="norm_eps 是 1e-05，现在是 0.001"):
        compare_runs(PATH, recorded, changed, False)


FILES = "1 utf-8 a.txt\n2 utf-8 b 2.jsonl\n3 utf-8 sub/c.txt"


@pytest.mark.parametrize(
    ("new", "message"),
    [
        (FILES.replace("2 utf-8", "9 utf-8"), "不同：b 2.jsonl 改过了。"),
        ("1 utf-8 a.txt\n3 utf-8 sub/c.txt", "不同：少了 b 2.jsonl。"),
        (FILES + "\n4 utf-8 d.txt", "不同：多了 d.txt。"),
        ("\n".join(FILES.split("\n")[::-1]), "不同：文件的次序变了。"),
        (FILES.replace("utf-8", "gb18030"), "不同：a.txt 改过了，b 2.jsonl 改过了，sub/c.txt 改过了。"),
        ("\n".join(f"{i} utf-8 {i}.txt" for i in range(9)), "少了 a.txt，少了 b 2.jsonl，少了 sub/c.txt 等 12 处。"),
        ("123 utf-8", "不同。换回原文件"),
    ],
)
def test_changed_file_is_named(new, message):
    recorded = asdict(replace(identity(), data=FILES))
    with pytest.raises(UserError) as caught:
        compare_runs(PATH, recorded, replace(identity(), data=new), False)
    assert message in str(caught.value)
    assert compare_runs(PATH, recorded, replace(identity(), data=FILES), False) == []


def test_fingerprint_shown_is_one_line():
    many = replace(identity(), data=FILES).data_digest
    assert len(many) == 64 and identity().data_digest == "数据"


def test_changed_data_is_allowed_on_request():
    (note,) = compare(replace(identity(), data="别的"), allow_data_change=True)
    assert note == "提示：数据换过了，还没做的轮次用新的"


def test_other_settings_are_only_mentioned():
    (note,) = compare(identity(TrainingSettings(learning_rate=0.1)))
    assert note == "提示：learning_rate 由 0.0004 改为 0.1，从这里起用新的"
    (note,) = compare(identity(TrainingSettings(max_steps=20)))
    assert "max_steps 由 未指定 改为 20" in note
    (note,) = compare(identity(TrainingSettings(keep="last")))
    assert note == "提示：keep 由 best 改为 last，从这里起用新的"
    assert compare(identity(TrainingSettings(stride=16))) == []  # 本来就是上下文长度
    assert compare(identity(TrainingSettings(save_minutes=1.0, save_every=3, sample_prompt="师父"))) == []


def test_other_machine_says_that_bits_may_differ():
    environment = {**identity().environment, "线程数": 77, "torch": "9.9"}
    (note,) = compare(replace(identity(), environment=environment))
    assert "线程数由" in note and "变为 77" in note and "变为 9.9" in note and "不再逐位相同" in note
