"""许多篇文档的 token：分成若干个 token 文件（分片），逐个写好；中断了下次从没有写的接着做，没有变的不重做。"""

import hashlib
import json
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from utils import files, text_utils
from utils.console import hint, progress_bar
from utils.document_file import DocumentFile, DocumentReader, is_jsonl
from utils.document_split import Place
from utils.files import check_free_space, fingerprint_of_code, remove_leftovers, write_atomically
from utils.sure_break import SURE_BREAK
from utils.text_utils import Tokenizer, split_chunks
from utils.token_file import TokenFile, map_on_all_cores, open_tokens, write_token_ids
from utils.token_sequence import TokenSequence

# 改了其中任何一个，分词的结果就可能不同，以前的分片不再算数
SHARD_CODE = ("document_file.py", "sure_break.py", "text_file.py", "text_utils.py", "token_file.py", "token_shards.py")
SHARD_CHARACTERS = 1 << 26  # 一个分片大约这么多字：汉字约 200 MB，两个核要几秒
CACHE_NAMES = r"[0-9a-f]{32}\.(?:tokens|scan|vocabulary)"
NUM_OPENERS = 8  # 同时核对几个分片


@dataclass(frozen=True)
class Shard:
    """前后相接的若干段，写成一个 token 文件。"""

    places: tuple[Place, ...]

    @property
    def num_characters(self) -> int:
        return sum(place.stretch.characters for place in self.places)

    def name(self, tokenizer_digest: str) -> str:
        """由内容和分词器决定：文件改了名、挪了地方，分片照样能用。"""
        contents = [
            (place.file.source.fingerprint, is_jsonl(place.file.path), astuple(place.stretch)) for place in self.places
        ]
        return f"{hashlib.sha256(json.dumps([tokenizer_digest, contents]).encode()).hexdigest()[:32]}.tokens"


def plan_shards(places: list[Place]) -> list[Shard]:
    """大文件自己成为一个或几个分片，别的文件变了不必重做它；相邻的小文件合在一起。"""
    groups, size = [], 0
    for place in places:
        previous = groups[-1][-1].file if groups else None
        apart = place.file is not previous and any(file and _is_large(file) for file in (previous, place.file))
        if not groups or apart or size + place.stretch.characters > SHARD_CHARACTERS:
            groups.append([])
            size = 0
        groups[-1].append(place)
        size += place.stretch.characters
    return [Shard(tuple(group)) for group in groups]


def _is_large(file: DocumentFile) -> bool:
    return 8 * file.num_characters >= SHARD_CHARACTERS


@dataclass(frozen=True)
class TokenShards:
    """映射进内存的全部分片。"""

    parts: list[TokenSequence]  # 与 TokenFile 的 parts 一样：训练、验证
    shards: list[TokenFile]
    info: dict
    folder: Any = None  # 缓存写不进去时用的临时文件夹，一起存在到程序结束

    @classmethod
    def load_or_create(cls, parts: list[list[Place]], tokenizer: Tokenizer) -> "TokenShards":
        """有的打开，缺的做好。几个进程一起训练时，先让一个做，其余的再来打开，用的是同样的映射。"""
        code = fingerprint_of_code(SHARD_CODE)
        digest = hashlib.sha256(json.dumps(tokenizer.state()).encode()).hexdigest()
        planned = [{shard.name(digest): shard for shard in plan_shards(places)} for places in parts]
        names = {name: shard for shards in planned for name, shard in shards.items()}
        found = _open_all(files.CACHE_DIR, list(names), code)
        missing = {name: shard for name, shard in names.items() if name not in found}
        temporary = None
        if missing:
            folder, temporary = _writable_folder()
            _create(missing, tokenizer, code, folder)
            found |= _open_all(folder, list(missing), code)
        sequences = [TokenSequence([found[name].parts[0] for name in shards]) for shards in planned]
        return cls(sequences, list(found.values()), {"tokenizer": tokenizer.state()}, temporary)

    def release(self) -> None:
        """归还读过的页，见 TokenFile.release。"""
        for shard in self.shards:
            shard.release()


def _open_all(folder: Path, names: list[str], code: str) -> dict[str, TokenFile]:
    """完好的、由现在的代码写出的。"""
    with ThreadPoolExecutor(NUM_OPENERS) as pool:  # 核对 sha256 时放开 GIL
        opened = pool.map(lambda name: open_tokens(folder / name), names)
        return {
            name: tokens for name, tokens in zip(names, opened, strict=True) if tokens and tokens.info["code"] == code
        }


def _writable_folder() -> tuple[Path, Any]:
    """-> (缓存的文件夹, None)；写不进去就是（临时文件夹, 它的主人），程序结束时自动删去。"""
    try:
        files.CACHE_DIR.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=files.CACHE_DIR):
            return files.CACHE_DIR, None
    except OSError:
        hint(f"分词的结果存不进 {files.CACHE_DIR}，这次用临时文件，下次还要重新分词。")
        temporary = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        return Path(temporary.name), temporary


def _create(missing: dict[str, Shard], tokenizer: Tokenizer, code: str, folder: Path) -> None:
    """从前到后，逐个写出；每个写成之后才有它的名字。"""
    remove_leftovers(folder, CACHE_NAMES)
    total = sum(shard.num_characters for shard in missing.values())
    check_free_space(folder / next(iter(missing)), 2 * total)  # 一个字大约一个 token，两字节
    with closing(DocumentReader()) as reader, progress_bar("分词", total, "字") as bar:
        for name, shard in missing.items():
            batches = _batches(reader, shard, bar)
            token_ids = map_on_all_cores(tokenizer.encode_documents, batches)

            def write(file: Any, token_ids: Iterator[np.ndarray] = token_ids) -> None:
                write_token_ids(file, tokenizer.vocab_size, [token_ids], {"code": code})

            write_atomically(folder / name, write)


def _batches(reader: DocumentReader, shard: Shard, bar: Any) -> Iterator[list[str | None]]:
    """分片里的文字，每批十万字左右；None 是文档的结束。"""
    batch, size = [], 0
    for place in shard.places:
        for pieces, ends in reader.documents(place.file, place.stretch):
            for chunk in split_chunks(pieces, SURE_BREAK):
                batch.append(chunk)
                size += len(chunk)
                if size >= text_utils.CHUNK_CHARACTERS:
                    yield batch
                    bar.update(size)
                    batch, size = [], 0
            if ends:
                batch.append(None)
    if batch:
        yield batch
        bar.update(size)
