"""utils/checkpoint.py：检查点留几个，坏了怎么办，接上的是不是同一次训练。逐位相同的证明在 soak_resume.py。"""

import math
import os
from dataclasses import asdict

import pytest
import torch
from soak_resume import VARIANTS, interrupted, make_trainer, start_run, uninterrupted

from conftest import tiny_config
from model.language_model import LanguageModel
from utils.checkpoint import Checkpoints, read_checkpoint, recorded_tokenizer
from utils.checkpoint_files import checkpoint_folder, list_checkpoints, step_of
from utils.errors import UserError
from utils.model_file import save_state
from utils.settings import TrainingSettings
from utils.train_utils import Evaluation

SETTINGS = TrainingSettings(batch_size=4, eval_freq=100, epochs=1, save_every=1, save_minutes=1.0)


@pytest.fixture
def model_path(tmp_path):
    """训练了一轮（七步，每步存一个检查点）的模型文件。"""
    run = start_run(make_trainer(SETTINGS), tmp_path / "model.pth")
    run.prepare()
    run.run()
    return tmp_path / "model.pth"


def steps_in(model_path) -> list[int]:
    return [step_of(path) for path in list_checkpoints(checkpoint_folder(model_path))]


def resume(model_path, settings=SETTINGS, **options):
    run = start_run(make_trainer(settings, seed=99), model_path, **options)
    run.prepare(is_resuming=True)
    return run


