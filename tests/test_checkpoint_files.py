"""utils/checkpoint_files.py：检查点的名字。"""

from argparse import Namespace
from pathlib import Path

import pytest

from utils.checkpoint_files import check_resume_flags, checkpoint_folder, list_checkpoints, step_of
from utils.errors import UserError


def test_folder_stands_beside_the_model():
    assert checkpoint_folder(Path("a/model.pth")) == Path("a/model.pth.ckpt")
    assert checkpoint_folder(Path(".")) == Path(".ckpt")  # 用户写错的路径，之后会说明


def test_only_checkpoints_are_listed_from_old_to_new(tmp_path):
    names = ["step-00000020.ckpt", "step-00000003.ckpt", "step-100000000.ckpt"]
    for name in [*names, "step-3.ckpt", "step-00000003.ckpt.bak", ".step-00000004.ckpt.abcdefgh.tmp", "notes.txt"]:
        (tmp_path / name).touch()
    assert [step_of(path) for path in list_checkpoints(tmp_path)] == [3, 20, 100_000_000]
    assert list_checkpoints(tmp_path / "没有") == []


def test_flags_for_resuming_are_checked(tmp_path):
    def check(resume: bool, **allowed: bool) -> None:
        flags = {"allow_data_change": False, "allow_process_change": False, **allowed}
        check_resume_flags(Namespace(resume=resume, **flags), tmp_path / "model.pth")

    check(resume=False)
    with pytest.raises(UserError, match=r"model.pth.ckpt：没有检查点可以继续。去掉 --resume 从头训练。"):
        check(resume=True)
    for name in ("allow_data_change", "allow_process_change"):
        with pytest.raises(UserError, match=f"--{name}：只与 --resume 同用"):
            check(resume=False, **{name: True})
    (tmp_path / "model.pth.ckpt").mkdir()
    (tmp_path / "model.pth.ckpt" / "step-00000001.ckpt").touch()
    check(resume=True, allow_data_change=True)
