"""utils/classification.py：标签只在最后一个真正的 token 上；各项指标与手算、与独立的定义相同。"""

import pytest
import torch

from conftest import tiny_config
from model.classifier import Classifier
from model.language_model import LanguageModel
from utils.classification import (
    ClassificationDataset,
    Metrics,
    balanced_indices,
    classify,
    create_loaders,
    measure,
)
from utils.cross_entropy import IGNORE_INDEX
from utils.labeled_text import LabeledText
from utils.settings import TrainingSettings
from utils.text_utils import train_tokenizer

LABELS = ["坏", "好"]
RECORDS = [LabeledText(LABELS[i % 3 > 0], "悟空" * (1 + i % 5)) for i in range(12)]


@pytest.fixture
def tokenizer(corpus_text):
    return train_tokenizer(corpus_text, 300)


@pytest.fixture
def dataset(tokenizer):
    return ClassificationDataset(RECORDS, LABELS, tokenizer, 16)


def test_label_stands_at_the_last_token_and_nowhere_else(dataset, tokenizer):
    for index, record in enumerate(RECORDS):
        inputs, targets = dataset[index]
        assert inputs.tolist() == tokenizer.encode(record.text)[:16]
        assert targets[:-1].tolist() == [IGNORE_INDEX] * (len(inputs) - 1)
        assert LABELS[targets[-1]] == record.label


def test_long_text_is_cut_and_counted(tokenizer):
    dataset = ClassificationDataset([LabeledText("好", "大圣" * 50), *RECORDS], LABELS, tokenizer, 8)
    assert len(dataset[0][0]) == 8 and dataset.num_truncated >= 1


def test_batches_are_padded_without_touching_the_labels(dataset, tokenizer):
    settings = TrainingSettings(batch_size=4)
    train, validate, test = create_loaders([dataset] * 3, settings, tokenizer.end_of_text_id, False)
    for loader in (train, validate, test):
        assert sum((targets != IGNORE_INDEX).sum().item() for _, targets in loader) == len(RECORDS)
    inputs, targets = next(iter(test))
    lengths = [len(dataset[index][0]) for index in range(4)]
    assert inputs.shape == targets.shape == (4, max(lengths))
    assert all((inputs[i, n:] == tokenizer.end_of_text_id).all() for i, n in enumerate(lengths))


def test_balancing_repeats_the_rare_label():
    label_ids = [0, 1, 1, 1, 1, 0, 1]
    picked = [label_ids[index] for index in balanced_indices(label_ids)]
    assert picked.count(0) == picked.count(1) == 5
    assert set(balanced_indices(label_ids)) == set(range(7))


def test_metrics_by_hand():
    # 真实为坏的 5 条里判对 3 条；真实为好的 15 条里判对 14 条
    metrics = Metrics(LABELS, torch.tensor([[3, 2], [1, 14]]))
    assert metrics.accuracy == pytest.approx(17 / 20)
    assert metrics.of(0) == pytest.approx((3 / 4, 3 / 5, 2 * 3 / (4 + 5)))
    assert metrics.of(1) == pytest.approx((14 / 16, 14 / 15, 2 * 14 / (16 + 15)))
    assert Metrics(LABELS, torch.tensor([[0, 5], [0, 5]])).of(0) == (0.0, 0.0, 0.0)
    assert "坏  75.0%  60.0%  0.667  5" in metrics.table()


def test_batched_measuring_equals_classifying_one_by_one(dataset, tokenizer):
    model = Classifier.from_language_model(LanguageModel(tiny_config()), LABELS).eval()
    loader = create_loaders([dataset] * 3, TrainingSettings(batch_size=5), tokenizer.end_of_text_id, False)[2]
    expected = torch.zeros(2, 2, dtype=torch.long)
    with torch.inference_mode():
        for record in RECORDS:
            label, probability = classify(model, tokenizer, record.text)
            expected[LABELS.index(record.label), LABELS.index(label)] += 1
            assert 0.5 <= probability <= 1
    assert torch.equal(measure(model, loader, LABELS).confusion, expected)
