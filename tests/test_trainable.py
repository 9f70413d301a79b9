"""model/trainable.py：每种做法训练的恰好是说好的那些参数。"""

import pytest

from conftest import tiny_config
from model.classifier import Classifier
from model.language_model import LanguageModel
from model.lora import LoRAConfig
from model.trainable import TRAINABLE, set_trainable


def trained_names(mode: str, model=None) -> set[str]:
    model = model or Classifier.from_language_model(LanguageModel(tiny_config()), ["a", "b"])
    set_trainable(model, mode, LoRAConfig(2, 4.0))
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


HEAD = {"out_head.weight", "out_head.bias", "final_norm.weight", "final_norm.bias"}


def test_head_is_the_output_layer_and_the_last_norm():
    assert trained_names("head") == HEAD


def test_last_block_adds_one_block():
    names = trained_names("last_block")
    assert names > HEAD and all(name in HEAD or name.startswith("trf_blocks.1.") for name in names)


def test_lora_trains_the_adapters_and_a_new_head_only():
    names = trained_names("lora")
    assert {name for name in names if "lora_" not in name} == {"out_head.weight", "out_head.bias"}
    assert all("lora_" in name for name in trained_names("lora", LanguageModel(tiny_config())))


@pytest.mark.parametrize("mode", TRAINABLE)
def test_every_mode_can_be_chosen_after_another(mode):
    model = Classifier.from_language_model(LanguageModel(tiny_config()), ["a", "b"])
    trained_names("head", model)
    assert trained_names(mode, model)
