"""utils/sharded_checkpoint.py：文件夹里的检查点，坏一位、少一个文件都看得出，里面的 pickle 不会执行。"""

import os
import pickle
import shutil
from dataclasses import asdict

import pytest
import torch
from soak_resume import make_trainer, start_run

from utils.checkpoint import Checkpoints, DamagedError, read_checkpoint
from utils.errors import UserError
from utils.settings import TrainingSettings
from utils.sharded_checkpoint import METADATA_NAME, flatten, restore, save_folder
from utils.train_utils import Evaluation

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is:UserWarning")  # 只有一个进程，我们知道

SETTINGS = TrainingSettings(batch_size=4, eval_freq=100, epochs=1, optimizer="muon")


@pytest.fixture(scope="module")
def state(tmp_path_factory):
    """训练了一轮的检查点的内容。"""
    run = start_run(make_trainer(SETTINGS), tmp_path_factory.mktemp("run") / "model.pth")
    run.prepare()
    run.run()
    path, _ = run.checkpoints.load_newest()
    return torch.load(path, weights_only=True)


@pytest.fixture
def folder(state, tmp_path):
    """写成文件夹的同一个检查点。"""
    path = tmp_path / "step-00000007.ckpt"
    save_folder(path, state, keep_old=False)
    return path


def test_flattening_and_restoring_gives_the_same_state(state):
    again = restore(*flatten(state))
    assert again.keys() == state.keys() and again["progress"] == state["progress"]
    for ours, expected in zip(again["optimizers"], state["optimizers"], strict=True):
        assert ours.keys() == expected.keys()
        assert all(torch.equal(ours[i][name], value) for i in expected for name, value in expected[i].items())
    assert all(torch.equal(again["model"][name], value) for name, value in state["model"].items() if name[0] != "_")


def test_folder_reads_back_as_the_same_checkpoint(state, folder):
    again = read_checkpoint(folder)
    assert again["progress"] == state["progress"]
    assert all(torch.equal(again["model"].weights[name], state["model"][name]) for name in again["model"].weights)
    assert not list(folder.parent.glob("*.tmp"))


def test_same_step_can_be_saved_again_in_either_form(state, tmp_path):
    checkpoints = Checkpoints(tmp_path / "m.ckpt")
    path = checkpoints.save(state)
    save_folder(path, state, keep_old=False)
    assert path.is_dir()
    save_folder(path, state, keep_old=False)
    assert read_checkpoint(path)["progress"] == state["progress"]
    assert checkpoints.save(state) == path and path.is_file()
    assert read_checkpoint(path)["progress"] == state["progress"] and list(path.parent.iterdir()) == [path]


def test_any_flipped_bit_or_missing_file_is_noticed(folder):
    names = sorted(os.listdir(folder))
    assert METADATA_NAME in names and "state.pth" in names and any(name.endswith(".distcp") for name in names)
    for name in names:
        path = folder / name
        good = path.read_bytes()
        path.write_bytes(good[: len(good) // 2] + bytes([good[len(good) // 2] ^ 1]) + good[len(good) // 2 + 1 :])
        with pytest.raises(DamagedError):
            read_checkpoint(folder)
        path.unlink()
        with pytest.raises(DamagedError):
            read_checkpoint(folder)
        path.write_bytes(good)
    read_checkpoint(folder)


def test_code_in_the_metadata_is_not_executed(folder, tmp_path, monkeypatch):
    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "executed"),)

    (folder / METADATA_NAME).write_bytes(pickle.dumps(Evil()))
    monkeypatch.setattr("utils.sharded_checkpoint.digest_of", lambda path: None)
    state = torch.load(folder / "state.pth", weights_only=True)
    from utils.model_file import save_state

    save_state(folder / "state.pth", {**state, "files": dict.fromkeys(state["files"])})
    with pytest.raises(DamagedError, match="已拒绝读取"):
        read_checkpoint(folder)
    assert not (tmp_path / "executed").exists()


def test_old_folders_are_pruned_and_half_written_ones_removed(state, tmp_path):
    checkpoints = Checkpoints(tmp_path)
    for step in (1, 2, 3, 4):
        save_folder(tmp_path / f"step-{step:08d}.ckpt", state, keep_old=False)
    (tmp_path / ".step-00000005.ckpt.abcdefgh.tmp").mkdir()
    (tmp_path / "我的笔记").mkdir()
    checkpoints.remove_leftovers()
    losses = ((0, 5.0), (2, 3.0))
    checkpoints._prune([asdict(Evaluation(1, step, 0, 0.0, 0.0, loss, loss)) for step, loss in losses])
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["step-00000002.ckpt", "step-00000003.ckpt", "step-00000004.ckpt", "我的笔记"]


def test_failed_save_leaves_nothing_behind(state, tmp_path, monkeypatch):
    def fail(*_):
        raise OSError(28, "磁盘满了")

    monkeypatch.setattr("utils.sharded_checkpoint.save_state", fail)
    with pytest.raises(OSError):
        save_folder(tmp_path / "step-00000001.ckpt", state, keep_old=False)
    assert list(tmp_path.iterdir()) == []


def test_folder_without_a_file_of_ours_is_not_a_checkpoint(folder):
    shutil.rmtree(folder)
    folder.mkdir()
    with pytest.raises(UserError):
        read_checkpoint(folder)
