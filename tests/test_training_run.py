"""utils/training_run.py：一次训练留下什么文件、被打断时怎样、终端里看见什么。"""

import math
import os
import re
import select
import signal
import sys

import pytest
import torch
from builders import RECORD, after_step, before_step, start
from builders import make_short_trainer as make_trainer

from utils.budget import Budget
from utils.console import display_width
from utils.errors import RunError, Terminated
from utils.model_file import read_model_file
from utils.run_files import Kept, RunFiles
from utils.run_identity import RunIdentity
from utils.train_utils import Evaluation, Trainer
from utils.training_run import (
    ProgressBar,
    TrainingRun,
    check_finite,
    format_duration,
    format_log_line,
    is_finite,
    stop_on_signal,
)


def run_training(trainer: Trainer, budget: Budget, files: RunFiles) -> Kept:
    """从头训练；files 只用来说明写到哪里，过程中的记录也写回给它。"""
    identity = RunIdentity.of(trainer.model, "数据", trainer.settings, torch.float32, {})
    run = TrainingRun(trainer, budget, files.model, identity)
    run.files = files
    return run.run()


def set_validate_losses(trainer: Trainer, losses: dict[int, float]) -> None:
    """指定第几步的验证损失，好知道哪一次最好。"""
    trainer.evaluate = lambda budget: Evaluation(1, trainer.step, trainer.tokens, 0.0, 0.1, 5.0, losses[trainer.step])


def saved_weights(files: RunFiles) -> dict[str, torch.Tensor]:
    return read_model_file(files.model).weights


def weights_at(trainer: Trainer, *steps: int) -> dict[int, torch.Tensor]:
    """训练时顺便记下某几步之后的词嵌入。"""
    seen = {}
    for step in steps:
        keep = lambda step=step: seen.update({step: trainer.model.tok_emb.weight.detach().clone()})  # noqa: E731
        after_step(trainer, step, keep)
    return seen


def test_log_line_has_the_form_of_the_original_project():
    assert format_log_line(RECORD) == "Ep 1 (Step 000007): Train loss 9.375, Validate loss 9.433"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.4, "不到 1 秒"),
        (0.6, "1 秒"),
        (59.4, "59 秒"),
        (60, "1 分 0 秒"),
        (200, "3 分 20 秒"),
        (3599.7, "1.0 小时"),
        (5400, "1.5 小时"),
        (47.9 * 3600, "47.9 小时"),
        (48 * 3600, "2.0 天"),
    ],
)
def test_duration_is_readable(seconds, text):
    assert format_duration(seconds) == text


LOSSES = {0: 1.0, 2: 4.0, 4: 3.0, 6: 5.0}  # 第 0 步再好也不算训练的成果


@pytest.mark.parametrize(("keep", "expected"), [("best", 4), ("last", 6)])
def test_best_or_last_weights_are_kept(tmp_path, capsys, keep, expected):
    trainer, files = make_trainer(keep=keep), RunFiles(tmp_path / "m.pth")
    set_validate_losses(trainer, LOSSES)
    seen = weights_at(trainer, 2, 4, 6)
    kept = run_training(trainer, Budget(max_steps=6), files)
    assert kept.step == expected and kept.validate_loss == LOSSES[expected]
    assert torch.equal(saved_weights(files)["tok_emb.weight"], seen[expected])
    lines = capsys.readouterr().out.splitlines()
    assert [int(re.search(r"Step (\d+)", line)[1]) for line in lines] == [0, 2, 4, 6]
    assert files.curve.read_bytes().startswith(b"\x89PNG")


def test_equally_good_later_weights_do_not_replace_the_first(tmp_path):
    trainer = make_trainer()
    set_validate_losses(trainer, {0: 9.0, 2: 3.0, 4: 3.0})
    assert run_training(trainer, Budget(max_steps=4), RunFiles(tmp_path / "m.pth")).step == 2


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_evaluation_that_is_not_finite_ends_the_run_and_keeps_the_last_good_weights(tmp_path, bad):
    trainer, files = make_trainer(keep="last"), RunFiles(tmp_path / "m.pth")
    set_validate_losses(trainer, {0: 9.0, 2: 3.0, 4: bad})
    seen = weights_at(trainer, 2)
    with pytest.raises(RunError, match="第 4 步：训练损失为 5.0，验证损失为 (nan|inf)。这一步没有保存"):
        run_training(trainer, Budget(max_steps=6), files)
    assert torch.equal(saved_weights(files)["tok_emb.weight"], seen[2])
    assert [record.step for record in files.records] == [0, 2]


