"""改了什么再接着训练：轮数不多不少，“最好”只在同一组样本上比，文件里是说的那一份。随机的组合见 soak_changes.py。"""

import json
import math
import os
import signal
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from builders import CONTEXT, build_trainer, random_ids, windows_loaders

from conftest import write_config
from model.trainable import LoRAConfig, set_trainable
from utils.budget import ENDLESS, Budget
from utils.checkpoint import Checkpoints
from utils.checkpoint_files import checkpoint_folder, list_checkpoints, step_of
from utils.errors import Terminated
from utils.evaluation_set import EVAL_BATCH, best_of, comparable, digest_of_samples
from utils.model_file import read_model_file, save_state
from utils.optimizers import build_optimizers
from utils.run_identity import RunIdentity
from utils.settings import TrainingSettings
from utils.train_utils import Evaluation, Trainer, calc_loss_loader
from utils.training_run import TrainingRun

BASE = {"batch_size": 4, "epochs": 4, "eval_freq": 5, "learning_rate": 0.003}


def make_trainer(num_windows: int = 50, num_validate: int = 24, text: int = 7, **settings) -> Trainer:
    """num_windows 个训练样本、num_validate 个验证样本；text 是哪一份文字。"""
    settings = TrainingSettings(**{**BASE, **settings})
    generator = torch.Generator().manual_seed(text)
    token_ids, others = random_ids(num_windows, generator), random_ids(num_validate, generator)
    return build_trainer(settings, windows_loaders(token_ids, others, settings.batch_size, settings.seed))


def run(trainer: Trainer, model_path: Path, stop_at: int | None = None, data: str = "数据") -> TrainingRun:
    """训练（有检查点就接着），走到第 stop_at 步被打断。"""
    settings = trainer.settings
    identity = RunIdentity.of(trainer.model, data, settings, torch.float32, {})
    whole = TrainingRun(trainer, Budget(settings.epochs, settings.max_steps or ENDLESS), model_path, identity)
    whole.prepare(is_resuming=whole.checkpoints.folder.exists(), allow_data_change=True)
    hook = lambda *_: signal.raise_signal(signal.SIGTERM) if trainer.step + 1 == stop_at else None  # noqa: E731
    trainer.optimizers[0].register_step_post_hook(hook)
    if stop_at is None:
        whole.run()
    else:
        with pytest.raises(Terminated):
            whole.run()
    return whole


@pytest.fixture
def model_path(tmp_path) -> Path:
    """每轮 13 步、共 4 轮的训练，在第 29 步（第三轮的第三步）被打断。"""
    run(make_trainer(), tmp_path / "model.pth", stop_at=29)
    return tmp_path / "model.pth"


def last_record(model_path: Path) -> dict:
    return json.loads(Path(f"{model_path}.log.jsonl").read_text(encoding="utf-8").splitlines()[-1])


# 被打断时第三轮用过 12 个样本，剩 38 + 50 个
@pytest.mark.parametrize(
    ("changes", "steps_left"),
    [
        ({}, 10 + 13),
        ({"batch_size": 8}, 5 + 7),
        ({"accumulation_steps": 4}, 3 + 4),
        ({"batch_size": 2}, 19 + 25),
        ({"batch_size": 100}, 1 + 1),
        ({"epochs": 3, "batch_size": 8}, 5),
        ({"epochs": 5, "batch_size": 8}, 5 + 7 + 7),
    ],
)
def test_exactly_the_epochs_asked_for_are_completed(model_path, changes, steps_left):
    trainer = make_trainer(**changes)
    run(trainer, model_path)
    epochs = changes.get("epochs", 4)
    assert trainer.step == 29 + steps_left
    assert (trainer.epoch, trainer.samples_done) == (epochs, 50) and trainer.tokens == epochs * 50 * CONTEXT
    total = epochs * trainer.steps_per_epoch
    assert last_record(model_path)["learning_rate"] == pytest.approx(0.003 / total)  # 走到底，只差最后一步


# 第三轮做了 12/50：换成 100 个样本一轮，算做了 24 个；换成 30 个一轮，算做了 7 个
@pytest.mark.parametrize(("num_windows", "samples_left"), [(100, 76 + 100), (30, 23 + 30)])
def test_epochs_left_are_of_the_new_corpus(model_path, capsys, num_windows, samples_left):
    trainer = make_trainer(num_windows, text=8)
    run(trainer, model_path, data="新的")
    assert (trainer.epoch, trainer.samples_done) == (4, num_windows)
    assert trainer.tokens == (112 + samples_left) * CONTEXT
    assert "提示：数据换过了，还没做的轮次用新的\n" in capsys.readouterr().err


def test_finished_run_stays_finished_after_a_change_of_batch_or_data(tmp_path):
    path = tmp_path / "model.pth"
    run(make_trainer(max_steps=7), path)
    for trainer in (make_trainer(batch_size=8, max_steps=7), make_trainer(100, text=8, max_steps=7)):
        run(trainer, path, data="新的")
        assert trainer.step == 7


