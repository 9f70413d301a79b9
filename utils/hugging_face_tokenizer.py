"""我们的分词器与 Hugging Face 的 tokenizer.json 互相转换，编码完全相同。"""

import json
from collections.abc import Iterable
from pathlib import Path

from tokenizers import AddedToken, Regex, decoders, models, pre_tokenizers
from tokenizers import Tokenizer as BpeTokenizer

from utils.errors import UserError
from utils.text_utils import END_OF_TEXT, SPLIT_PATTERNS, Tokenizer, _visible_bytes, load_gpt2_tokenizer
from utils.weights_file import (
    ADDED_TOKENS_NAME,
    DOWNLOAD_AGAIN,
    TOKENIZER_NAME,
    TOKENIZER_SETTINGS_NAME,
    VOCABULARY_NAME,
    read_json,
)

OTHER_VOCABULARIES = ("vocab.txt", "spiece.model", "tokenizer.model", "sentencepiece.bpe.model")
LONG_BLANK = r"[\s\x1c-\x1f]{10000}"  # 切法同 text_utils.LONG_BLANK；Python 的 \s 多认四个控制符


def tokenizer_files(tokenizer: Tokenizer, context_length: int) -> dict[str, bytes]:
    """{文件名: 内容}，transformers 的 AutoTokenizer 由此重建出编码相同的分词器。"""
    built = _build(_ranks_of(tokenizer), tokenizer.split)
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",  # 一切照 tokenizer.json；GPT2Tokenizer 会换成它自己的切法
        "model_max_length": context_length,
        "bos_token": END_OF_TEXT,
        "eos_token": END_OF_TEXT,
        "split_special_tokens": True,  # 文中写着 <|endoftext|> 也只当普通文字
        "clean_up_tokenization_spaces": False,
    }
    files = {TOKENIZER_NAME: built.to_str(pretty=True), "tokenizer_config.json": json.dumps(settings, indent=2)}
    if tokenizer.split == "gpt2":  # 这两个文件说不出怎样切，读的程序都照 GPT-2 的办
        model = json.loads(built.to_str())["model"]
        merges = "".join(f"{left} {right}\n" for left, right in model["merges"])
        files |= {
            VOCABULARY_NAME: json.dumps(_visible_vocabulary(tokenizer), ensure_ascii=False),
            "merges.txt": f"#version: 0.2\n{merges}",
        }
    return {name: text.encode("utf-8") for name, text in files.items()}


def read_tokenizer(folder: Path) -> dict:
    """folder 里的 tokenizer.json 变成 Tokenizer.state() 的样子；没有任何词表文件就当作 GPT-2 的。

    只认 GPT-2 的和 tokenizer_files 写出的；别的分词器抛出 UserError。
    """
    path = folder / TOKENIZER_NAME
    _check_settings(folder)
    if not path.exists():
        return _read_without_tokenizer_json(folder)
    values = read_json(path, "分词器")
    try:
        _check_extras(path, values)
        return _recognize(values)
    except (ValueError, TypeError, KeyError, AttributeError):
        reason = "不是 GPT-2 的分词器，也不是 export_hf.py 写出的"
        raise UserError(path, reason, "这种词表用不了，请换一个模型。") from None


def _check_settings(folder: Path) -> None:
    """transformers 还会从这两个文件里添 token；添了我们没有的就抛出 UserError。"""
    for path in (folder / ADDED_TOKENS_NAME, folder / TOKENIZER_SETTINGS_NAME):
        if not path.exists():
            continue
        values = read_json(path, "分词器的设置")
        try:
            listed = [token["content"] for token in (values.get("added_tokens_decoder") or {}).values()]
        except (TypeError, KeyError, AttributeError):
            raise UserError(path, "added_tokens_decoder 写得不对", DOWNLOAD_AGAIN) from None
        _check_added(path, values if path.name == ADDED_TOKENS_NAME else listed)


def _check_added(path: Path, tokens: Iterable[str]) -> None:
    for token in tokens:
        if token != END_OF_TEXT:
            shown = json.dumps(token, ensure_ascii=False)
            raise UserError(path, f"另加了 token {shown}（added_tokens）", f"只认识 {END_OF_TEXT}，请换一个模型。")


