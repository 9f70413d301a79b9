"""utils/adapter.py：适配器单独存成小文件，读回来加到原来的模型上；坏的、不配的都是一行说明。"""

import copy

import pytest
import torch

from conftest import tiny_config
from model.classifier import Classifier
from model.language_model import LanguageModel
from model.lora import LoRAConfig
from model.trainable import set_trainable
from utils.adapter import apply_adapter, read_adapter, save_adapter
from utils.errors import UserError
from utils.hugging_face import open_weights_file
from utils.model_file import save_model, save_state


@pytest.fixture
def saved(tmp_path):
    """(原来的模型, 微调过的模型, 适配器文件)"""
    base = Classifier(tiny_config(), ["好", "坏"])
    base.template = "zh"
    tuned = copy.deepcopy(base)
    set_trainable(tuned, "lora", LoRAConfig(2, 4.0))
    with torch.no_grad():
        for parameter in tuned.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    save_adapter(tmp_path / "a.lora", tuned)
    return base, tuned, tmp_path / "a.lora"


def test_base_and_adapter_equal_the_merged_model_file(saved, tmp_path):
    base, tuned, path = saved
    file = read_adapter(path)
    assert (file.labels, file.template) == (["好", "坏"], "zh")
    apply_adapter(base, file)
    merged = tuned.plain_state_dict()
    assert all(torch.equal(value, merged[name]) for name, value in base.named_parameters())
    assert path.stat().st_size < 30_000


def test_adapter_and_checkpoint_given_as_the_model_are_told_apart_from_one(saved, tmp_path):
    _, tuned, path = saved
    save_state(tmp_path / "step.ckpt", {"model": tuned.state_dict()})
    for wrong in (path, tmp_path / "step.ckpt"):
        with pytest.raises(UserError, match=f"{wrong.name}：是 LoRA 的适配器或检查点.*--adapter_path"):
            open_weights_file(wrong)
    save_model(tmp_path / "merged.pth", tuned)
    assert open_weights_file(tmp_path / "merged.pth").labels == ["好", "坏"]


def test_model_without_lora_writes_no_adapter(tmp_path):
    save_adapter(tmp_path / "a.lora", LanguageModel(tiny_config()))
    assert not (tmp_path / "a.lora").exists()


def test_other_base_is_named_as_the_reason(saved):
    with pytest.raises(UserError, match="a.lora.*从另一个模型微调来的.*--model_path"):
        apply_adapter(Classifier(tiny_config(), ["好", "坏"]), read_adapter(saved[2]))


@pytest.mark.parametrize(
    "change",
    [
        {"_extra_state": None},
        {"_extra_state": {"rank": 2}},
        {"rank": "2"},
        {"rank": 0},
        {"rank": True},
        {"rank": 10**10},
        {"alpha": float("nan")},
        {"alpha": 10**400},
        {"projections": "some"},
        {"labels": [1]},
        {"template": 3},
    ],
)
def test_bad_descriptions_are_refused(saved, change):
    path = saved[2]
    state = torch.load(path, weights_only=True)
    if "_extra_state" in change:
        state |= change
    else:
        state["_extra_state"] |= change
    save_state(path, state)
    with pytest.raises(UserError, match="不是适配器文件"):
        read_adapter(path)


def test_bad_files_are_refused(saved, tmp_path):
    path = saved[2]
    save_model(tmp_path / "model.pth", saved[0])
    with pytest.raises(UserError, match="不是适配器文件"):
        read_adapter(tmp_path / "model.pth")
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(UserError, match="校验失败"):
        read_adapter(path)
    with pytest.raises(UserError, match="找不到适配器文件.*--trainable lora"):
        read_adapter(tmp_path / "missing.lora")
