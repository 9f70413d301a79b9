"""utils/token_shards.py：与各篇分别分词一致；中断了接着做，没有变的不重做，坏了的重做。"""

import gzip
import json
import os

import pytest

from utils import document_file, files, text_file, text_utils, token_shards
from utils.document_split import split_documents
from utils.documents import DocumentCollection
from utils.errors import RunError
from utils.text_utils import Tokenizer, load_gpt2_tokenizer, train_tokenizer
from utils.token_shards import TokenShards, plan_shards


@pytest.fixture(autouse=True)
def _small_pieces(monkeypatch):
    monkeypatch.setattr(document_file, "STRETCH_CHARACTERS", 200)
    monkeypatch.setattr(text_file, "BLOCK_BYTES", 256)
    monkeypatch.setattr(text_utils, "CHUNK_CHARACTERS", 60)
    monkeypatch.setattr(token_shards, "SHARD_CHARACTERS", 700)


@pytest.fixture
def texts(corpus_text) -> list[str]:
    """一篇长的，许多篇短的，再一篇长的。"""
    lines = [corpus_text[start : start + 47] for start in range(1000, 2000, 47)]
    lines[3] += "<|endoftext|>don't it's  \n\n"
    return [corpus_text[:1000], *lines, corpus_text[2000:]]


@pytest.fixture
def paths(tmp_path, texts):
    (tmp_path / "a.txt").write_text(texts[0], encoding="utf-8", newline="")
    lines = [json.dumps({"text": text}) + "\n" for text in texts[1:-1]]
    (tmp_path / "b.jsonl").write_text("".join(lines[:10]), encoding="utf-8")
    (tmp_path / "c.jsonl.gz").write_bytes(gzip.compress("".join(lines[10:]).encode()))
    (tmp_path / "d.txt.gz").write_bytes(gzip.compress(texts[-1].encode()))
    return [tmp_path / name for name in ("a.txt", "b.jsonl", "c.jsonl.gz", "d.txt.gz")]


def prepare(paths, tokenizer: Tokenizer) -> TokenShards:
    train, validate = split_documents(DocumentCollection.scan(paths, "utf-8"))
    return TokenShards.load_or_create([train, validate], tokenizer)


def all_ids(shards: TokenShards) -> list[int]:
    return [token for part in shards.parts for token in part.tolist()]


@pytest.fixture(params=["gpt2", "own"])
def tokenizer(request, corpus_text) -> Tokenizer:
    return load_gpt2_tokenizer() if request.param == "gpt2" else train_tokenizer(corpus_text, 400, "han")


def test_ids_are_those_of_each_document_encoded_whole(paths, texts, tokenizer):
    shards = prepare(paths, tokenizer)
    cut = sum(map(len, texts)) * 9 // 10  # 最后一篇占三成，从中间切开：两边各自分词
    last = len(texts[-1]) - (sum(map(len, texts)) - cut)
    expected = [tokenizer.encode(text) + [tokenizer.end_of_text_id] for text in texts[:-1]]
    assert shards.parts[0].tolist() == sum(expected, []) + tokenizer.encode(texts[-1][:last])
    assert shards.parts[1].tolist() == [*tokenizer.encode(texts[-1][last:]), tokenizer.end_of_text_id]
    assert len(shards.shards) > 4


def count_written(monkeypatch) -> list[str]:
    written, write = [], token_shards.write_atomically

    def counted(path, *args):
        write(path, *args)
        written.append(path.name)

    monkeypatch.setattr(token_shards, "write_atomically", counted)
    return written


def test_nothing_is_tokenized_twice(paths, monkeypatch, tmp_path):
    first = all_ids(prepare(paths, load_gpt2_tokenizer()))
    for index, path in enumerate(paths):
        os.utime(path, (index, index))
    renamed = tmp_path / "z.txt"
    paths[0].rename(renamed)  # 改了名也认得
    written = count_written(monkeypatch)
    assert all_ids(prepare([renamed, *paths[1:]], load_gpt2_tokenizer())) == first and written == []


