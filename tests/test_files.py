"""utils/files.py：写要么全成，要么不动；读之前先看清。"""

import io
import os
import stat
from pathlib import Path

import pytest
import torch

from utils.errors import RunError, UserError
from utils.files import (
    _create_temporary,
    check_input_file,
    check_output_path,
    fingerprints_of_code,
    keep_backup,
    remove_leftovers,
    write_atomically,
)


def test_write_replaces_the_whole_file(tmp_path):
    path = tmp_path / "a.bin"
    write_atomically(path, lambda file: file.write(b"old"))
    write_atomically(path, lambda file: file.write(b"new"))
    assert path.read_bytes() == b"new" and list(tmp_path.iterdir()) == [path]


@pytest.mark.skipif(os.name == "nt", reason="Windows 没有 POSIX 的权限位")
def test_written_file_has_ordinary_permissions(tmp_path):
    write_atomically(tmp_path / "a", lambda file: file.write(b"x"))
    umask = os.umask(0)
    os.umask(umask)
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o666 & ~umask


def test_failed_write_leaves_the_old_file_and_no_temporary(tmp_path):
    path = tmp_path / "a.bin"
    path.write_bytes(b"old")

    def fail(file):
        file.write(b"half")
        raise OSError(28, "No space left on device")

    with pytest.raises(RunError, match="a.bin：写不进去（磁盘满了），需要.*MB.*原有的文件没有改动"):
        write_atomically(path, fail, keep_old=True)
    assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]


def test_failed_rename_leaves_the_old_file_and_no_temporary(tmp_path, monkeypatch):
    path = tmp_path / "a.bin"
    path.write_bytes(b"old")

    def fail(*args):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(RunError):
        write_atomically(path, lambda file: file.write(b"new"))
    assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]


def test_disk_error_hidden_in_a_runtime_error_is_recognised(tmp_path):
    """torch.save 的 zip 写入器遇到磁盘错误时抛出 RuntimeError。"""
    state = {"a": torch.zeros(100_000)}

    class Unwritable(io.BytesIO):
        def write(self, data):
            raise OSError(28, "No space left on device")

    with pytest.raises(RunError, match="磁盘满了"):
        write_atomically(tmp_path / "a.pth", lambda file: torch.save(state, Unwritable()))
    assert list(tmp_path.iterdir()) == []


def test_old_file_is_linked_to_a_backup_before_it_is_replaced(tmp_path, monkeypatch):
    path = tmp_path / "a.bin"
    path.write_bytes(b"old")
    replace = os.replace

    def check_then_replace(source, target):
        assert path.read_bytes() == b"old"  # 顶替之前旧文件一直都在
        replace(source, target)

    monkeypatch.setattr(os, "replace", check_then_replace)
    assert write_atomically(path, lambda file: file.write(b"new"), keep_old=True) == tmp_path / "a.bin.bak"
    assert path.read_bytes() == b"new" and (tmp_path / "a.bin.bak").read_bytes() == b"old"


def test_backups_never_overwrite_each_other(tmp_path):
    path = tmp_path / "model.pth"
    assert keep_backup(path) is None
    for content, name in (("1", "model.pth.bak"), ("2", "model.pth.bak2"), ("3", "model.pth.bak3")):
        path.write_text(content, encoding="utf-8")
        assert keep_backup(path).name == name
    assert [(tmp_path / f"model.pth.bak{n}").read_text(encoding="utf-8") for n in ("", "2", "3")] == ["1", "2", "3"]


def test_output_folder_is_created_and_left_empty(tmp_path):
    check_output_path(tmp_path / "new" / "deep" / "model.pth")
    assert list((tmp_path / "new" / "deep").iterdir()) == []


def test_output_that_is_a_folder_is_refused(tmp_path):
    with pytest.raises(UserError, match="是一个文件夹"):
        check_output_path(tmp_path)