@pytest.mark.parametrize(
    ("settings", "flags"),
    [
        ({"learning_rate": 100.0}, "--learning_rate 0.0004"),
        ({"learning_rate": 3e-4}, "--learning_rate 0.0001"),
        (
            {"learning_rate": 3e-4, "muon_learning_rate": 50.0, "optimizer": "muon"},
            "--learning_rate 0.0001 --muon_learning_rate 0.02",
        ),
    ],
)
def test_lower_learning_rate_that_is_advised_would_do(tmp_path, settings, flags):
    trainer, files = make_trainer(**settings), RunFiles(tmp_path / "m.pth")
    set_validate_losses(trainer, {0: math.nan})
    with pytest.raises(RunError, match=f"减小学习率再试，如 {re.escape(flags)}。"):
        run_training(trainer, Budget(max_steps=6), files)


def test_either_loss_must_be_finite():
    check_finite(RECORD)
    for losses in ((math.nan, 1.0), (1.0, math.nan), (math.inf, -math.inf)):
        with pytest.raises(RunError):
            check_finite(Evaluation(1, 1, 1, 0.0, 0.1, *losses))


@pytest.mark.parametrize(
    ("signum", "error"), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, Terminated)], ids=["INT", "TERM"]
)
def test_first_signal_stops_after_the_step_and_saves(tmp_path, capsys, signum, error):
    trainer, files = make_trainer(eval_freq=100), RunFiles(tmp_path / "m.pth")
    before_step(trainer, 3, lambda: signal.raise_signal(signum))
    with pytest.raises(error):
        run_training(trainer, Budget(max_steps=1000), files)
    assert trainer.step == 3  # 这一步走完了，没有开始下一步
    assert torch.equal(saved_weights(files)["tok_emb.weight"], trainer.model.tok_emb.weight)
    hints = capsys.readouterr().err.splitlines()
    assert hints == [f"已在第 3 步保存，用 --resume 继续；{files.model} 里是第 3 步的权重。"]
    assert files.curve.exists()


def test_first_signal_is_answered_at_once_in_a_terminal(tmp_path, capsys, monkeypatch):
    trainer = make_trainer(eval_freq=100)
    before_step(trainer, 3, lambda: signal.raise_signal(signal.SIGINT))
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    with pytest.raises(KeyboardInterrupt):
        run_training(trainer, Budget(max_steps=1000), RunFiles(tmp_path / "m.pth"))
    assert "算完这一批就停；再按一次立刻离开。" in capsys.readouterr().err


@pytest.mark.parametrize(("keep", "expected"), [("best", 2), ("last", 5)])
def test_interrupted_run_leaves_what_keep_asks_for(tmp_path, capsys, keep, expected):
    trainer, files = make_trainer(keep=keep), RunFiles(tmp_path / "m.pth")
    set_validate_losses(trainer, {0: 9.0, 2: 3.0, 4: 4.0})
    seen = weights_at(trainer, 2, 5)
    before_step(trainer, 5, lambda: signal.raise_signal(signal.SIGINT))
    with pytest.raises(KeyboardInterrupt):
        run_training(trainer, Budget(max_steps=1000), files)
    assert torch.equal(saved_weights(files)["tok_emb.weight"], seen[expected])
    assert f"里是第 {expected} 步的权重" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("signum", "error"), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, Terminated)], ids=["INT", "TERM"]
)
def test_second_signal_leaves_at_once_without_saving(tmp_path, signum, error):
    trainer, files = make_trainer(eval_freq=100), RunFiles(tmp_path / "m.pth")
    before_step(trainer, 3, lambda: (signal.raise_signal(signum), signal.raise_signal(signum)))
    with pytest.raises(error):
        run_training(trainer, Budget(max_steps=1000), files)
    assert trainer.step == 2  # 第三步没有走完
    assert not files.model.exists() and not files.curve.exists()


def test_weights_that_are_nan_are_not_saved_on_interruption(tmp_path, capsys):
    trainer, files = make_trainer(keep="last"), RunFiles(tmp_path / "m.pth")
    set_validate_losses(trainer, {0: 9.0, 2: 3.0})
    seen = weights_at(trainer, 2)

    def spoil():
        with torch.no_grad():
            trainer.model.tok_emb.weight[3, 0] = torch.nan
        signal.raise_signal(signal.SIGINT)

    after_step(trainer, 3, spoil)
    with pytest.raises(KeyboardInterrupt):
        run_training(trainer, Budget(max_steps=1000), files)
    assert trainer.step == 3 and not is_finite(trainer.model)
    assert torch.equal(saved_weights(files)["tok_emb.weight"], seen[2])
    assert "已在第 3 步停止" in (text := capsys.readouterr().err) and "里是第 2 步的权重" in text


