"""指令微调：对话怎样变成只在回答上计损失的训练数据，怎样算完全答对的比例。"""

from collections import defaultdict
from collections.abc import Sequence
from contextlib import AbstractContextManager
from functools import partial
from itertools import chain

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from utils.cross_entropy import IGNORE_INDEX
from utils.data_loader import EpochSampler, create_dataloader, pad_batch
from utils.distributed import map_batches
from utils.fine_tuning import quote
from utils.instruction_data import Conversation
from utils.prompt_template import Template, Turn
from utils.settings import TrainingSettings
from utils.text_utils import Tokenizer
from utils.train_utils import FULL_PRECISION, Batch, copy_to, evaluating


def encode_turns(turns: Sequence[Turn], template: Template, tokenizer: Tokenizer) -> tuple[list[int], list[bool]]:
    """一段对话的 token id，和每个 token 是不是回答（含结尾的文本结束符）。

    开头和回答分开分词：生成时模型从开头的末尾接着写，切法才与训练时相同。最后一轮没有回答时只有开头。
    """
    token_ids, is_answer = [], []
    for turn in turns:
        prompt = tokenizer.encode(template.prompt(turn.question))
        answer = tokenizer.encode(turn.answer) + [tokenizer.end_of_text_id] if turn.answer else []
        token_ids += prompt + answer
        is_answer += [False] * len(prompt) + [True] * len(answer)
    return token_ids, is_answer


class InstructionDataset(Dataset):
    """第 i 个样本：目标是下一个 token，只在它属于回答时计损失；其余位置是 IGNORE_INDEX。

    超过上下文长度的截去末尾；截得一个回答的 token 也不剩的不要。
    """

    def __init__(self, records: list[Conversation], template: Template, tokenizer: Tokenizer, context_length: int):
        self.vocab_size = tokenizer.vocab_size
        self.samples, self.questions, self.tasks, self.is_whole = [], [], [], []
        for record in records:
            token_ids, is_answer = encode_turns(record.turns, template, tokenizer)
            is_whole = len(token_ids) <= context_length + 1
            token_ids, is_answer = token_ids[: context_length + 1], is_answer[: context_length + 1]
            if any(is_answer):
                self.samples.append((torch.tensor(token_ids), torch.tensor(is_answer)))
                self.questions.append(record.turns[0].question)
                self.tasks.append(record.task)
                self.is_whole.append(is_whole)
        self.num_dropped = len(records) - len(self)
        self.num_truncated = self.is_whole.count(False)

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        """-> 输入 (seq,)，目标 (seq,)，int64"""
        token_ids, is_answer = self.samples[index]
        return token_ids[:-1], token_ids[1:].masked_fill(~is_answer[1:], IGNORE_INDEX)

    def place_of(self, index: int) -> str:
        """留出一成时打乱过，用不上的也去掉了，所以不写编号，用开头的文字指认。"""
        return quote(self.questions[index])


def create_loaders(
    train: InstructionDataset, held_out: InstructionDataset, settings: TrainingSettings, pad_id: int
) -> tuple[DataLoader, DataLoader]:
    """-> (训练, 留出)；训练的每轮打乱，每批只补齐到这一批里最长的。"""
    collate = partial(pad_batch, pad_id=pad_id)
    train_loader = create_dataloader(train, settings.batch_size, EpochSampler(len(train), settings.seed), collate)
    return train_loader, create_dataloader(held_out, settings.batch_size, collate=collate)


def measure_exact_match(
    model: nn.Module, loader: DataLoader, precision: AbstractContextManager = FULL_PRECISION
) -> dict[str | None, tuple[int, int]]:
    """{任务: (完全答对几条, 一共几条)}；loader 按 InstructionDataset 原来的次序。

    把标准答案喂进去，看每个位置最可能的是不是它的下一个 token。处处都是，贪心生成便一字不差地写出它；有一处不是，
    贪心生成就在那里走岔。所以一次前向就够，不必逐个生成。
    """
    device = next(model.parameters()).device

    def check(batch: Batch) -> list[bool]:
        inputs, targets = copy_to(device, batch)
        guesses = model(inputs)[..., : loader.dataset.vocab_size].argmax(dim=-1)  # 生成时抽不到词表的补齐部分
        matches = (guesses == targets) | (targets == IGNORE_INDEX)
        return matches.all(dim=1).tolist()

    with evaluating(model), precision:
        is_right = list(chain.from_iterable(map_batches(check, loader)))
    counts = defaultdict(lambda: [0, 0])
    for task, right, is_whole in zip(loader.dataset.tasks, is_right, loader.dataset.is_whole, strict=True):
        counts[task][0] += right and is_whole  # 截去了末尾的，不算答得完全
        counts[task][1] += 1
    return {task: tuple(count) for task, count in counts.items()}
