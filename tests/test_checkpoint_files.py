"""utils/checkpoint_files.py：检查点的名字。"""

from pathlib import Path

import pytest

from utils.checkpoint_files import checkpoint_folder, list_checkpoints, require_checkpoints, step_of
from utils.errors import UserError


def test_folder_stands_beside_the_model():
    assert checkpoint_folder(Path("a/model.pth")) == Path("a/model.pth.ckpt")


def test_only_checkpoints_are_listed_from_old_to_new(tmp_path):
    names = ["step-00000020.ckpt", "step-00000003.ckpt", "step-100000000.ckpt"]
    for name in [*names, "step-3.ckpt", "step-00000003.ckpt.bak", ".step-00000004.ckpt.abcdefgh.tmp", "notes.txt"]:
        (tmp_path / name).touch()
    assert [step_of(path) for path in list_checkpoints(tmp_path)] == [3, 20, 100_000_000]
    assert list_checkpoints(tmp_path / "没有") == []


def test_resuming_nothing_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"model.pth.ckpt：没有检查点可以继续。去掉 --resume 从头训练。"):
        require_checkpoints(tmp_path / "model.pth")