def test_only_the_changed_file_is_tokenized_again(paths, monkeypatch):
    prepare(paths, load_gpt2_tokenizer())
    text = paths[0].read_text(encoding="utf-8")
    paths[0].write_text(text.replace("，", "。"), encoding="utf-8", newline="")
    written = count_written(monkeypatch)
    prepare(paths, load_gpt2_tokenizer())
    assert len(written) == 2  # a.txt 占两个分片
    assert set(token_shards.SHARD_CODE) == {
        *("document_file.py", "sure_break.py", "text_file.py", "text_utils.py", "token_file.py", "token_shards.py")
    }
    monkeypatch.setattr(token_shards, "fingerprint_of_code", lambda names: "改过的代码")
    prepare(paths, load_gpt2_tokenizer())
    assert len(written) > 6


@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(28, "No space left on device")])
def test_interrupted_preparation_goes_on_where_it_stopped(paths, monkeypatch, cache_dir, error):
    whole = all_ids(prepare(paths, load_gpt2_tokenizer()))
    names = {path.name for path in cache_dir.glob("*.tokens")}
    for path in cache_dir.glob("*.tokens"):
        path.unlink()
    encode, calls = Tokenizer.encode_documents, []

    def stop_in_the_middle(self, texts):
        calls.append(texts)
        if len(calls) == 30:
            raise error
        return encode(self, texts)

    monkeypatch.setattr(Tokenizer, "encode_documents", stop_in_the_middle)
    with pytest.raises((KeyboardInterrupt, RunError)):
        prepare(paths, load_gpt2_tokenizer())
    done = {path.name for path in cache_dir.iterdir() if path.suffix != ".scan"}
    assert done and done < names  # 写好的都在，没写完的不留痕迹
    written = count_written(monkeypatch)
    assert all_ids(prepare(paths, load_gpt2_tokenizer())) == whole and set(written) == names - done


def test_damaged_shard_is_made_again(paths, cache_dir, monkeypatch, capsys):
    whole = all_ids(prepare(paths, load_gpt2_tokenizer()))
    path = sorted(cache_dir.glob("*.tokens"))[0]
    data = bytearray(path.read_bytes())
    data[5] ^= 1
    path.write_bytes(data)
    written = count_written(monkeypatch)
    assert all_ids(prepare(paths, load_gpt2_tokenizer())) == whole and written == [path.name]
    assert "重新分词" in capsys.readouterr().err


def test_cache_that_cannot_be_written_does_not_matter(paths, tmp_path, monkeypatch, capsys):
    whole = all_ids(prepare(paths, load_gpt2_tokenizer()))
    monkeypatch.setattr(files, "CACHE_DIR", tmp_path / "a.txt")
    assert all_ids(prepare(paths, load_gpt2_tokenizer())) == whole
    assert capsys.readouterr().err.count("\n") == 1


def test_large_files_have_shards_of_their_own(paths, monkeypatch):
    monkeypatch.setattr(token_shards, "SHARD_CHARACTERS", 6000)
    train, _ = split_documents(DocumentCollection.scan(paths, "utf-8"))
    names = [[place.file.name for place in shard.places] for shard in plan_shards(train)]
    assert [sorted(set(group)) for group in names] == [["a.txt"], ["b.jsonl", "c.jsonl.gz"], ["d.txt.gz"]]


def test_reading_and_encoding_stay_within_a_few_batches(paths, monkeypatch):
    monkeypatch.setattr("utils.token_file._count_cores", lambda: 1)
    ahead, finished, encode = [], [], Tokenizer.encode_documents
    batches = token_shards._batches

    def counted(*args):
        for number, batch in enumerate(batches(*args)):
            ahead.append(number)
            yield batch

    def encoded(self, texts):
        finished.append(len(ahead))
        return encode(self, texts)

    monkeypatch.setattr(token_shards, "_batches", counted)
    monkeypatch.setattr(Tokenizer, "encode_documents", encoded)
    prepare(paths, load_gpt2_tokenizer())
    assert max(read - done for done, read in enumerate(finished)) <= 5