def flip_bit(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_run_interrupted_several_times_is_bit_for_bit_the_uninterrupted_one(variant, tmp_path, one_thread):
    (tmp_path / "whole").mkdir()
    whole, num_places = uninterrupted(variant, tmp_path / "whole")
    assert whole.differences(interrupted(variant, tmp_path, [3, 8, num_places // 4])) == []


def test_two_newest_and_the_best_are_kept(tmp_path):
    checkpoints, trainer = Checkpoints(tmp_path / "ckpt"), make_trainer(SETTINGS)
    losses = {10: 5.0, 20: 3.0, 30: 4.0, 40: 6.0, 50: 7.0}
    records = []
    for step, loss in losses.items():
        trainer.step = step
        records.append(asdict(Evaluation(1, step, 0, 0.0, 0.1, 5.0, loss)))
        checkpoints.save({**trainer.state(), "records": records})
    assert [step_of(path) for path in list_checkpoints(tmp_path / "ckpt")] == [20, 40, 50]


def test_newest_is_loaded_and_nothing_else_in_the_folder_is_touched(model_path):
    assert steps_in(model_path)[-1] == 7
    notes = checkpoint_folder(model_path) / "step-9.ckpt.txt"
    notes.write_text("我的笔记", encoding="utf-8")
    path, state = Checkpoints(checkpoint_folder(model_path)).load_newest()
    assert step_of(path) == 7 and state["progress"]["step"] == 7
    assert notes.read_text(encoding="utf-8") == "我的笔记"


def test_damaged_newest_is_kept_and_the_one_before_is_used(model_path, capsys):
    newest = list_checkpoints(checkpoint_folder(model_path))[-1]
    flip_bit(newest)
    damaged = newest.read_bytes()
    run = resume(model_path)
    assert run.trainer.step == 6
    assert capsys.readouterr().err == f"警告：{newest} 不能用（校验失败（内容）），改用 step-00000006.ckpt\n"
    assert newest.read_bytes() == damaged
    run.run()  # 又走到第七步，写出同名的检查点
    assert newest.with_name(newest.name + ".bak").read_bytes() == damaged
    assert read_checkpoint(newest)["progress"]["step"] == 7


def test_all_damaged_lists_every_file_and_deletes_nothing(model_path):
    paths = list_checkpoints(checkpoint_folder(model_path))
    flip_bit(paths[0])
    for path in paths[1:]:
        path.write_bytes(b"")
    before = [path.read_bytes() for path in paths]
    with pytest.raises(UserError) as error:
        resume(model_path)
    assert all(path.name in str(error.value) for path in paths)
    assert "校验失败" in str(error.value) and "已损坏或不是检查点" in str(error.value)
    assert [path.read_bytes() for path in paths] == before


def test_newer_format_says_so_instead_of_falling_back(model_path):
    newest = list_checkpoints(checkpoint_folder(model_path))[-1]
    state = torch.load(newest, weights_only=True)
    save_state(newest, {**state, "format": 2})
    with pytest.raises(UserError, match="由更新的版本写出"):
        resume(model_path)


@pytest.mark.parametrize(
    "change",
    [
        lambda state: state.pop("random"),
        lambda state: state.update(optimizers=[{0: {"exp_avg": torch.full((2,), torch.nan)}}]),
        lambda state: state["progress"].update(step=7.5),
        lambda state: state["progress"].update(samples_done=-3),
        lambda state: state["progress"].update(learning_rate=math.nan),
        lambda state: state["records"][0].update(validate_loss="x"),
        lambda state: state["run"].update(settings=3),
        lambda state: state.update(is_finished=None),
        lambda state: state["progress"].update(step="七"),
        lambda state: state["progress"].pop("tokens"),
        lambda state: state.update(records=[{"step": 1}]),
        lambda state: state.update(records=[]),
        lambda state: state.update(seconds=None),
        lambda state: state.update(run={}),
        lambda state: state.update(format="1"),
        lambda state: state["model"].update(x=torch.tensor(torch.inf)),
        lambda state: state.update(model=[1]),
    ],
)
def test_incomplete_checkpoint_counts_as_damaged(model_path, change):
    newest = list_checkpoints(checkpoint_folder(model_path))[-1]
    state = torch.load(newest, weights_only=True)
    change(state)
    save_state(newest, state)
    assert resume(model_path).trainer.step == 6


@pytest.mark.parametrize(
    "change",
    [lambda values: values.pop("exp_avg_sq"), lambda values: values.update(exp_avg=torch.tensor(1.0))],
    ids=["missing", "scalar"],
)
def test_state_that_does_not_fit_the_parameters_is_refused(model_path, change):
    newest = list_checkpoints(checkpoint_folder(model_path))[-1]
    state = torch.load(newest, weights_only=True)
    change(state["optimizers"][0][0])
    save_state(newest, state)
    with pytest.raises(UserError, match="里面的训练状态与现在的模型不符"):
        resume(model_path)


def test_model_of_another_shape_is_refused(model_path):
    run = start_run(make_trainer(SETTINGS), model_path)
    run.trainer.model = LanguageModel(tiny_config(num_layers=1))
    with pytest.raises(UserError, match="num_layers"):
        start_run(run.trainer, model_path).prepare(is_resuming=True)


def test_leftover_of_a_killed_save_is_removed(model_path):
    leftover = checkpoint_folder(model_path) / ".step-00000008.ckpt.abcdefg1.tmp"
    leftover.write_bytes(b"half")
    resume(model_path)
    assert not leftover.exists()


def test_fresh_run_keeps_the_checkpoints_of_the_one_before(model_path, capsys):
    before = {path.name: path.read_bytes() for path in list_checkpoints(checkpoint_folder(model_path))}
    run = start_run(make_trainer(SETTINGS), model_path)
    run.prepare()
    assert "要接着" in capsys.readouterr().err
    run.run()
    kept = model_path.with_name("model.pth.ckpt.bak")
    assert {path.name: path.read_bytes() for path in list_checkpoints(kept)} == before


def test_learning_rate_of_the_new_command_takes_effect(model_path, capsys):
    settings = TrainingSettings(batch_size=4, eval_freq=100, epochs=2, learning_rate=0.125)
    run = resume(model_path, settings)
    assert {group["peak_lr"] for group in run.trainer.optimizers[0].param_groups} == {0.125}
    assert "learning_rate 由 0.0004 改为 0.125" in capsys.readouterr().err


def test_smaller_batch_continues_with_the_same_samples(model_path):
    settings = TrainingSettings(batch_size=2, accumulation_steps=2, eval_freq=100, epochs=2)
    trainer = resume(model_path, settings).trainer
    trainer.epoch, trainer.samples_done = 2, 4  # 第二轮做了一步
    inputs = torch.cat([inputs for inputs, _ in next(trainer._grouped_batches())])
    sampler = trainer.train_loader.sampler
    sampler.epoch, sampler.done = 2, 0
    expected = [trainer.train_loader.dataset[index][0] for index in list(sampler)[4:8]]
    assert torch.equal(inputs, torch.stack(expected))


def test_other_data_needs_a_flag(model_path):
    with pytest.raises(UserError, match="数据与检查点记录的不同.*--allow_data_change"):
        resume(model_path, data="别的")
    run = start_run(make_trainer(SETTINGS), model_path, data="别的")
    run.prepare(is_resuming=True, allow_data_change=True)
    assert run.trainer.step == 7


def test_tokenizer_is_recorded_with_the_model(model_path):
    assert recorded_tokenizer(checkpoint_folder(model_path)) == {"type": "gpt2"}


@pytest.mark.skipif(os.name == "nt", reason="Windows 没有 RLIMIT_FSIZE")
def test_failed_save_leaves_the_previous_checkpoints(model_path):
    import resource

    before = {path.name: path.read_bytes() for path in list_checkpoints(checkpoint_folder(model_path))}
    run = resume(model_path, TrainingSettings(batch_size=4, eval_freq=100, epochs=2, save_every=1))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        with pytest.raises(UserError, match=r"step-00000008.ckpt：写不进去（超出了文件大小的限制），需要 4\d\d KB"):
            run.run()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    after = {path.name: path.read_bytes() for path in checkpoint_folder(model_path).iterdir()}
    assert after == before
