"""utils/archive.py：封印看得出任何一位的改动，别的程序照样读得了；不该有的东西读都不读。"""

import io
import zipfile

import pytest
import torch
from soak_archives import RUN_CODE, TAKE_MEMORY, call, state_of, write_archive

from utils.archive import SEAL_BYTES, check_archive, write_sealed
from utils.errors import UserError


@pytest.fixture
def sealed(tmp_path):
    path = tmp_path / "a.pth"
    with path.open("wb") as file:
        write_sealed(file, lambda writer: torch.save({"w": torch.arange(5.0)}, writer))
    return path


def test_sealed_file_is_read_by_everyone(sealed):
    assert torch.equal(torch.load(sealed, weights_only=True)["w"], torch.arange(5.0))
    assert torch.equal(torch.load(sealed, weights_only=True, mmap=True)["w"], torch.arange(5.0))
    with zipfile.ZipFile(sealed) as archive:
        assert archive.testzip() is None and archive.comment.startswith(b"PocketLLM sha256 ")
    check_archive(sealed)


def test_seal_changes_nothing_else(sealed):
    plain = io.BytesIO()
    torch.save({"w": torch.arange(5.0)}, plain)
    data = sealed.read_bytes()
    assert data[: -SEAL_BYTES - 2] == plain.getvalue()[:-2]


@pytest.mark.parametrize("pieces", [[1] * 300, [7, 0, 2, 291], [300], [299, 1], [1, 299]])
def test_seal_does_not_depend_on_how_the_data_is_written(pieces):
    content = bytes(range(250)) + b"PK\x05\x06" + bytes(46)

    def write(writer) -> None:
        start = 0
        for length in pieces:
            assert writer.write(content[start : start + length]) == length
            start += length

    sealed, whole = io.BytesIO(), io.BytesIO()
    write_sealed(sealed, write)
    write_sealed(whole, lambda writer: writer.write(content))
    assert sealed.getvalue() == whole.getvalue() and sealed.getvalue().startswith(content[:-2])


def test_every_bit_of_a_sealed_file_counts(sealed):
    data = sealed.read_bytes()
    for bit in range(0, 8 * len(data), 41):
        damaged = bytearray(data)
        damaged[bit // 8] ^= 1 << bit % 8
        sealed.write_bytes(damaged)
        with pytest.raises(UserError):
            check_archive(sealed)


def test_file_of_another_program_needs_no_seal_but_no_other_comment_either(tmp_path):
    torch.save({"w": torch.ones(2)}, tmp_path / "b.pth")
    check_archive(tmp_path / "b.pth")
    with zipfile.ZipFile(tmp_path / "b.pth", "a") as archive:
        archive.comment = b"hello"
    with pytest.raises(UserError, match="已损坏或不是模型文件"):
        check_archive(tmp_path / "b.pth")


@pytest.mark.parametrize(("module", "name", "arguments"), RUN_CODE + TAKE_MEMORY)
def test_anything_but_tensors_and_dictionaries_is_refused_before_torch_sees_it(tmp_path, module, name, arguments):
    import random

    path = tmp_path / "evil.pth"
    write_archive(path, state_of(call(module, name, *arguments)), random.Random(0))
    if (module, name) == ("torch", "FloatStorage"):  # 类型的名字可以有，调用它由 torch 拒绝
        check_archive(path)
    else:
        with pytest.raises(UserError, match="含有权重以外的内容，已拒绝读取"):
            check_archive(path)
