"""utils/run_files.py：一次训练写出的文件叫什么，旧的怎样保留，接着训练时怎样认出自己的。"""

import json

import pytest
from test_training_run import RECORD, make_trainer

from utils.run_files import Kept, RunFiles
from utils.train_utils import Evaluation


def test_file_names_come_from_the_model_path(tmp_path):
    files = RunFiles(tmp_path / "my.pth")
    assert (files.log.name, files.curve.name) == ("my.pth.log.jsonl", "my.pth.loss.png")


def test_old_files_become_backups_once_per_run(tmp_path, capsys):
    trainer, files = make_trainer(), RunFiles(tmp_path / "m.pth")
    for path in (files.model, files.log, files.curve):
        path.write_bytes(b"old")
    for _ in range(2):  # 第二次写的是自己的文件，不再备份
        files.save_model(trainer, "训练", 9.4)
        files.add_record(RECORD)
        files.draw_curve()
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == sorted(f"m.pth{end}{bak}" for end in ("", ".log.jsonl", ".loss.png") for bak in ("", ".bak"))
    assert all((tmp_path / name).read_bytes() == b"old" for name in names if name.endswith(".bak"))
    assert capsys.readouterr().err.count("保留为") == 3
    RunFiles(files.model).save_model(trainer, "训练", 9.4)  # 另一次训练
    assert (tmp_path / "m.pth.bak2").exists() and (tmp_path / "m.pth.bak").read_bytes() == b"old"


def test_log_holds_every_record_in_full_precision(tmp_path):
    files = RunFiles(tmp_path / "m.pth")
    files.add_record(RECORD)
    files.add_record(Evaluation(2, 9, 576, 2.5, 0.0005, 1 / 3, 0.1))
    first, second = (json.loads(line) for line in files.log.read_text(encoding="utf-8").splitlines())
    assert Evaluation(**first) == RECORD
    assert second["train_loss"] == 1 / 3 and second["step"] == 9


def test_continued_run_overwrites_its_own_files_and_remembers_what_it_kept(tmp_path, capsys):
    trainer = make_trainer()
    trainer.step = 5
    first = RunFiles(tmp_path / "m.pth")
    first.add_record(RECORD)
    first.save_model(trainer, "训练", 4.5)
    again = RunFiles(first.model)
    again.continue_run([RECORD], "训练")
    assert again.kept == Kept(5, 4.5)
    again.add_record(RECORD)
    again.save_model(trainer, "训练", 4.0)
    assert not list(tmp_path.glob("*.bak")) and capsys.readouterr().err == ""


@pytest.mark.parametrize("content", [None, b"broken", "another run"])
def test_model_of_another_run_is_kept_as_backup(tmp_path, content):
    trainer, path = make_trainer(), tmp_path / "m.pth"
    if content == "another run":
        RunFiles(path).save_model(trainer, "别的训练", 1.0)
    elif content:
        path.write_bytes(content)
    before = path.read_bytes() if content else None
    files = RunFiles(path)
    files.continue_run([RECORD], "训练")
    assert files.kept is None
    files.save_model(trainer, "训练", 9.0)
    backup = tmp_path / "m.pth.bak"
    assert (backup.read_bytes() if backup.exists() else None) == before


def test_leftovers_of_a_killed_run_are_removed_by_their_exact_names(tmp_path):
    names = [".m.pth.abcd1234.tmp", ".m.pth.log.jsonl.abcd_234.tmp", ".m.pth.loss.png.00000000.tmp"]
    others = [
        ".m.pth.abcd123.tmp",
        ".m.pth.ABCD1234.tmp",
        "m.pth.abcd1234.tmp",
        ".mxpth.abcd1234.tmp",
        ".m.pth.bak.abcd1234.tmp",
    ]
    for name in names + others:
        (tmp_path / name).write_bytes(b"x")
    RunFiles(tmp_path / "m.pth").remove_leftovers()
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(others)
