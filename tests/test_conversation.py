"""utils/conversation.py：记得前几轮，放不下时忘掉最早的，总给回答留地方。"""

import pytest
import torch

from conftest import tiny_config
from model.language_model import LanguageModel
from utils.conversation import MIN_ANSWER, Assistant
from utils.generation import Sampling
from utils.prompt_template import Turn
from utils.text_utils import train_tokenizer


@pytest.fixture
def assistant(corpus_text):
    model = LanguageModel(tiny_config(context_length=64)).eval()
    model.template = "zh"
    tokenizer = train_tokenizer(corpus_text, 300)
    return Assistant(model, tokenizer, Sampling(), torch.Generator().manual_seed(0), 5)


OLD, MIDDLE, NEW = Turn("第一问" * 3, "答一"), Turn("二问", "答二"), Turn("三问")


def test_everything_is_read_while_it_fits(assistant):
    text = assistant.prompt_text([MIDDLE, NEW])
    assert text.startswith("问：二问\n答：答二") and text.endswith("问：三问\n答：")


def test_oldest_turns_are_forgotten_first(assistant):
    text = assistant.prompt_text([OLD, MIDDLE, NEW])
    assert "第一问" not in text and "二问" in text and text.endswith("问：三问\n答：")


def test_long_dialogue_costs_no_more_than_what_is_remembered(assistant, monkeypatch):
    expected, encoded = assistant.prompt_ids([MIDDLE] * 3 + [NEW]), []
    original = type(assistant)._encode
    monkeypatch.setattr(type(assistant), "_encode", lambda self, part: encoded.extend(part) or original(self, part))
    token_ids = assistant.prompt_ids([MIDDLE] * 5000 + [NEW])
    assert len(encoded) < 10 and token_ids[-len(expected) :] == expected[-len(token_ids) :]


def test_question_that_never_fits_keeps_its_end(assistant):
    token_ids = assistant.prompt_ids([Turn("长" * 500)])
    assert len(token_ids) == 64 - MIN_ANSWER
    assert assistant.tokenizer.decode(token_ids).endswith("\n答：")


def test_answer_is_streamed_without_the_prompt(assistant):
    answer = "".join(assistant.stream([NEW]))
    again = Assistant(assistant.model, assistant.tokenizer, Sampling(), torch.Generator(), 5)
    assert "问：" not in answer and answer == "".join(again.stream([NEW]))


def test_question_longer_than_the_room_is_noticed(assistant):
    assert assistant.fits(NEW) and not assistant.fits(Turn("长" * 500))
