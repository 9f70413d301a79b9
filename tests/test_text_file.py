"""utils/text_file.py：一块一块地读，与整篇读出再解码完全一样。"""

import gzip
import os
import random
import tracemalloc

import pytest

from utils import text_file
from utils.errors import UserError
from utils.text_file import TextFile, read_text

TEXT = "\ufeff悟空\r\n大圣\r\rabc é\n\n八戒𠮷👍，\n\r沙僧"
ENCODINGS = ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-32", "gb18030", "utf-7"]


@pytest.fixture(params=[1, 2, 3, 7, 1 << 20])
def block_bytes(request, monkeypatch) -> int:
    """很小的块：字、换行、字节顺序标记都会被切断。"""
    monkeypatch.setattr(text_file, "BLOCK_BYTES", request.param)
    return request.param


def write(folder, data: bytes):
    path = folder / "a.txt"
    path.write_bytes(data)
    return path


def unified(text: str) -> str:
    return text.removeprefix("\ufeff").replace("\r\n", "\n").replace("\r", "\n")


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_blocks_join_to_the_whole_text_with_unified_line_ends(tmp_path, block_bytes, encoding):
    text = TEXT if encoding in ("utf-8", "gb18030") else TEXT[1:]
    path = write(tmp_path, text.encode(encoding))
    assert read_text(path, encoding) == unified(text)
    assert TextFile.scan(path, encoding).num_characters == len(unified(text))


@pytest.mark.parametrize("encoding", ["iso2022_jp", "hz", "big5"])
def test_encodings_with_shift_states_survive_any_block(tmp_path, block_bytes, encoding):
    text = "日本a\n中 文\n" * 5
    assert read_text(write(tmp_path, text.encode(encoding)), encoding) == text


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_any_stretch_can_be_read_alone(tmp_path, block_bytes, encoding):
    path = write(tmp_path, TEXT[1:].encode(encoding))
    source, whole = TextFile.scan(path, encoding), unified(TEXT)
    for start in range(len(whole) + 1):
        for stop in range(start, len(whole) + 1):
            assert "".join(source.pieces(start, stop)) == whole[start:stop]


def test_wrong_encoding_names_the_byte_and_the_guess(tmp_path, block_bytes):
    data = b"a" * 1023 + "悟空齐天大圣".encode("gb18030")
    with pytest.raises(UserError, match="a.txt：第 1024 字节不是 UTF-8（像 GB18030）。加 --encoding gb18030"):
        read_text(write(tmp_path, data))
    with pytest.raises(UserError, match="第 1 字节不是 ASCII（像 UTF-8）"):
        read_text(write(tmp_path, "，悟空，".encode() + b"!"), "ascii")
    with pytest.raises(UserError, match="像 UTF-16"):
        read_text(write(tmp_path, "悟空".encode("utf-16")))
    with pytest.raises(UserError, match="第 1 字节不是 UTF-8。用 --encoding"):
        read_text(write(tmp_path, b"\xff\xff\xff"))
    with pytest.raises(UserError, match="第 7 字节不是 UTF-8"):  # 最后一个字缺了字节
        read_text(write(tmp_path, "悟空圣".encode()[:-1]))
    with pytest.raises(UserError, match="不是 UTF-16（.*BOM.*）"):
        read_text(write(tmp_path, "悟空".encode("utf-16-le")), "utf-16")


@pytest.mark.parametrize("encoding", ["utf-8", "gb18030", "utf-16-le", "big5"])
@pytest.mark.parametrize("position", range(0, 24, 5))
def test_position_is_that_of_decoding_the_whole_file(tmp_path, block_bytes, encoding, position):
    data = bytearray("悟空大圣abc八戒沙僧".encode(encoding))
    data[position % len(data)] = 0xFF
    try:
        data.decode(encoding)
    except UnicodeDecodeError as error:
        with pytest.raises(UserError, match=f"第 {error.start + 1} 字节不是"):
            read_text(write(tmp_path, data), encoding)
    else:
        assert read_text(write(tmp_path, data), encoding) == data.decode(encoding)


