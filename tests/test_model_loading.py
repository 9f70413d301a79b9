"""utils/model_loading.py：哪种文件该给哪个程序用；配置以文件里记的为准。其余的在 test_faults_generate.py。"""

import pytest
import torch

from conftest import tiny_config
from model.classifier import Classifier
from model.config import ModelConfig
from model.language_model import LanguageModel
from utils.errors import UserError
from utils.model_file import open_model_file, save_model
from utils.model_loading import load_model, move_model, open_language_model
from utils.text_utils import train_tokenizer


@pytest.fixture
def model(corpus_text):
    model = LanguageModel(tiny_config())
    model.tokenizer_state = train_tokenizer(corpus_text, 300).state()
    return model.eval()


def test_model_and_tokenizer_come_from_the_file(model, tmp_path):
    save_model(tmp_path / "m.pth", model)
    again, tokenizer = load_model(open_language_model(tmp_path / "m.pth"), ModelConfig.from_dict, LanguageModel)
    token_ids = torch.tensor([tokenizer.encode("悟空")])
    assert torch.equal(again.eval()(token_ids), model(token_ids)) and tokenizer.state() == model.tokenizer_state


def test_classifier_does_not_write(model, tmp_path):
    classifier = Classifier.from_language_model(model, ["甲", "乙"])
    save_model(tmp_path / "c.pth", classifier)
    with pytest.raises(UserError, match="是分类模型，不能续写"):
        open_language_model(tmp_path / "c.pth")
    file = open_model_file(tmp_path / "c.pth")
    again, _ = load_model(file, ModelConfig.from_dict, lambda cfg: Classifier(cfg, file.labels))
    token_ids = torch.tensor([[1, 2, 3]])
    assert torch.equal(again.eval().next_logits(token_ids), classifier.eval().next_logits(token_ids))


@pytest.mark.parametrize(("name", "dtype"), [("float32", torch.float32), ("auto", torch.float32)])
def test_small_model_stays_in_float32_on_the_cpu(model, name, dtype):
    moved = move_model(model, torch.device("cpu"), name)
    assert {parameter.dtype for parameter in moved.parameters()} == {dtype}