def _check_extras(path: Path, values: dict) -> None:
    """词表之外还会改变编码的几项，有就抛出 UserError，逐个指出。"""
    _check_added(path, [token["content"] for token in values.get("added_tokens") or []])
    model = values["model"]
    if model.get("dropout"):
        reason = f"dropout 是 {json.dumps(model['dropout'])}：合并时随机略去一些，同样的文字每次编码不同"
        raise UserError(path, reason, "这里的分词没有随机；不要这样的话改成 null。")
    if (values.get("pre_tokenizer") or {}).get("add_prefix_space"):
        raise UserError(path, "add_prefix_space 是 true：编码之前在开头添一个空格", "这里的分词不添，请换一个模型。")
    after = values.get("post_processor") or {"type": "ByteLevel"}
    is_empty = after["type"] == "TemplateProcessing" and not after.get("special_tokens")  # transformers 存的是这样
    if after["type"] != "ByteLevel" and not is_empty:
        reason = f"post_processor 是 {json.dumps(after['type'])}：编码之后还要添 token"
        raise UserError(path, reason, "这里的分词不添，请换一个模型。")


def _read_without_tokenizer_json(folder: Path) -> dict:
    """早期的文件夹只有 vocab.json，是 GPT-2 的才行；写着别的词表的就抛出 UserError。"""
    path = folder / VOCABULARY_NAME
    found = [folder / name for name in OTHER_VOCABULARIES if (folder / name).exists()]
    if path.exists() and read_json(path, "词表") != _visible_vocabulary(load_gpt2_tokenizer()):
        found.append(path)
    if found:
        raise UserError(found[0], "不是 GPT-2 的词表", f"这种词表要有 {TOKENIZER_NAME} 才能读，或者换一个模型。")
    return {"type": "gpt2"}


def _visible_vocabulary(tokenizer: Tokenizer) -> dict[str, int]:
    """vocab.json 的内容。"""
    visible = _visible_bytes()
    shown = {"".join(visible[byte] for byte in token): rank for token, rank in _ranks_of(tokenizer).items()}
    return {**shown, END_OF_TEXT: tokenizer.end_of_text_id}


def _recognize(values: dict) -> dict:
    byte_of = {visible: byte for byte, visible in _visible_bytes().items()}
    ranks = {
        bytes(byte_of[character] for character in token): rank
        for token, rank in values["model"]["vocab"].items()
        if token != END_OF_TEXT
    }
    gpt2 = load_gpt2_tokenizer()
    if ranks == _ranks_of(gpt2) and values.get("normalizer") is None:  # 有的先变成小写再切
        return gpt2.state()
    if sorted(ranks.values()) != list(range(len(ranks))) or not all(bytes([byte]) in ranks for byte in range(256)):
        raise ValueError("词表不完整")
    for split in SPLIT_PATTERNS:
        if _essence(json.loads(_build(ranks, split).to_str())) == _essence(values):
            return Tokenizer("bpe", ranks, split).state()
    raise ValueError("切法或合并的次序不同")


def _essence(values: dict) -> list:
    """tokenizer.json 里决定编码的几项。"""
    return [values["normalizer"], values["pre_tokenizer"], *(values["model"][name] for name in ("vocab", "merges"))]


def _build(ranks: dict[bytes, int], split: str) -> BpeTokenizer:
    visible = _visible_bytes()

    def show(token: bytes) -> str:
        return "".join(visible[byte] for byte in token)

    vocabulary = {show(token): rank for token, rank in ranks.items()}
    merges = [(show(left), show(right)) for left, right in recover_merges(ranks)]
    # ignore_merges：整个词就在词表里时不必合并，tiktoken 也是这样
    built = BpeTokenizer(models.BPE(vocab=vocabulary, merges=merges, ignore_merges=True))
    splits = [pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in (LONG_BLANK, SPLIT_PATTERNS[split])]
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    built.pre_tokenizer = pre_tokenizers.Sequence([*splits, byte_level])
    built.decoder = decoders.ByteLevel()
    built.add_special_tokens([AddedToken(END_OF_TEXT, special=True, normalized=False)])
    return built


def recover_merges(ranks: dict[bytes, int]) -> list[tuple[bytes, bytes]]:
    """tiktoken 的词表只记合并的结果；照编码的规则拼每个 token，剩下两段时就是当初合并的一对。先合并的在前。"""
    merges = []
    for token in sorted(ranks, key=ranks.get):
        parts = [token[index : index + 1] for index in range(len(token))]
        while len(parts) > 2:
            pairs = [left + right for left, right in zip(parts, parts[1:], strict=False)]
            first = min(range(len(pairs)), key=lambda index: ranks.get(pairs[index], len(ranks)))
            if pairs[first] not in ranks:  # 这个 token 拼不出来，只有整个词就是它时才用到
                break
            parts[first : first + 2] = [pairs[first]]
        if len(parts) == 2:
            merges.append((parts[0], parts[1]))
    return merges


def _ranks_of(tokenizer: Tokenizer) -> dict[bytes, int]:
    return {tokenizer.token_bytes(token_id): token_id for token_id in range(tokenizer.end_of_text_id)}