def test_lone_surrogates_are_refused(tmp_path):
    with pytest.raises(UserError, match="不是 UNICODE_ESCAPE.*--encoding"):
        read_text(write(tmp_path, rb"a\ud800"), "unicode_escape")


@pytest.mark.parametrize("data", [b"", "\ufeff \r\n\u3000\n".encode()])
def test_text_without_content_is_refused(tmp_path, data, block_bytes):
    with pytest.raises(UserError, match="a.txt：没有内容"):
        TextFile.scan(write(tmp_path, data))


def test_file_changed_after_the_scan_is_refused(tmp_path):
    path = write(tmp_path, b"abc" * 1000)
    source = TextFile.scan(path)
    for data in (b"abd" * 1000, b"abc" * 999, b"abc" * 1001):
        path.write_bytes(data)
        with pytest.raises(UserError, match="又被改动了"):
            list(source.pieces(0, source.num_characters + 1))
    path.unlink()
    with pytest.raises(UserError, match="读不出"):
        list(source.pieces(0, 10))


def test_digest_depends_on_the_content_only(tmp_path):
    path = write(tmp_path, b"abc")
    digest = TextFile.scan(path).digest
    os.utime(path, (1, 1))
    assert TextFile.scan(path).digest == digest
    times = path.stat().st_mtime_ns
    path.write_bytes(b"abd")
    os.utime(path, ns=(times, times))
    assert TextFile.scan(path).digest != digest


def test_long_text_is_never_in_memory_at_once(tmp_path):
    path = write(tmp_path, "石猴从石头里蹦出来。\n".encode() * 1_000_000)  # 31 MB
    tracemalloc.start()
    source = TextFile.scan(path)
    assert sum(len(piece) for piece in source.pieces(0, source.num_characters)) == 11_000_000
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 10e6


def test_compressed_file_is_the_text_inside(tmp_path, block_bytes):
    data = "\ufeff悟空\r\n八戒，".encode() * 500
    plain = TextFile.scan(write(tmp_path, data))
    path = tmp_path / "a.txt.GZ"
    path.write_bytes(gzip.compress(data[:1000]) + gzip.compress(data[1000:]))  # 几段接在一起也是合法的
    packed = TextFile.scan(path)
    assert (packed.digest, packed.blocks) == (plain.digest, plain.blocks)
    for start, stop in ((0, 10**6), (500, 501), (1000, 1700), (30, 40)):
        assert "".join(packed.pieces(start, stop)) == "".join(plain.pieces(start, stop))


def test_wrong_encoding_inside_a_compressed_file_is_explained(tmp_path):
    path = tmp_path / "a.txt.gz"
    path.write_bytes(gzip.compress(b"abc" + "悟空八戒".encode("gb18030")))
    with pytest.raises(UserError, match="第 4 字节不是 UTF-8（像 GB18030）.*--encoding gb18030"):
        TextFile.scan(path)


def test_compressed_file_damaged_after_the_scan_is_refused(tmp_path):
    path = tmp_path / "a.txt.gz"
    packed = gzip.compress(random.Random(1).randbytes(3_000_000).hex().encode())
    path.write_bytes(packed)
    source = TextFile.scan(path)
    for damaged in (packed[: len(packed) // 2], packed[:2000] + b"\xff" * 2000 + packed[4000:], b"text"):
        path.write_bytes(damaged)
        with pytest.raises(UserError, match="又被改动了|不完整|不是完好的 gzip"):
            list(source.pieces(0, source.num_characters))


def test_several_stretches_are_read_through_one_open_file(tmp_path, block_bytes):
    text = "".join(f"{number:04}" for number in range(1000))
    source = TextFile.scan(write(tmp_path, text.encode()))
    with source.reading() as pieces:
        for start, stop in ((0, 10), (5, 900), (900, 901), (3000, 4000), (0, 4000)):
            assert "".join(pieces(start, stop)) == text[start:stop]
