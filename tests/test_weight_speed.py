"""utils/weight_speed.py：挑出量得最快的权重格式，并且记住。"""

import json

import pytest

from conftest import tiny_config
from model.language_model import LanguageModel
from utils import files, weight_speed
from utils.weight_speed import CANDIDATES, choose, fastest_format, measure

SECONDS = {"float32": 1.0, "float16": 0.8, "bfloat16": 0.5}


@pytest.fixture
def model(monkeypatch) -> LanguageModel:
    """小模型，但也去量。"""
    monkeypatch.setattr(weight_speed, "MIN_PARAMETERS", 0)
    return LanguageModel(tiny_config())


def pretend(monkeypatch, seconds: dict[str, float]) -> list[LanguageModel]:
    """让测量给出指定的结果；返回量过的模型。"""
    measured = []

    def fake(model):
        measured.append(model)
        return seconds

    monkeypatch.setattr(weight_speed, "measure", fake)
    return measured


def remembered() -> dict[str, str]:
    return json.loads((files.CACHE_DIR / "weight_format.json").read_text(encoding="utf-8"))


def test_fastest_wins_but_only_by_a_clear_margin():
    assert choose(SECONDS) == "bfloat16"
    assert choose({"float32": 1.0, "float16": 0.95, "bfloat16": 1.2}) == "float32"


def test_every_candidate_is_measured():
    seconds = measure(LanguageModel(tiny_config()))
    assert set(seconds) == set(CANDIDATES) and all(value > 0 for value in seconds.values())


def test_model_is_measured_once_and_the_choice_remembered(model, monkeypatch):
    measured = pretend(monkeypatch, SECONDS)
    assert [fastest_format(model) for _ in range(3)] == ["bfloat16"] * 3
    assert measured == [model]
    assert list(json.loads((files.CACHE_DIR / "weight_format.json").read_text(encoding="utf-8")).values()) == [
        "bfloat16"
    ]


def test_another_size_of_model_is_measured_again(model, monkeypatch):
    measured = pretend(monkeypatch, SECONDS)
    other = LanguageModel(tiny_config(num_layers=1))
    assert [fastest_format(item) for item in (model, other, model)] == ["bfloat16"] * 3
    assert measured == [model, other]


def test_another_machine_measures_again(model, monkeypatch):
    measured = pretend(monkeypatch, SECONDS)
    fastest_format(model)
    monkeypatch.setattr(weight_speed, "processor_name", lambda: "另一种处理器")
    fastest_format(model)
    assert len(measured) == len(remembered()) == 2


@pytest.mark.parametrize("content", [b"", b"[1]", b"\xff", b'{"x": 1}', "坏".encode("gbk")])
def test_damaged_memory_is_ignored(model, monkeypatch, content):
    pretend(monkeypatch, SECONDS)
    (files.CACHE_DIR / "weight_format.json").write_bytes(content)
    assert fastest_format(model) == "bfloat16"


def test_unknown_remembered_format_is_measured_again(model, monkeypatch):
    pretend(monkeypatch, SECONDS)
    fastest_format(model)
    path = files.CACHE_DIR / "weight_format.json"
    path.write_text(json.dumps(dict.fromkeys(remembered(), "float8")), encoding="utf-8")
    assert fastest_format(model) == "bfloat16"


def test_place_that_cannot_be_written_does_not_matter(model, monkeypatch, tmp_path):
    pretend(monkeypatch, SECONDS)
    (tmp_path / "file").write_bytes(b"")
    monkeypatch.setattr(files, "CACHE_DIR", tmp_path / "file")
    assert fastest_format(model) == "bfloat16"


def test_small_models_stay_float32_without_measuring(monkeypatch):
    measured = pretend(monkeypatch, SECONDS)
    assert fastest_format(LanguageModel(tiny_config())) == "float32" and measured == []