@pytest.mark.parametrize("keep", ["best", "last"])
def test_finished_run_leaves_the_weights_that_are_asked_for(tmp_path, capsys, keep):
    """先留最好的做完，再要最后的：最后的在检查点里。"""
    path = tmp_path / "model.pth"
    trainer = make_trainer(learning_rate=0.02, epochs=8)  # 随机的文字学不会，越学越差
    assert run(trainer, path).files.kept.step < trainer.step
    again = make_trainer(learning_rate=0.02, epochs=8, keep=keep)
    whole = run(again, path)
    file = read_model_file(path)
    assert (file.origin["step"] == trainer.step) is (keep == "last")
    assert torch.equal(file.weights["tok_emb.weight"], trainer.model.tok_emb.weight) is (keep == "last")
    assert whole.files.kept.step == file.origin["step"]
    assert ("keep 由 best 改为 last" in capsys.readouterr().err) is (keep == "last")


def test_kept_weights_are_measured_again_on_the_new_set(tmp_path, capsys):
    """换了文字之后的损失都比以前的高，以前的却不该永远是最好的。随机的文字只有背得下来的，所以在训练部分上量。"""

    def memorizing(**changes) -> Trainer:
        trainer = make_trainer(learning_rate=0.02, eval_iter=1, **changes)  # 样本数给定了，就不再由计划来定
        trainer.validate_sample = trainer.train_sample
        trainer.measured_on = digest_of_samples(trainer.train_sample.dataset)
        return trainer

    path = tmp_path / "model.pth"
    run(memorizing(), path, stop_at=40)
    old = read_model_file(path)
    second = memorizing(text=8, epochs=5)
    second.model.load_state_dict(old.weights, strict=False)
    expected = calc_loss_loader(second.model, second.validate_sample)
    whole = run(second, path, data="新的")
    said = f"提示：验证的样本换过了；{path} 里第 {old.origin['step']} 步的权重重新量过，验证损失 {expected:.3f}"
    assert said in capsys.readouterr().err.splitlines()
    measured = comparable(whole.files.records)
    assert {record.step for record in measured} == {*range(40, second.step, 5), second.step}
    assert old.origin["validate_loss"] < min(record.validate_loss for record in measured)
    assert whole.files.kept.validate_loss == min(expected, *(record.validate_loss for record in measured))
    assert whole.files.kept.step > 40 and whole.files.has_best
    assert read_model_file(path).origin == asdict(whole.files.kept)
    assert best_of(whole.files.records).step == whole.files.kept.step  # 曲线和报告上标的


def test_model_that_is_still_the_best_on_the_new_set_stays(model_path):
    before = model_path.read_bytes()
    step = read_model_file(model_path).origin["step"]
    whole = run(make_trainer(eval_iter=1, learning_rate=10.0, grad_clip=1e9), model_path)  # 之后只会更差
    assert whole.files.kept.step == step and whole.files.has_best
    assert model_path.read_bytes() == before


def test_lora_model_is_measured_again_as_it_was_saved(tmp_path):
    def tuned(**settings) -> Trainer:
        torch.manual_seed(3)
        trainer = make_trainer(**settings)
        set_trainable(trainer.model, "lora", LoRAConfig(2, 8.0, "all"))
        trainer.optimizers = build_optimizers(trainer.model, trainer.settings)
        return trainer

    path = tmp_path / "model.pth"
    first = tuned(learning_rate=0.05, max_steps=10, keep="last")
    run(first, path)
    second = tuned(learning_rate=0.05, eval_iter=1)
    expected = calc_loss_loader(first.model, second.validate_sample)
    whole = TrainingRun(
        second, Budget(1), path, RunIdentity.of(second.model, "数据", second.settings, torch.float32, {})
    )
    whole.prepare(is_resuming=True)
    assert whole.files.kept.step == 10 and whole.files.kept.validate_loss == pytest.approx(expected, abs=1e-5)
    for name, value in first.model.state_dict().items():  # 量完之后装回的是检查点里的
        if name != "_extra_state":
            assert torch.equal(value, second.model.state_dict()[name]), name


def test_evaluated_samples_do_not_depend_on_the_batch_size():
    one, other = make_trainer(eval_iter=1, batch_size=2), make_trainer(eval_iter=1, batch_size=8)
    assert len(one.validate_sample.dataset) == EVAL_BATCH and one.measured_on == other.measured_on
    assert make_trainer(eval_iter=2).measured_on == make_trainer().measured_on  # 只有 24 个，都是全部
    different = {make_trainer(**changes).measured_on for changes in ({}, {"eval_iter": 1}, {"text": 8})}
    assert len(different) == 3


def test_digest_sees_every_sample_and_where_one_ends():
    samples = [(torch.tensor([1, 2]), torch.tensor([2, 3])), (torch.tensor([4]), torch.tensor([5]))]
    moved = [(torch.tensor([1, 2]), torch.tensor([2, 3])), (torch.tensor([4]), torch.tensor([6]))]
    joined = [(torch.tensor([1, 2, 2, 3]), torch.tensor([4])), (torch.tensor([5]), torch.tensor([], dtype=torch.long))]
    assert len({digest_of_samples(each) for each in (samples, moved, joined, samples[:1])}) == 4