def test_input_must_be_a_regular_file(tmp_path):
    with pytest.raises(UserError, match="找不到数据文件"):
        check_input_file(tmp_path / "none", "数据文件")
    with pytest.raises(UserError, match="不是普通文件"):
        check_input_file(tmp_path, "数据文件")
    with pytest.raises(UserError, match="不是普通文件"):
        check_input_file(type(tmp_path)(os.devnull), "数据文件")


def test_written_data_is_read_back_and_compared(tmp_path, monkeypatch):
    """落盘之后磁盘上变了样：新文件不要，旧文件不动。"""
    path, fsync = tmp_path / "a.bin", os.fsync
    path.write_bytes(b"old")

    def corrupt(descriptor):
        fsync(descriptor)
        os.pwrite(descriptor, b"?", 2)

    monkeypatch.setattr(os, "fsync", corrupt)
    with pytest.raises(RunError, match="读回来的与写进去的不同"):
        write_atomically(path, lambda file: file.write(b"new data"))
    assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]


def test_file_is_on_disk_before_it_takes_the_name(tmp_path, monkeypatch):
    """临时文件 fsync、改名、文件夹 fsync，依次。"""
    calls, originals = [], (os.fsync, os.replace)
    monkeypatch.setattr(os, "fsync", lambda fd: (calls.append(stat.S_ISDIR(os.fstat(fd).st_mode)), originals[0](fd)))
    monkeypatch.setattr(os, "replace", lambda *names: (calls.append("replace"), originals[1](*names)))
    write_atomically(tmp_path / "a", lambda file: file.write(b"x"))
    assert calls == [False, "replace", True] if os.name != "nt" else [False, "replace"]


def test_disk_without_room_is_refused_before_writing(tmp_path):
    path, written = tmp_path / "a.bin", []
    path.write_bytes(b"old")
    with pytest.raises(RunError, match=r"a.bin：磁盘空间不够，需要 1,000,000,000,000.0 MB，所在磁盘还有 [\d,.]+ MB"):
        write_atomically(path, written.append, num_bytes=10**18)
    assert not written and path.read_bytes() == b"old"


def test_only_leftovers_nobody_is_writing_are_removed(tmp_path):
    with _create_temporary(tmp_path / "a") as alive:
        dead = tmp_path / ".a.abcd1234.tmp"
        dead.write_bytes(b"half")
        (tmp_path / ".b.abcd1234.tmp").write_bytes(b"another")
        (tmp_path / ".a.abcd12345.tmp").write_bytes(b"not our name")
        (tmp_path / ".a.00000000.tmp").symlink_to(tmp_path / ".b.abcd1234.tmp")
        remove_leftovers(tmp_path, "a")
        assert not dead.exists()
        names = {".b.abcd1234.tmp", ".a.abcd12345.tmp", ".a.00000000.tmp", os.path.basename(alive.name)}
        assert {path.name for path in tmp_path.iterdir()} == names
    remove_leftovers(tmp_path / "没有的文件夹", "a")


def test_fingerprints_of_code_name_the_file_that_differs(tmp_path, monkeypatch):
    (tmp_path / "utils").mkdir()
    for name in ("utils/files.py", "train.py", "other.py"):
        (tmp_path / name).write_bytes(b"a = 1\nb = 2\n")
    monkeypatch.setattr("utils.files.__file__", str(tmp_path / "utils" / "files.py"))
    before = fingerprints_of_code(Path("anywhere/train.py"))
    assert before.keys() == {"train.py", "utils/files.py"}  # 别的程序与它无关
    (tmp_path / "train.py").write_bytes(b"a = 1\r\nb = 2\r\n")
    assert fingerprints_of_code(Path("train.py")) == before  # 只是换行不同
    (tmp_path / "utils" / "files.py").write_bytes(b"a = 1\nb = 3\n")
    after = fingerprints_of_code(Path("train.py"))
    assert [name for name in before if before[name] != after[name]] == ["utils/files.py"]
