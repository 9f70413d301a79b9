"""utils/training_output.py：输出路径先占住，再开始算；--dry_run 连文件夹也不建。"""

from argparse import Namespace

import pytest

from utils.errors import UserError
from utils.training_output import claim_output


def flags(**changes) -> Namespace:
    flags = {"resume": False, "allow_data_change": False, "allow_process_change": False, "dry_run": False}
    return Namespace(**{**flags, **changes})


def test_output_is_checked_and_locked_while_in_use(tmp_path):
    path = tmp_path / "new" / "model.pth"
    with claim_output(flags(), path, inputs=()):
        assert (tmp_path / "new" / ".model.pth.lock").exists()
        with pytest.raises(UserError, match="正在写入"), claim_output(flags(), path, inputs=()):
            pass
    assert list((tmp_path / "new").iterdir()) == []


def test_input_is_never_claimed(tmp_path):
    (tmp_path / "corpus.txt").touch()
    with (
        pytest.raises(
            UserError, match="同时是输入文件，输出会覆盖它。给 --output_path（或 --model_path、--output）换一个名字"
        ),
        claim_output(flags(), tmp_path / "corpus.txt", inputs=(tmp_path / "corpus.txt",)),
    ):
        pass


def test_dry_run_writes_nothing(tmp_path):
    with claim_output(flags(dry_run=True), tmp_path / "new" / "model.pth", inputs=()):
        pass
    assert list(tmp_path.iterdir()) == []


def test_resuming_nothing_is_refused_before_anything_is_created(tmp_path):
    with (
        pytest.raises(UserError, match="没有检查点"),
        claim_output(flags(resume=True), tmp_path / "a" / "m.pth", inputs=()),
    ):
        pass
    assert list(tmp_path.iterdir()) == []
