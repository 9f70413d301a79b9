"""语料：一个文本文件怎样变成训练和验证两串 token，以及各有多少字。"""

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import BinaryIO

from torch import Tensor
from torch.utils.data import DataLoader

from utils import files
from utils.console import progress_bar
from utils.data_loader import EpochSampler, WindowDataset, create_dataloader, split_point
from utils.errors import UserError
from utils.settings import TrainingSettings
from utils.text_file import TextFile
from utils.text_utils import Tokenizer, build_tokenizer
from utils.token_file import TokenFile, create_tokens, open_tokens, write_tokens

# 改了其中任何一个，分词的结果就可能不同，旧的缓存不再算数
TOKENIZING_CODE = ("corpus.py", "data_loader.py", "text_file.py", "text_utils.py", "token_file.py")
VOCABULARY_CHARACTERS = 3_000_000  # 训练词表最多用这么多字：再多，词表几乎不变，内存却要涨几百 MB
VOCABULARY_PIECES = 100  # 训练部分更长时，均匀地取这么多段
EXCERPT_CHARACTERS = 20_000
OPENING_CHARACTERS = 8


@dataclass(frozen=True)
class Corpus:
    """两部分各自分词，验证部分的任何一个字都没有参与训练词表。"""

    path: Path
    tokenizer: Tokenizer
    train_characters: int
    validate_characters: int
    tokens: TokenFile
    excerpt: str  # 训练部分开头的一段，用来比较词表
    opening: str  # 验证部分开头的几个字，用来给样文起头；验证部分全是空白时取训练部分的

    @classmethod
    def from_file(cls, source: TextFile, tokenizer_spec: dict) -> "Corpus":
        """分过词的文字不再分第二遍：结果缓存在 files.CACHE_DIR，文字、分词器或分词的代码变了才重做。"""
        boundary = split_point(source.num_characters)
        tokens = _load_or_create_tokens(source, tokenizer_spec, boundary)
        train, validate = source.pieces(0, boundary), source.pieces(boundary, source.num_characters)
        return cls(
            path=source.path,
            tokenizer=Tokenizer.from_state(tokens.info["tokenizer"]),
            train_characters=boundary,
            validate_characters=source.num_characters - boundary,
            tokens=tokens,
            excerpt="".join(source.pieces(0, min(boundary, EXCERPT_CHARACTERS))),
            opening=_opening(validate) or _opening(train),
        )

    @property
    def train_ids(self) -> Tensor:
        """(训练 token 数,) uint16 或 int32，映射着文件。"""
        return self.tokens.parts[0]

    @property
    def validate_ids(self) -> Tensor:
        """(验证 token 数,)，同上。"""
        return self.tokens.parts[1]

    @property
    def characters_per_token(self) -> float:
        """每个 token 平均几个字：越大，同样长的上下文看得越远。"""
        num_tokens = len(self.train_ids) + len(self.validate_ids)
        return (self.train_characters + self.validate_characters) / num_tokens

    def check_vocab_size(self, vocab_size: int, config_path: Path) -> None:
        """模型的词表要放得下分词器的。"""
        if vocab_size < self.tokenizer.vocab_size:
            reason = f"vocab_size={vocab_size} 小于分词器词表 {self.tokenizer.vocab_size}"
            raise UserError(config_path, reason, "把 vocab_size 改成分词器词表的大小。")

    def create_loaders(self, context_length: int, settings: TrainingSettings) -> tuple[DataLoader, DataLoader]:
        """-> (训练, 验证)；训练每轮错开并打乱，验证按原文顺序、窗口不重叠、一个不丢。"""
        release = self.tokens.release
        train = WindowDataset(self.train_ids, context_length, 1, release)  # 间隔由 EpochSampler 决定
        validate = WindowDataset(self.validate_ids, context_length, context_length, release)
        for name, part, ids in (("训练", train, self.train_ids), ("验证", validate, self.validate_ids)):
            if not len(part):
                reason = f"{name}部分只有 {len(ids)} 个 token，至少需要 {context_length + 1} 个"
                raise UserError(self.path, reason, "减小配置里的 context_length，或换更长的语料。")
        sampler = EpochSampler(len(train), settings.seed, settings.stride or context_length)
        train_loader = create_dataloader(train, settings.batch_size, sampler)
        return train_loader, create_dataloader(validate, settings.batch_size)


def _load_or_create_tokens(source: TextFile, tokenizer_spec: dict, boundary: int) -> TokenFile:
    key = json.dumps([source.digest, source.encoding, tokenizer_spec], sort_keys=True)
    path = files.CACHE_DIR / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.tokens"
    code = _fingerprint_of_code()
    files.remove_leftovers(files.CACHE_DIR, r"[0-9a-f]{32}\.tokens")
    tokens = open_tokens(path)
    if tokens and tokens.info["code"] == code:
        return tokens
    tokenizer = build_tokenizer(tokenizer_spec, _vocabulary_text(source, boundary))
    info = {"code": code, "tokenizer": tokenizer.state()}
    return create_tokens(path, partial(_write_parts, source=source, boundary=boundary, tokenizer=tokenizer, info=info))


def _fingerprint_of_code() -> str:
    folder = Path(__file__).parent
    return hashlib.sha256(b"".join((folder / name).read_bytes() for name in TOKENIZING_CODE)).hexdigest()


def _vocabulary_text(source: TextFile, boundary: int) -> str:
    """训练词表用的文字：训练部分的全部；太长时均匀地取若干段，合起来 VOCABULARY_CHARACTERS 字。"""
    if boundary <= VOCABULARY_CHARACTERS:
        return "".join(source.pieces(0, boundary))
    starts = [boundary * index // VOCABULARY_PIECES for index in range(VOCABULARY_PIECES)]
    length = VOCABULARY_CHARACTERS // VOCABULARY_PIECES
    return "".join(piece for start in starts for piece in source.pieces(start, start + length))


def _write_parts(file: BinaryIO, source: TextFile, boundary: int, tokenizer: Tokenizer, info: dict) -> None:
    with progress_bar("分词", source.num_characters, "字") as bar:

        def pieces(start: int, stop: int) -> Iterable[str]:
            for piece in source.pieces(start, stop):
                yield piece
                bar.update(len(piece))

        write_tokens(file, tokenizer, [pieces(0, boundary), pieces(boundary, source.num_characters)], info)


def _opening(pieces: Iterable[str]) -> str:
    """去掉开头的空白之后的几个字；全是空白则为空。"""
    text = ""
    for piece in pieces:
        text = (text + piece).lstrip()
        if len(text) >= OPENING_CHARACTERS:
            break
    return text[:OPENING_CHARACTERS]
