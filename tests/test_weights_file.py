"""utils/weights_file.py：不载入 torch 的检查；每一种坏文件都是一行说明。"""

import json
import os
import random

import pytest
import safetensors.torch
import torch

from utils.errors import UserError
from utils.weights_file import LEGACY_START, check_weights_file, find_weights_file, read_json, read_shapes

ENTRY = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


@pytest.fixture
def good(tmp_path):
    path = tmp_path / "model.safetensors"
    safetensors.torch.save_file({"a": torch.ones(2, 3), "b": torch.ones(4)}, path, {"format": "pt"})
    return path


def write(folder, header, data=bytes(8), length=None):
    """header 是文件头的对象或原样的字节。"""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path = folder / "bad.safetensors"
    path.write_bytes((len(text) if length is None else length).to_bytes(8, "little") + text + data)
    return path


def test_shapes_are_read(good):
    assert read_shapes(good) == {"a": (2, 3), "b": (4,)}
    assert check_weights_file(good) == good


@pytest.mark.parametrize(
    ("header", "data", "length"),
    [
        ({"a": ENTRY}, bytes(7), None),
        ({"a": ENTRY}, bytes(9), None),
        ({"a": {**ENTRY, "data_offsets": [0, 1 << 60]}}, bytes(8), None),
        ({"a": {**ENTRY, "data_offsets": [-8, 0]}}, bytes(8), None),
        ({"a": {**ENTRY, "data_offsets": [8, 0]}}, bytes(8), None),
        ({"a": {**ENTRY, "data_offsets": [0]}}, bytes(8), None),
        ({"a": ENTRY, "b": ENTRY}, bytes(8), None),
        ({"a": ENTRY, "b": {**ENTRY, "data_offsets": [12, 20]}}, bytes(20), None),
        ({"a": {**ENTRY, "shape": [3]}}, bytes(8), None),
        ({"a": {**ENTRY, "shape": [-1, -2]}}, bytes(8), None),
        ({"a": {**ENTRY, "shape": [1 << 40, 1 << 40, 0]}}, bytes(8), None),
        ({"a": {**ENTRY, "shape": [2.0]}}, bytes(8), None),
        ({"a": {**ENTRY, "shape": [1] * 5 + [2]}}, bytes(8), None),
        ({"a": {**ENTRY, "shape": "2"}}, bytes(8), None),
        ({"a": {**ENTRY, "dtype": "I64"}}, bytes(8), None),
        ({"a": {**ENTRY, "dtype": ["F32"]}}, bytes(8), None),
        ({"a": {"dtype": "F32"}}, bytes(8), None),
        ({"a": None, "b": 3}, bytes(8), None),
        ([ENTRY], bytes(8), None),
        (b"{", bytes(8), None),
        (b"\xff{}", bytes(8), None),
        (b"[" * 100_000, bytes(8), None),
        ({"a": ENTRY}, bytes(8), 1 << 62),
        ({"a": ENTRY}, bytes(8), 20_000_000),
        ({"a": ENTRY}, bytes(8), 0),
        (b"", b"", 0),
    ],
)
def test_malformed_header_is_refused(tmp_path, header, data, length):
    with pytest.raises(UserError, match="已损坏或不是模型文件") as caught:
        read_shapes(write(tmp_path, header, data, length))
    assert "\n" not in str(caught.value)


def test_truncated_file_says_how_much_is_missing(good):
    good.write_bytes(good.read_bytes()[:-4])
    with pytest.raises(UserError, match="张量应有 40 字节，文件里有 36 字节"):
        check_weights_file(good)


def test_random_bytes_and_changed_headers_never_crash(good):
    generator, data = random.Random(1), good.read_bytes()
    header_end = 8 + int.from_bytes(data[:8], "little")
    for _ in range(300):
        changed = bytearray(data)
        changed[generator.randrange(header_end)] = generator.randrange(256)
        good.write_bytes(bytes(changed) if generator.random() < 0.8 else generator.randbytes(50))
        try:
            check_weights_file(good)
        except UserError:
            continue
        safetensors.torch.load_file(good)  # 通过检查的，库也读得了


def test_folder_stands_for_the_weights_in_it(tmp_path, good):
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    assert find_weights_file(tmp_path) == good
    good.unlink()
    assert find_weights_file(tmp_path) == tmp_path / "pytorch_model.bin"
    assert find_weights_file(tmp_path / "model.pth") == tmp_path / "model.pth"


def test_folder_without_weights_is_explained(tmp_path):
    with pytest.raises(UserError, match="没有 model.safetensors 或 pytorch_model.bin"):
        check_weights_file(tmp_path)


def test_weights_in_several_files_are_explained(tmp_path):
    (tmp_path / "model.safetensors.index.json").write_text("{}", encoding="utf-8")
    (tmp_path / "m.pth.ckpt" / "step-00000001.ckpt").mkdir(parents=True)
    for path in (tmp_path / "m.pth.ckpt", tmp_path / "m.pth.ckpt" / "step-00000001.ckpt"):
        with pytest.raises(
            UserError, match=r"是检查点的文件夹。模型在旁边的 \S*/m\.pth；接着训练用 pretrain.py --resume"
        ):
            check_weights_file(path)
    with pytest.raises(UserError, match="权重分成了几个文件（model.safetensors.index.json），读不了"):
        check_weights_file(tmp_path)


def test_missing_file_gives_the_advice(tmp_path):
    with pytest.raises(UserError, match="找不到模型文件。请先运行 pretrain.py"):
        check_weights_file(tmp_path / "model.pth")
    with pytest.raises(UserError, match="先下载"):
        check_weights_file(tmp_path / "model.safetensors", advice="先下载。")


@pytest.mark.skipif(os.name == "nt", reason="Windows 没有 mkfifo")
def test_fifo_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "model.safetensors")
    with pytest.raises(UserError, match="不是普通文件"):
        check_weights_file(tmp_path)


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
def test_common_mistakes_are_named(tmp_path, name):
    path = tmp_path / name
    path.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    with pytest.raises(UserError, match="Git LFS 的指针.*git lfs pull"):
        check_weights_file(path)
    path.write_bytes(b"<!DOCTYPE html><html></html>")
    with pytest.raises(UserError, match="已损坏或不是模型文件"):
        check_weights_file(path)


def test_legacy_mark_is_what_torch_writes(tmp_path):
    torch.save({}, tmp_path / "old.bin", _use_new_zipfile_serialization=False)
    assert (tmp_path / "old.bin").read_bytes().startswith(LEGACY_START)


@pytest.mark.parametrize("text", ["[]", "{", "\ud800", "[" * 100_000])
def test_bad_json_is_refused(tmp_path, text):
    path = tmp_path / "config.json"
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    with pytest.raises(UserError, match="不是配置文件（里面不是合法的 JSON）"):
        read_json(path, "配置文件")


def test_json_may_start_with_a_byte_order_mark(tmp_path):
    path = tmp_path / "config.json"
    path.write_text('{"n_head": 2}', encoding="utf-8-sig")
    assert read_json(path, "配置文件") == {"n_head": 2}
