"""model/classifier.py：主干还是原来的，头是新的；后面补什么都影响不到标签。"""

import torch

from conftest import tiny_config
from model.classifier import Classifier
from model.language_model import LanguageModel

LABELS = ["垃圾", "正常", "不知道"]


def make_classifier() -> tuple[LanguageModel, Classifier]:
    model = LanguageModel(tiny_config()).eval()
    return model, Classifier.from_language_model(model, LABELS).eval()


def test_body_is_the_language_model():
    model, classifier = make_classifier()
    token_ids = torch.randint(0, 300, (2, 7))
    assert torch.equal(model.features(token_ids), classifier.features(token_ids))
    assert classifier(token_ids).shape == (2, 7, 3)
    assert classifier.next_logits(token_ids).shape == (2, 3)


def test_padding_on_the_right_does_not_matter():
    _, classifier = make_classifier()
    text, padding = torch.randint(0, 300, (1, 5)), torch.randint(0, 300, (1, 6))
    alone, padded = classifier(text), classifier(torch.cat((text, padding), dim=1))
    torch.testing.assert_close(padded[:, :5], alone)


def test_labels_travel_with_the_model():
    _, classifier = make_classifier()
    state = classifier.state_dict()["_extra_state"]
    assert state["labels"] == LABELS and state["config"]["tie_weights"] is False


def test_head_is_the_only_part_that_is_drawn():
    model = LanguageModel(tiny_config())
    torch.manual_seed(3)
    classifier = Classifier.from_language_model(model, LABELS)
    torch.manual_seed(3)
    expected = torch.nn.Linear(32, 3)
    torch.nn.init.normal_(expected.weight, std=0.02)
    assert torch.equal(classifier.out_head.weight, expected.weight)
    assert not any(parameter.is_meta for parameter in classifier.parameters())
