"""多轮对话：前几轮和新的问话一起给模型读，放不下时忘掉最早的。"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from utils.generation import Sampling, read_prompt, stream_text
from utils.instruction_tuning import encode_turns
from utils.prompt_template import TEMPLATES, Turn
from utils.text_utils import Tokenizer

MIN_ANSWER = 16  # 至少给回答留这么多个 token（上下文很短时留一半）


@dataclass(frozen=True)
class Assistant:
    """会答话的模型，连同怎样抽样。"""

    model: nn.Module
    tokenizer: Tokenizer
    sampling: Sampling
    generator: torch.Generator
    max_new_tokens: int

    def prompt_ids(self, turns: Sequence[Turn]) -> list[int]:
        """最近几轮的 token id；最后一轮还没有回答。放不下时从最早的一轮忘起，最后一轮也放不下就只留末尾。"""
        token_ids = self._encode(turns[-1:])
        for turn in reversed(turns[:-1]):  # 从近到远：谈了几千轮，也只看放得下的几轮
            earlier = self._encode([turn])
            if len(earlier) + len(token_ids) > self._room:
                break
            token_ids = earlier + token_ids
        return token_ids[-self._room :]

    def fits(self, turn: Turn) -> bool:
        """这一问单独读得完。"""
        return len(self._encode([turn])) <= self._room

    @property
    def _room(self) -> int:
        """问话最多占多少个 token，其余的留给回答。"""
        context_length = self.model.cfg.context_length
        return context_length - min(MIN_ANSWER, context_length // 2)

    def _encode(self, turns: Sequence[Turn]) -> list[int]:
        return encode_turns(turns, TEMPLATES[self.model.template], self.tokenizer)[0]

    def prompt_text(self, turns: Sequence[Turn]) -> str:
        """模型真正读到的文字。"""
        return self.tokenizer.decode(self.prompt_ids(turns))

    def stream(self, turns: Sequence[Turn]) -> Iterator[str]:
        """一点一点交出对最后一轮的回答，到文本结束符为止。"""
        device = next(self.model.parameters()).device
        prompt = read_prompt(self.model, torch.tensor([self.prompt_ids(turns)], device=device))
        pieces = stream_text(self.model, self.tokenizer, prompt, self.max_new_tokens, self.sampling, self.generator)
        next(pieces)  # 第一段是开头
        yield from pieces
