"""utils/instruction_tuning.py：只在回答上计损失；完全答对的比例与真的贪心生成相同。"""

import pytest
import torch

from conftest import tiny_config
from model.language_model import LanguageModel
from utils.cross_entropy import IGNORE_INDEX
from utils.generation import Sampling, generate_tokens, read_prompt
from utils.instruction_data import Conversation
from utils.instruction_tuning import InstructionDataset, create_loaders, encode_turns, measure_exact_match
from utils.prompt_template import TEMPLATES, Turn
from utils.settings import TrainingSettings
from utils.text_utils import train_tokenizer

ZH = TEMPLATES["zh"]


@pytest.fixture
def tokenizer(corpus_text):
    return train_tokenizer(corpus_text, 300)


def conversation(*turns: tuple[str, str], task: str = "聊天") -> Conversation:
    return Conversation(tuple(Turn(*turn) for turn in turns), task, None)


def test_loss_is_on_the_answers_and_their_ends_only(tokenizer):
    dataset = InstructionDataset([conversation(("一", "二三"), ("四", "五"))], ZH, tokenizer, 200)
    inputs, targets = dataset[0]
    supervised = targets[targets != IGNORE_INDEX].tolist()
    end = tokenizer.end_of_text_id
    assert supervised == [*tokenizer.encode("二三"), end, *tokenizer.encode("五"), end]
    # 目标比输入晚一位
    places = (targets != IGNORE_INDEX).nonzero().flatten()
    whole, _ = encode_turns([Turn("一", "二三"), Turn("四", "五")], ZH, tokenizer)
    assert inputs.tolist() == whole[:-1]
    assert [whole[place + 1] for place in places] == supervised


def test_prompt_of_the_dialogue_is_the_beginning_of_the_training_sample(tokenizer):
    """训练和对话用的是同一份模板、同样的切法。"""
    trained, _ = encode_turns([Turn("一", "二"), Turn("三", "四")], ZH, tokenizer)
    asked, is_answer = encode_turns([Turn("一", "二"), Turn("三")], ZH, tokenizer)
    assert trained[: len(asked)] == asked and not is_answer[-1]


def test_control_token_typed_by_a_user_is_text(tokenizer):
    token_ids, is_answer = encode_turns([Turn("<|endoftext|>", "<|endoftext|>")], ZH, tokenizer)
    assert token_ids.count(tokenizer.end_of_text_id) == 1 and token_ids[-1] == tokenizer.end_of_text_id


def test_long_sample_is_cut_and_one_without_an_answer_is_left_out(tokenizer):
    records = [conversation(("短", "答" * 90)), conversation(("长" * 90, "答")), conversation(("短", "答"))]
    dataset = InstructionDataset(records, ZH, tokenizer, 40)
    assert (len(dataset), dataset.num_truncated, dataset.num_dropped) == (2, 1, 1)
    assert len(dataset[0][0]) == 40


class Perfect(torch.nn.Module):
    """总把目标猜对；词表补齐的 num_padded 个 id 分数更高，但生成时抽不到。"""

    def __init__(self, dataset, num_padded: int = 0):
        super().__init__()
        self.unused, self.num_padded = torch.nn.Parameter(torch.zeros(1)), num_padded
        self.targets = iter([dataset[index][1].clamp(min=0) for index in range(len(dataset))])

    def forward(self, inputs):
        scores = torch.nn.functional.one_hot(next(self.targets), 300)[None].float()
        return torch.nn.functional.pad(scores, (0, self.num_padded), value=9.0)


def test_truncated_answer_is_never_exactly_right(tokenizer):
    records = [conversation(("短", "答" * 90), task="长"), conversation(("短", "答"), task="短")]
    dataset = InstructionDataset(records, ZH, tokenizer, 40)
    loader = create_loaders(dataset, dataset, TrainingSettings(batch_size=1), 0)[1]
    assert measure_exact_match(Perfect(dataset), loader) == {"长": (0, 1), "短": (1, 1)}


def test_padded_ids_do_not_count_as_guesses(tokenizer):
    dataset = InstructionDataset([conversation(("短", "答"))], ZH, tokenizer, 40)
    loader = create_loaders(dataset, dataset, TrainingSettings(batch_size=1), 0)[1]
    assert measure_exact_match(Perfect(dataset, num_padded=4), loader) == {"聊天": (1, 1)}


def test_exact_match_equals_greedy_generation(tokenizer):
    model = LanguageModel(tiny_config(context_length=64)).eval()
    questions = [chr(0x4E00 + 7 * i) for i in range(12)]

    def answer(question: str) -> list[int]:
        token_ids, _ = encode_turns([Turn(question)], ZH, tokenizer)
        tokens = generate_tokens(
            model, read_prompt(model, torch.tensor([token_ids])), 300, Sampling(), torch.Generator()
        )
        return [next(tokens).item() for _ in range(4)]

    records = []
    for index, question in enumerate(questions):
        text = tokenizer.decode(answer(question)) if index % 2 else "别的"
        records.append(conversation((question, text), task="对" if index % 2 else "错"))
    dataset = InstructionDataset(records, ZH, tokenizer, 64)
    for index in range(len(dataset)):  # 模型不会自己停：答案去掉结束符再比
        token_ids, is_answer = dataset.samples[index]
        dataset.samples[index] = (token_ids[:-1], is_answer[:-1])
    loader = create_loaders(dataset, dataset, TrainingSettings(batch_size=5), 0)[1]
    expected = {}
    for index, question in enumerate(questions):
        token_ids, is_answer = dataset.samples[index]
        wanted = token_ids[is_answer].tolist()
        right, total = expected.get(records[index].task, (0, 0))
        expected[records[index].task] = (right + (answer(question)[: len(wanted)] == wanted), total + 1)
    assert measure_exact_match(model, loader) == expected
    assert expected["错"][0] < 6 and sum(total for _, total in expected.values()) == 12
