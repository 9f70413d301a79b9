"""两种微调训练前后说的话：utils/report_finetuning.py、report_classifier.py、report_instruction.py。"""

import argparse
import warnings
from pathlib import Path

import pytest
import torch
from builders import make_short_trainer as make_trainer

from utils import report_classifier, report_instruction
from utils.classification import Metrics
from utils.plotting import drawable_characters, find_chinese_font
from utils.report_finetuning import print_model, print_use
from utils.run_files import Kept, RunFiles

LABELS = ["垃圾", "ok"]


def arguments(**changes) -> argparse.Namespace:
    return argparse.Namespace(**{"model_path": Path("m.pth"), "trainable": "all", **changes})


def test_trained_parameters_are_counted(capsys):
    trainer = make_trainer()
    trainer.model.requires_grad_(False)
    trainer.model.final_norm.requires_grad_(True)
    total = sum(parameter.numel() for parameter in trainer.model.parameters())
    print_model(trainer, arguments(trainable="head"), torch.bfloat16)
    lines = capsys.readouterr().out.splitlines()
    assert "精度 bfloat16" in lines[0]
    assert lines[1] == f"模型：m.pth，{total:,} 个参数，训练其中 64 个（head）"


@pytest.mark.parametrize("trainable", ["all", "lora"])
def test_adapter_is_mentioned_only_where_there_is_one(tmp_path, capsys, trainable):
    files = RunFiles(tmp_path / "c.pth")
    files.adapter.write_bytes(bytes(2600))
    print_use(files, arguments(trainable=trainable), "classify.py")
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"现在可以问它：python classify.py --model_path {files.model}"
    expected = f"适配器：{files.adapter}（3 KB），与原来的模型同用：--model_path m.pth --adapter_path {files.adapter}"
    assert lines[1:] == ([expected] if trainable == "lora" else [])


@pytest.mark.parametrize(("characters", "expected"), [("ok", ["#0", "ok"]), ("ok垃圾", LABELS)])
def test_labels_on_the_picture_depend_on_the_fonts(monkeypatch, characters, expected):
    monkeypatch.setattr(report_classifier, "drawable_characters", lambda _: set(characters))
    assert report_classifier.picture_names(LABELS) == expected


def test_font_knows_its_own_characters():
    own = drawable_characters(None)
    assert own.issuperset("label 5%") and "汉" not in own
    font = find_chinese_font()
    assert font is None or drawable_characters(font).issuperset("垃圾")


def test_confusion_picture_is_drawn_and_the_old_one_kept(tmp_path):
    path = tmp_path / "c.png"
    metrics = Metrics(LABELS, torch.tensor([[3, 1], [0, 5]]))
    assert report_classifier.draw_confusion(metrics, path) is None
    assert path.read_bytes().startswith(b"\x89PNG")
    assert report_classifier.draw_confusion(metrics, path) == tmp_path / "c.png.bak"


def test_any_label_can_be_drawn(tmp_path):
    """$ 不是公式的开头；标签很多时只画颜色，图不会大到画不出；字体里没有的和太长的不会惹出警告。"""
    odd = ["$\\foo$", "😀ไทย", "长" * 50]
    with warnings.catch_warnings(action="error"):
        report_classifier.draw_confusion(Metrics(odd, torch.eye(3, dtype=torch.long)), tmp_path / "a.png")
    many = [f"label{index}" for index in range(1000)]
    report_classifier.draw_confusion(Metrics(many, torch.eye(1000, dtype=torch.long)), tmp_path / "b.png")
    assert (tmp_path / "b.png").stat().st_size < 5_000_000


def test_font_that_is_found_is_installed():
    from matplotlib.font_manager import fontManager

    assert find_chinese_font() is None or find_chinese_font() in {font.name for font in fontManager.ttflist}


def test_exact_match_is_reported_before_and_after(monkeypatch, tmp_path, capsys):
    after = {"首字": (3, 4), None: (1, 2)}
    monkeypatch.setattr(report_instruction, "measure_exact_match", lambda *_: after)
    trainer, files = make_trainer(), RunFiles(tmp_path / "a.pth")
    files.kept = Kept(trainer.step, 1.0)
    report_instruction.print_result(trainer, {"首字": (0, 4), None: (0, 2)}, files, arguments())
    lines = capsys.readouterr().out.splitlines()
    assert "  首字  0% → 75%（4）" in lines
    assert "合计 0.0% → 66.7%（6），第 0 步的权重" in lines


@pytest.mark.parametrize("report", [report_classifier, report_instruction])
def test_result_is_measured_on_the_weights_in_the_file(monkeypatch, tmp_path, report):
    """内存里是最后的，文件里是最好的：报告说的是文件里的。"""
    trainer, files = make_trainer(), RunFiles(tmp_path / "a.pth")
    trainer.model.labels = LABELS
    files.save_model(trainer, 1.0)
    saved = trainer.model.final_norm.weight.detach().clone()
    trainer.step = 9
    with torch.no_grad():
        trainer.model.final_norm.weight.add_(1)
    seen = []

    def measure(model, *_):
        seen.append(model.final_norm.weight.detach().clone())
        return Metrics(LABELS, torch.eye(2, dtype=torch.long)) if report is report_classifier else {None: (1, 2)}

    monkeypatch.setattr(report, "measure" if report is report_classifier else "measure_exact_match", measure)
    before = trainer.validate_loader if report is report_classifier else {None: (0, 2)}
    report.print_result(trainer, before, files, arguments())
    assert torch.equal(seen[0], saved)
