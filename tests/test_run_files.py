"""utils/run_files.py：一次训练写出的文件叫什么，旧的怎样保留，接着训练时怎样认出自己的。"""

import json

import pytest
from builders import RECORD
from builders import make_short_trainer as make_trainer

from utils.run_files import Kept, RunFiles
from utils.step_history import StepHistory
from utils.train_utils import Evaluation


def test_file_names_come_from_the_model_path(tmp_path):
    files = RunFiles(tmp_path / "my.pth")
    names = (files.log.name, files.curve.name, files.report.name, files.result.name)
    assert names == ("my.pth.log.jsonl", "my.pth.loss.png", "my.pth.report.html", "my.pth.result.json")


def test_old_files_get_a_second_name_before_anything_is_written(tmp_path, capsys):
    trainer, files = make_trainer(), RunFiles(tmp_path / "m.pth")
    paths = (files.model, files.log, files.curve)
    for path in paths:
        path.write_bytes(b"old")
    files.back_up_old_results()
    assert all(path.read_bytes() == b"old" for path in paths)  # 写之前一刻也没有消失
    files.save_model(trainer, 9.4)
    files.add_record(RECORD)
    files.draw_curve(StepHistory())
    assert all(path.read_bytes() != b"old" for path in paths)
    assert all(path.with_name(path.name + ".bak").read_bytes() == b"old" for path in paths)
    assert capsys.readouterr().err.count("保留为") == 3
    RunFiles(files.model).back_up_old_results()  # 又一次训练
    assert (tmp_path / "m.pth.bak2").exists() and (tmp_path / "m.pth.bak").read_bytes() == b"old"


def test_log_holds_every_record_in_full_precision(tmp_path):
    files = RunFiles(tmp_path / "m.pth")
    files.add_record(RECORD)
    files.add_record(Evaluation(2, 9, 576, 2.5, 0.0005, 1 / 3, 0.1))
    first, second = (json.loads(line) for line in files.log.read_text(encoding="utf-8").splitlines())
    assert Evaluation(**first) == RECORD
    assert second["train_loss"] == 1 / 3 and second["step"] == 9


def test_result_lasts_until_the_training_goes_on(tmp_path, capsys):
    """接着练了，或从头练了，旧的结果就不在新的权重旁边。"""
    files = RunFiles(tmp_path / "m.pth")
    files.kept = Kept(5, 4.5)
    files.write_result(nats_per_char=1 / 3)
    assert json.loads(files.result.read_bytes()) == {"step": 5, "nats_per_char": 1 / 3}
    again = RunFiles(files.model)
    again.continue_run([RECORD], RECORD.step)
    assert again.result.exists()  # 还没有新的评估
    again.add_record(RECORD)
    assert not again.result.exists()
    files.write_result(nats_per_char=1.0)
    RunFiles(files.model).back_up_old_results()
    assert not files.result.exists() and (tmp_path / "m.pth.result.json.bak").exists()


def test_continued_run_remembers_what_the_model_file_holds(tmp_path):
    trainer, files = make_trainer(), RunFiles(tmp_path / "m.pth")
    trainer.step = 5
    files.save_model(trainer, 4.5)
    again = RunFiles(files.model)
    again.continue_run([RECORD], 7)
    assert again.kept == Kept(5, 4.5, trainer.measured_on) and again.records == [RECORD]


@pytest.mark.parametrize("content", [None, b"broken"])
def test_model_that_cannot_be_read_counts_as_not_written_yet(tmp_path, content):
    files = RunFiles(tmp_path / "m.pth")
    if content:
        files.model.write_bytes(content)
    files.continue_run([RECORD], 7)
    assert files.kept is None


def test_model_of_the_training_before_is_not_taken_for_our_own(tmp_path):
    """从头训练，还没有存过模型就被杀死：模型文件还是以前的那一个。"""
    old = RunFiles(tmp_path / "m.pth")
    old.save_model(make_trainer(), 0.1)
    before = old.model.read_bytes()
    RunFiles(old.model).back_up_old_results()
    again = RunFiles(old.model)
    again.continue_run([RECORD], 7)
    assert again.kept is None
    again.save_model(make_trainer(), 9.0)
    assert (tmp_path / "m.pth.bak").read_bytes() == before


def test_leftovers_of_a_killed_run_are_removed_by_their_exact_names(tmp_path):
    names = [".m.pth.abcd1234.tmp", ".m.pth.log.jsonl.abcd_234.tmp", ".m.pth.loss.png.00000000.tmp"]
    names.append(".m.pth.report.html.x_y_z_00.tmp")
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
