"""utils/training_program.py：各个训练程序共用的后半段。"""

import argparse
import time
from pathlib import Path

import pytest
import torch
from builders import make_short_trainer as make_trainer

from utils.errors import UserError
from utils.files import fingerprints_of_code
from utils.run_report import RunStory
from utils.settings import TrainingSettings
from utils.training_memory import TrainingMemory
from utils.training_program import TrainingProgram, build_trainer


def make_program(trainer, **flags) -> TrainingProgram:
    shared = {"resume": False, "allow_data_change": False, "allow_process_change": False, "dry_run": False}
    shared |= {"compile": False, "parallel": "auto", "patience": 600.0}
    return TrainingProgram(argparse.Namespace(**{**shared, **flags}), trainer.settings, time.monotonic())


@pytest.fixture
def start(tmp_path):
    """-> 以 flags 训练两步的函数，返回它写出的文件。"""

    def run(**flags):
        trainer, story = make_trainer(max_steps=2), RunStory("测试", {}, lambda: [], 0)
        program = make_program(trainer, **flags)
        program.check_memory(TrainingMemory(trainer.model.cfg, trainer.settings, program.device, 1, 1))
        return program.train_to_file(trainer, tmp_path / "m.pth", "数据", story, {})

    return run


def test_everything_is_written_and_the_plan_is_told_first(start, tmp_path, capsys):
    files = start()
    assert files.kept.step == 2 and files.model.exists() and files.log.exists() and files.curve.exists()
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("训练：") and "2 步" in lines[0] and lines[1].startswith("Ep 1 (Step 000000)")


def test_dry_run_tells_the_plan_and_writes_nothing(start, tmp_path, capsys):
    assert start(dry_run=True) is None
    assert "2 步" in capsys.readouterr().out and list(tmp_path.iterdir()) == []


def test_resume_continues_where_it_ended(start, capsys):
    start()
    capsys.readouterr()
    start(resume=True)
    assert "从第 2 步继续" in capsys.readouterr().out


def test_trainer_uses_the_settings_and_the_precision():
    given = make_trainer()
    settings = TrainingSettings(optimizer="muon", batch_size=4)
    trainer = build_trainer(given.model, (given.train_loader, given.validate_loader), settings, torch.bfloat16)
    assert [type(optimizer).__name__ for optimizer in trainer.optimizers] == ["AdamW", "Muon"]
    with trainer.precision:
        assert torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu") == torch.bfloat16


@pytest.mark.filterwarnings("ignore:.*script_method:DeprecationWarning")  # torch 自己的
@pytest.mark.parametrize("is_compiled", [False, True])
def test_model_is_compiled_when_asked(is_compiled):
    given = make_trainer()
    program = make_program(given, compile=is_compiled)
    trainer = program.build_trainer(given.model, (given.train_loader, given.validate_loader))
    assert (trainer.model._compiled_call_impl is not None) == is_compiled


def test_launcher_that_does_not_say_which_machine_is_refused(monkeypatch):
    for name, value in {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "x", "MASTER_PORT": "1"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    with pytest.raises(UserError, match="启动器：没有设环境变量 LOCAL_RANK。用 torchrun 启动"):
        make_program(make_trainer())


def test_what_auto_chose_and_the_code_are_compared(monkeypatch):
    facts = {}
    monkeypatch.setattr("utils.training_program.distributed.check_same", facts.update)
    program = make_program(make_trainer(), data_path="a.txt")
    program.agree_on(语料="abc")
    assert facts["device"] == program.device.type and facts["dtype"] in ("float32", "bfloat16")
    assert (
        facts["语料"] == "abc"
        and facts.items() >= fingerprints_of_code(Path("x.py")).items()
        and "data_path" not in facts
    )
