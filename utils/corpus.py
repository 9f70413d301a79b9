"""语料：一篇文字，或许多篇文档，怎样变成训练和验证两串 token，以及各有多少字。"""

import codecs
import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import BinaryIO

from torch import Tensor
from torch.utils.data import DataLoader

from utils import files
from utils.cache_record import read_record, write_record
from utils.console import progress_bar
from utils.data_loader import EpochSampler, WindowDataset, create_dataloader, split_point
from utils.document_split import Place, split_documents
from utils.documents import DocumentCollection
from utils.errors import UserError
from utils.settings import TrainingSettings
from utils.text_file import TextFile
from utils.text_utils import Tokenizer, build_tokenizer
from utils.token_file import TokenFile, create_tokens, open_tokens, write_tokens
from utils.token_sequence import TokenSequence
from utils.token_shards import TokenShards
from utils.vocabulary_text import text_from_documents, text_from_file

# 改了其中任何一个，分词的结果就可能不同，旧的缓存不再算数
TOKENIZING_CODE = (
    *("corpus.py", "data_loader.py", "sure_break.py", "text_file.py", "text_utils.py", "token_file.py"),
    "vocabulary_text.py",
)
VOCABULARY_CODE = ("document_file.py", "text_file.py", "text_utils.py", "vocabulary_text.py")
EXCERPT_CHARACTERS = 20_000
OPENING_CHARACTERS = 8
DECODED_TOKENS = 4096  # 还原成文字时一次这么多个


@dataclass(frozen=True)
class Corpus:
    """两部分各自分词，验证部分的任何一个字都没有参与训练词表。"""

    path: Path | str  # 给人看的：文件，或“某个文件 等 3 个文件”
    tokenizer: Tokenizer
    train_characters: int
    validate_characters: int
    tokens: TokenFile | TokenShards
    excerpt: str  # 训练部分开头的一段，用来比较词表
    opening: str  # 验证部分开头的几个字，用来给样文起头；验证部分全是空白时取训练部分的
    facts: dict[str, str] = field(default_factory=dict)  # 报告里另外要写的，{名字: 值}

    @classmethod
    def open(cls, source: TextFile | DocumentCollection, tokenizer_spec: dict) -> "Corpus":
        """source 见 documents.open_source。"""
        if isinstance(source, TextFile):
            return cls.from_file(source, tokenizer_spec)
        return cls.from_documents(source, tokenizer_spec)

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

    @classmethod
    def from_documents(cls, collection: DocumentCollection, tokenizer_spec: dict) -> "Corpus":
        """每篇之后跟着文本结束符。检查过、分过词的文件没有变，就不再读。"""
        train, validate = split_documents(collection)
        tokenizer = _load_or_build_tokenizer(train, tokenizer_spec)
        tokens = TokenShards.load_or_create([train, validate], tokenizer)
        starts = [_text_of(ids, tokenizer) for ids in tokens.parts]
        return cls(
            path=collection.name,
            tokenizer=tokenizer,
            train_characters=sum(place.stretch.characters for place in train),
            validate_characters=sum(place.stretch.characters for place in validate),
            tokens=tokens,
            excerpt="".join(_text_of(tokens.parts[0][:EXCERPT_CHARACTERS], tokenizer)),
            opening=_opening(starts[1]) or _opening(starts[0]),
            facts=collection.facts,
        )

    def train_text(self) -> str:
        """训练部分的文字，由 token 还原；文档之间是空行。"""
        return "".join(_text_of(self.train_ids, self.tokenizer))

    def validate_text(self, num_characters: int) -> str:
        """验证部分开头的这么多个字。"""
        text = ""
        for piece in _text_of(self.validate_ids, self.tokenizer):
            text += piece
            if len(text) >= num_characters:
                break
        return text[:num_characters]

    @property
    def train_ids(self) -> Tensor | TokenSequence:
        """(训练 token 数,) uint16 或 int32，映射着文件。"""
        return self.tokens.parts[0]

    @property
    def validate_ids(self) -> Tensor | TokenSequence:
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
    tokenizer = build_tokenizer(tokenizer_spec, text_from_file(source, boundary))
    info = {"code": code, "tokenizer": tokenizer.state()}
    return create_tokens(path, partial(_write_parts, source=source, boundary=boundary, tokenizer=tokenizer, info=info))


def _fingerprint_of_code() -> str:
    return files.fingerprint_of_code(TOKENIZING_CODE)


def _load_or_build_tokenizer(train: list[Place], spec: dict) -> Tokenizer:
    """训练出的词表也记在缓存里；训练部分变了才重新训练。"""
    if "ranks" in spec or spec["type"] == "gpt2":
        return build_tokenizer(spec, "")
    contents = [(place.file.source.fingerprint, place.stretch.start, place.stretch.stop) for place in train]
    code = files.fingerprint_of_code(VOCABULARY_CODE)
    key = hashlib.sha256(json.dumps([spec, contents, code], sort_keys=True).encode()).hexdigest()
    path = files.CACHE_DIR / f"{key[:32]}.vocabulary"
    if record := read_record(path):
        return Tokenizer.from_state(record)
    tokenizer = build_tokenizer(spec, text_from_documents(train))
    write_record(path, tokenizer.state())
    return tokenizer


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


def _text_of(token_ids: Tensor | TokenSequence, tokenizer: Tokenizer) -> Iterator[str]:
    """还原成一块一块的文字；文本结束符变成空行。"""
    decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
    for block in token_ids.split(DECODED_TOKENS):
        tokens = [b"\n\n" if i == tokenizer.end_of_text_id else tokenizer.token_bytes(i) for i in block.tolist()]
        yield decoder.decode(b"".join(tokens))