def test_nan_before_anything_was_saved_leaves_no_model(tmp_path, capsys):
    trainer, files = make_trainer(eval_freq=100), RunFiles(tmp_path / "m.pth")
    files.model.write_bytes(b"old")

    def spoil():
        with torch.no_grad():
            trainer.model.tok_emb.weight[3, 0] = torch.nan
        signal.raise_signal(signal.SIGINT)

    after_step(trainer, 1, spoil)
    with pytest.raises(KeyboardInterrupt):
        run_training(trainer, Budget(max_steps=1000), files)
    assert files.model.read_bytes() == b"old"
    assert "还没有可保存的权重" in capsys.readouterr().err


def test_signal_handlers_are_restored():
    before = [signal.getsignal(signum) for signum in (signal.SIGINT, signal.SIGTERM)]
    trainer = make_trainer()
    with pytest.raises(ZeroDivisionError), stop_on_signal(trainer) as received:
        signal.raise_signal(signal.SIGTERM)
        assert received == [signal.SIGTERM] and trainer.stop_requested
        raise ZeroDivisionError
    assert [signal.getsignal(signum) for signum in (signal.SIGINT, signal.SIGTERM)] == before


def test_nothing_is_drawn_when_stderr_is_not_a_terminal(tmp_path, capsys):
    run_training(make_trainer(), Budget(max_steps=6), RunFiles(tmp_path / "m.pth"))
    assert capsys.readouterr().err == ""


def read_until(descriptor: int, end: str) -> str:
    """读到 end 为止；伪终端不保证一次读得到全部。"""
    data = b""
    while not data.decode("utf-8", "ignore").endswith(end):
        assert select.select([descriptor], [], [], 10)[0], data
        data += os.read(descriptor, 65536)
    return data.decode("utf-8").removesuffix(end)


@pytest.mark.skipif(os.name == "nt", reason="Windows 没有伪终端 pty")
def test_progress_bar_fits_eighty_columns_and_shows_everything(monkeypatch):
    import fcntl
    import pty
    import struct
    import sys
    import termios

    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    for name in ("COLUMNS", "LINES"):
        monkeypatch.delenv(name, raising=False)
    now = [1000.0]
    monkeypatch.setattr("tqdm.std.time", lambda: now[0])
    monkeypatch.setattr("utils.budget.time.monotonic", lambda: now[0])
    trainer = make_trainer()
    with os.fdopen(slave, "w", encoding="utf-8") as terminal:
        monkeypatch.setattr(sys, "stderr", terminal)
        bar = ProgressBar(trainer, Budget(max_steps=1000))
        now[0] += 10.0
        trainer.step, trainer.tokens = 250, 50_000
        bar.update(4.5678, 0.25)
        print("<画完>", end="", file=terminal, flush=True)
        screen = read_until(master, "<画完>")
        bar.close()
        print("<结束>", end="", file=terminal, flush=True)
        last = read_until(master, "<结束>")
    os.close(master)
    line = [part for part in re.split(r"[\r\n]", re.sub(r"\x1b\[[A-Z]", "", screen)) if part.strip()][-1]
    # 10 秒走了四分之一，还要 30 秒；50,000 个 token 用了 10 秒
    assert line.startswith(" 25%|") and "█" in line
    assert line.endswith("第 250 步 损失 4.568 5,000 token/s 剩余 00:30")
    assert 70 <= display_width(line) <= 80
    assert re.sub(r"\x1b\[[A-Z]", "", last).strip() == ""  # 结束时擦掉，不留在屏幕上


# ---- 检查点什么时候存 ----


