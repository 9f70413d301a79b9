"""文本和 token id 互转：GPT-2 的词表，或在自己的语料上训练的字节级 BPE。道理见 docs/分词.md。"""

import base64
import codecs
import hashlib
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import tiktoken
import torch
from torch import Tensor

from utils.errors import UserError
from utils.files import check_input_file
from utils.token_sequence import TokenSequence

GPT2_VOCABULARY_PATH = Path(__file__).resolve().parent.parent / "data" / "gpt2.tiktoken"
GPT2_VOCABULARY_SHA256 = "306cd27f03c1a714eca7108e03d66b7dc042abe8c258b44c199a7ed9838dd930"
CHUNK_CHARACTERS = 100_000
PARAGRAPH_START = re.compile(r"(?<=\n)(?=\S)")
COUNT_BLOCK = 1 << 20  # 一次统计这么多个 token，内存映射着的长文也不会整个读进来
# 百万个连续的空白会让 tiktoken 的正则耗尽栈，先在这里切开；写成 \s\s{9999} 而不是 \s{10000}，re 找起来快一倍
LONG_BLANK = re.compile(r"(\s\s{9999})")
END_OF_TEXT = "<|endoftext|>"
# 预切分：BPE 的合并不跨越这里切出的边界
SPLIT_PATTERNS = {
    # GPT-2 (Radford et al. 2019, 2.2 节)：英文缩写、词、数字、标点、空白；一串汉字算一个词
    "gpt2": r"""'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s""",
    # 同上，但汉字一个一个切开：一个汉字最多一个 token，小语料上每个 token 都见得够多
    "han": r"""'(?:[sdmt]|ll|ve|re)|\p{Han}| ?[^\P{L}\p{Han}]++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s""",
}


class Tokenizer:
    """字节级 BPE：ranks 是 {字节串: id}，id 越小越先合并；文本结束符排在最后。split 是 SPLIT_PATTERNS 里的名字。"""

    def __init__(self, kind: str, ranks: dict[bytes, int], split: str = "gpt2"):
        self.kind, self.split = kind, split
        self.end_of_text_id = len(ranks)
        self.vocab_size = len(ranks) + 1
        self._ranks = ranks
        special = {END_OF_TEXT: self.end_of_text_id}
        self._encoding = tiktoken.Encoding(
            kind,
            pat_str=SPLIT_PATTERNS[split],
            mergeable_ranks=ranks,
            special_tokens=special,
            explicit_n_vocab=self.vocab_size,
        )

    def encode(self, text: str) -> list[int]:
        """文本 -> token id；文中写着 <|endoftext|> 也只当普通文字。"""
        return [token for part in LONG_BLANK.split(text) for token in self._encoding.encode_ordinary(part)]

    def encode_to_numpy(self, text: str) -> np.ndarray:
        """同 encode，但不经过 Python 列表，几个线程可以同时算。-> (token 数,) uint32"""
        parts = [self._encoding.encode_to_numpy(part, disallowed_special=()) for part in LONG_BLANK.split(text)]
        return np.concatenate(parts)

    def encode_documents(self, texts: list[str | None]) -> np.ndarray:
        """若干段文字各自分词，依次相连；None 是文档的结束，成为文本结束符。-> (token 数,) uint32"""
        end = np.array([self.end_of_text_id], dtype=np.uint32)
        return np.concatenate([end if text is None else self.encode_to_numpy(text) for text in texts])

    def decode(self, token_ids: list[int]) -> str:
        """token id -> 文本；拼不成字符的字节变成 �。"""
        return self._encoding.decode(token_ids, errors="replace")

    def count_text(self, token_ids: Tensor | TokenSequence) -> tuple[int, int]:
        """(seq,) -> (字符数, 字节数)，不同的词表可以用它们作共同的尺子。"""
        occurrences = torch.zeros(self.vocab_size, dtype=torch.long)
        for block in token_ids.split(COUNT_BLOCK):
            occurrences += torch.bincount(block.int(), minlength=self.vocab_size)
        characters = num_bytes = 0
        for token_id in occurrences.nonzero().flatten().tolist():
            token, count = self.token_bytes(token_id), int(occurrences[token_id])
            characters += count * sum(byte & 0xC0 != 0x80 for byte in token)  # 10xxxxxx 是字符的后续字节
            num_bytes += count * len(token)
        return characters, num_bytes

    def token_bytes(self, token_id: int) -> bytes:
        """一个 token 的字节，可能只是半个汉字。"""
        return self._encoding.decode_single_token_bytes(token_id)

    def state(self) -> dict:
        """写进模型文件的描述；GPT-2 的词表人人都有，只记名字。"""
        if self.kind == "gpt2":
            return {"type": self.kind}
        return {"type": self.kind, "split": self.split, "ranks": _format_ranks(self._ranks)}

    @classmethod
    def from_state(cls, state: dict) -> "Tokenizer":
        """由 state() 的结果重建；描述不合法时抛出 ValueError。"""
        if state["type"] == "gpt2":
            return load_gpt2_tokenizer()
        return cls(state["type"], _parse_ranks(state["ranks"]), state["split"])