def test_only_losses_measured_on_the_same_samples_are_compared():
    record = lambda step, loss, where: Evaluation(1, step, step, 0.0, 0.1, 5.0, loss, measured_on=where)  # noqa: E731
    records = [record(1, 0.1, "旧"), record(2, 4.0, "新"), record(3, 3.0, "新"), record(4, 3.5, "新")]
    assert best_of(records).step == 3 and best_of(records[:2]).step == 2 and best_of(records[:1]).step == 1


def test_checkpoint_kept_for_its_loss_was_measured_on_the_same_samples(tmp_path):
    checkpoints, trainer, records = Checkpoints(tmp_path / "ckpt"), make_trainer(), []
    for step, (loss, where) in {
        10: (0.1, "旧"),
        20: (4.0, "新"),
        30: (3.0, "新"),
        40: (5.0, "新"),
        50: (6.0, "新"),
    }.items():
        trainer.step = step
        records.append(asdict(Evaluation(1, step, 0, 0.0, 0.1, 5.0, loss, measured_on=where)))
        checkpoints.save({**trainer.state(), "records": records})
    assert [step_of(path) for path in list_checkpoints(tmp_path / "ckpt")] == [30, 40, 50]


def test_older_checkpoint_counts_as_measured_on_something_else(model_path):
    """早期的检查点没有记下每轮几个样本、在哪里量的。"""
    newest = list_checkpoints(checkpoint_folder(model_path))[-1]
    state = torch.load(newest, weights_only=True)
    del state["epoch_size"]
    for record in state["records"]:
        del record["measured_on"]
    save_state(newest, state)
    trainer = make_trainer()
    whole = run(trainer, model_path)
    assert trainer.step == 52
    assert {record.step for record in comparable(whole.files.records)} == {29, 30, 35, 40, 45, 50, 52}  # 马上量一次


def test_weights_that_are_not_the_best_are_not_called_so(model_path):
    """模型文件丢了，之后的都不如丢了的那一份。"""
    model_path.unlink()
    whole = run(make_trainer(learning_rate=0.5), model_path)
    assert min(record.validate_loss for record in whole.files.records[1:]) < whole.files.kept.validate_loss
    assert not whole.files.has_best


def test_weights_saved_after_the_checkpoint_are_not_those_of_another_branch(tmp_path):
    """检查点停在第 10 步，模型文件已是第 15 步的；换了批量再走到第 15 步，是另一份权重。"""
    path = tmp_path / "model.pth"
    run(make_trainer(keep="last"), path, stop_at=15)
    newest = list_checkpoints(checkpoint_folder(path))[-1]
    state = torch.load(newest, weights_only=True)
    (tmp_path / "other").mkdir()
    run(make_trainer(keep="last"), tmp_path / "other" / "model.pth", stop_at=10)
    (older,) = list_checkpoints(checkpoint_folder(tmp_path / "other" / "model.pth"))
    newest.unlink()
    older.rename(newest.with_name(older.name))
    assert read_model_file(path).origin["step"] == state["progress"]["step"] == 15
    trainer = make_trainer(keep="last", batch_size=8, eval_freq=100)
    run(trainer, path, stop_at=15)
    file = read_model_file(path)
    assert file.origin["step"] == 15 and file.origin["validate_loss"] is None
    assert torch.equal(file.weights["tok_emb.weight"], trainer.model.tok_emb.weight)


# ---- 没有硬链接的磁盘 ----


def test_run_killed_between_the_backup_and_the_first_save_continues_without_hard_links(tmp_path, corpus_text):
    soak_process = pytest.importorskip("soak_process", reason="只用于 POSIX：要用 fork")

    def without_links() -> None:
        def refuse(*_: object) -> None:
            raise OSError(1, "Operation not permitted")

        os.link = refuse

    def killed_at_fifth_step() -> None:
        without_links()
        soak_process.at_step(5, soak_process.signal_self(signal.SIGKILL))()

    (tmp_path / "corpus.txt").write_text(corpus_text, encoding="utf-8")
    write_config(tmp_path)
    flags = ("pretrain.py", "--config", "tiny.json", "--data_path", "corpus.txt", "--max_steps", 8)
    assert soak_process.run_forked(*flags, cwd=tmp_path).code == 0
    old = (tmp_path / "model.pth").read_bytes()
    flags += ("--seed", 5, "--eval_freq", 100, "--save_every", 2)
    killed = soak_process.run_forked(*flags, cwd=tmp_path, in_child=killed_at_fifth_step)
    assert killed.code == -signal.SIGKILL
    assert not (tmp_path / "model.pth").exists() and (tmp_path / "model.pth.bak").read_bytes() == old
    again = soak_process.run_forked(*flags, "--resume", cwd=tmp_path, in_child=without_links)
    assert again.code == 0 and "从第 4 步继续" in again.stdout, again.stderr
    assert (tmp_path / "model.pth.bak").read_bytes() == old
    assert read_model_file(tmp_path / "model.pth").origin["step"] == 8
    assert math.isfinite(last_record(tmp_path / "model.pth")["validate_loss"])