@pytest.fixture
def clock(monkeypatch) -> list[float]:
    """单调时钟的读数，测试自己拨；系统的钟乱跳，不该有影响。"""
    now = [1000.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    monkeypatch.setattr("time.time", lambda: 1e9 - 7 * now[0])
    return now


def saved_steps(trainer: Trainer, tmp_path, clock, seconds_per_step: float, saving: float = 0.0) -> list[int]:
    """训练二十步（每轮五步），每步、每次存检查点各要这么多秒；返回在哪几步存的。"""
    run, steps = start(trainer, tmp_path / "m.pth", Budget(max_steps=20)), []
    on_step, save = trainer._train_step, run.checkpoints.save

    def slow_step(batches, progress):
        clock[0] += seconds_per_step
        return on_step(batches, progress)

    def slow_save(state):
        steps.append(trainer.step)
        clock[0] += saving
        return save(state)

    trainer._train_step, run.checkpoints.save = slow_step, slow_save
    run.run()
    return steps


def test_checkpoint_is_saved_every_five_minutes_and_at_the_end_of_an_epoch(tmp_path, clock):
    assert saved_steps(make_trainer(eval_freq=100), tmp_path, clock, 100.0) == [3, 5, 8, 10, 13, 15, 18, 20]


def test_save_minutes_and_save_every_are_obeyed(tmp_path, clock):
    settings = {"eval_freq": 100, "save_minutes": 4.0, "save_every": 7}
    assert saved_steps(make_trainer(**settings), tmp_path, clock, 60.0) == [4, 5, 7, 10, 14, 15, 19, 20]


def test_saving_never_takes_more_than_a_fiftieth_of_the_time(tmp_path, clock):
    """每步 100 秒，存一次 10 秒：第一次之后，总要等到 20 秒不超过已用时间的五十分之一。"""
    steps = saved_steps(make_trainer(eval_freq=100), tmp_path, clock, 100.0, saving=10.0)
    assert steps == [3, 10, 15, 20]
    (tmp_path / "fixed").mkdir()
    fixed = saved_steps(make_trainer(eval_freq=100, save_minutes=2.0), tmp_path / "fixed", clock, 100.0, saving=10.0)
    assert set(range(2, 20, 2)) <= set(fixed)  # 指定了间隔就照办


def test_minutes_used_before_an_interruption_count(tmp_path, clock):
    def run_minutes(trainer: Trainer, budget: Budget, is_resuming: bool) -> None:
        run, train_step = start(trainer, tmp_path / "m.pth", budget), trainer._train_step

        def slow_step(batches, progress):
            clock[0] += 1.0
            return train_step(batches, progress)

        trainer._train_step = slow_step
        run.prepare(is_resuming)
        run.run()

    first = make_trainer(eval_freq=1000)
    after_step(first, 7, lambda: signal.raise_signal(signal.SIGTERM))
    with pytest.raises(Terminated):
        run_minutes(first, Budget(max_steps=10**6, max_seconds=20.0), False)
    clock[0] += 10**6  # 睡了很久
    second = make_trainer(eval_freq=1000)
    factors = []
    second.optimizers[0].register_step_pre_hook(lambda *_: factors.append(second.learning_rate))
    run_minutes(second, Budget(max_steps=10**6, max_seconds=20.0), True)
    assert second.step == 20  # 一共二十秒
    assert factors[0] == pytest.approx(second.settings.learning_rate * (1 - 7 / 20))


def test_finished_run_is_not_trained_further_by_resuming(tmp_path, clock):
    def run(seconds: float, **settings) -> Trainer:
        trainer = make_trainer(eval_freq=1000, **settings)
        run = start(trainer, tmp_path / "m.pth", Budget(max_steps=10, max_seconds=seconds))
        run.prepare(is_resuming=(tmp_path / "m.pth").exists())
        run.run()
        return trainer

    assert run(10.0).step == run(99.0).step == 10
    log = (tmp_path / "m.pth.log.jsonl").read_bytes()
    assert run(99.0).step == 10 and (tmp_path / "m.pth.log.jsonl").read_bytes() == log


def test_echo_of_a_signal_is_not_a_second_one(clock, monkeypatch):
    """torchrun 和 Slurm 各发一次同一个信号：几个进程时，五秒之内的第二次不算。"""
    monkeypatch.setattr("utils.training_run.world_size", lambda: 2)
    trainer = make_trainer()
    with stop_on_signal(trainer) as received:
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGTERM)
        assert trainer.stop_requested and received == [signal.SIGTERM]
        clock[0] += 6.0
        with pytest.raises(Terminated):
            signal.raise_signal(signal.SIGTERM)


def test_signal_during_the_last_save_still_counts(tmp_path, capsys):
    run = start(make_trainer(eval_freq=100), tmp_path / "m.pth", Budget(max_steps=3))
    save = run.checkpoints.save
    run.checkpoints.save = lambda state: (signal.raise_signal(signal.SIGTERM), save(state))
    with pytest.raises(Terminated):
        run.run()
    assert "已在第 3 步保存" in capsys.readouterr().err


def test_failing_log_does_not_lose_the_state(tmp_path):
    run = start(make_trainer(eval_freq=2), tmp_path / "m.pth", Budget(max_steps=9))
    add_record = run.files.add_record

    def fail(record):
        if record.step == 4:
            raise RunError("m.pth.log.jsonl", "写不进去", "腾出空间。")
        add_record(record)

    run.files.add_record = fail
    with pytest.raises(RunError, match="写不进去"):
        run.run()
    assert [path.name for path in run.checkpoints.folder.iterdir()] == ["step-00000004.ckpt"]