def load_gpt2_tokenizer() -> Tokenizer:
    """项目自带的 GPT-2 词表，不需要网络；文件损坏时抛出 UserError。"""
    check_input_file(GPT2_VOCABULARY_PATH, "GPT-2 词表", "请重新克隆项目。")
    data = GPT2_VOCABULARY_PATH.read_bytes()
    if hashlib.sha256(data).hexdigest() != GPT2_VOCABULARY_SHA256:
        raise UserError(GPT2_VOCABULARY_PATH, "GPT-2 词表校验失败，文件已损坏", "请重新克隆项目。")
    return Tokenizer("gpt2", _parse_ranks(data.decode("ascii")))


def train_tokenizer(text: str, vocab_size: int, split: str = "gpt2") -> Tokenizer:
    """在 text 上训练字节级 BPE (Sennrich et al. 2016)：从 256 个字节出发，反复合并最常相邻的一对。

    同样的 text 总是得到同样的词表；text 太短时词表可能小于 vocab_size。
    """
    from tokenizers import Regex, models, pre_tokenizers, trainers
    from tokenizers import Tokenizer as BpeTrainee

    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    trainee = BpeTrainee(models.BPE())
    trainee.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(SPLIT_PATTERNS[split]), behavior="isolated"), byte_level]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - 1,  # 留一个给文本结束符
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    trainee.train_from_iterator(split_chunks([text], PARAGRAPH_START), trainer)
    # tokenizers 把字节写成可见字符，如空格写成 Ġ；换回字节
    visible_to_byte = {visible: byte for byte, visible in _visible_bytes().items()}
    ranks = {}
    for token, rank in trainee.get_vocab().items():
        ranks[bytes(visible_to_byte[character] for character in token)] = rank
    return Tokenizer("bpe", ranks, split)


def split_chunks(pieces: Iterable[str], places: re.Pattern) -> Iterator[str]:
    """把一段段文字重新切成十万字左右的块，好让几个核同时处理；只在 places 匹配的地方下刀，没有就让块长下去。

    在 SURE_BREAK 处切，逐块分词合起来与整篇分词相同。
    """
    pending = ""
    for piece in pieces:
        pending += piece
        start = 0
        while match := places.search(pending, start + CHUNK_CHARACTERS):
            yield pending[start : match.start()]
            start = match.start()
        pending = pending[start:]
    if pending:
        yield pending


def build_tokenizer(spec: dict, training_text: str) -> Tokenizer:
    """按配置的 "tokenizer" 一节，或 Tokenizer.state() 的结果，建立分词器；training_text 只应是训练部分。"""
    if "ranks" in spec:
        return Tokenizer.from_state(spec)
    if spec["type"] == "gpt2":
        return load_gpt2_tokenizer()
    return train_tokenizer(training_text, spec["vocab_size"], spec.get("split", "gpt2"))


def text_to_token_ids(text: str, tokenizer: Tokenizer) -> Tensor:
    """文本 -> (1, seq) 的 token id"""
    return torch.tensor([tokenizer.encode(text)], dtype=torch.long)


def token_ids_to_text(token_ids: Tensor, tokenizer: Tokenizer) -> str:
    """(1, seq) 或 (seq,) 的 token id -> 文本"""
    return tokenizer.decode(token_ids.flatten().tolist())


class StreamDecoder:
    """逐个 token 变成文字：一个字的字节到齐才吐出来，各次结果连起来等于整体解码。"""

    def __init__(self, tokenizer: Tokenizer):
        self._tokenizer = tokenizer
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def push(self, token_id: int) -> str:
        """加入一个 token，返回新凑齐的文字（可能为空）。"""
        return self._decoder.decode(self._tokenizer.token_bytes(token_id))

    def finish(self) -> str:
        """结束，返回剩下的不成字符的字节。"""
        return self._decoder.decode(b"", final=True)


def _visible_bytes() -> dict[int, str]:
    """ByteLevel 的约定 {字节: 可见字符}：可打印的照旧，其余依次映射到 U+0100 以后。"""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    table = {byte: chr(byte) for byte in printable}
    return table | {byte: chr(0x100 + index) for index, byte in enumerate(others)}


def _format_ranks(ranks: dict[bytes, int]) -> str:
    """tiktoken 的文本格式：每行是 base64 的字节串、空格、id。"""
    ordered = sorted(ranks.items(), key=lambda item: item[1])
    return "".join(f"{base64.b64encode(token).decode('ascii')} {rank}\n" for token, rank in ordered)


def _parse_ranks(text: str) -> dict[bytes, int]:
    """_format_ranks 的逆；id 必须是 0 到 N-1，且含全部 256 个单字节。"""
    ranks = {}
    for line in text.splitlines():
        token, rank = line.split()
        ranks[base64.b64decode(token, validate=True)] = int(rank)
    if sorted(ranks.values()) != list(range(len(ranks))) or not all(bytes([byte]) in ranks for byte in range(256)):
        raise ValueError("词表不完整")
    return ranks
