"""pretrain.py 训练到一半出了事：磁盘、信号、内存、数值；用户看到什么，留下了什么，接不接得上。

每个用例由 fork 而来的子进程从命令行运行 (soak_process.py)，在里面注入真的故障。
"""

import json
import os
import shutil
import signal
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from soak_kills import SETTINGS
from soak_process import SoakResult, at_step, run_forked, signal_self

from conftest import last_of_each, write_config
from utils.checkpoint import read_checkpoint
from utils.checkpoint_files import list_checkpoints, step_of
from utils.file_lock import output_lock
from utils.model_file import read_model_file, save_state

pty = pytest.importorskip("pty", reason="Windows 没有伪终端和 fork")
resource = pytest.importorskip("resource")

FLAGS = ("--config", "tiny.json", "--data_path", "corpus.txt")
FOREVER = ("--max_steps", 10**6, "--epochs", 10**6)


def prepare(folder: Path, corpus_text: str) -> None:
    (folder / "corpus.txt").write_text(corpus_text, encoding="utf-8")
    write_config(folder, drop_rate=0.1, training={**SETTINGS, "save_every": 2, "eval_freq": 4, "max_steps": 8})


@pytest.fixture(scope="module")
def interrupted(tmp_path_factory, corpus_text) -> Path:
    """训练了八步的文件夹，检查点在第六、第八步。"""
    folder = tmp_path_factory.mktemp("interrupted")
    prepare(folder, corpus_text)
    assert pretrain(folder).code == 0
    return folder


@pytest.fixture
def folder(interrupted, tmp_path) -> Path:
    shutil.copytree(interrupted, tmp_path, dirs_exist_ok=True)
    return tmp_path


@pytest.fixture
def fresh(tmp_path, corpus_text) -> Path:
    prepare(tmp_path, corpus_text)
    return tmp_path


def pretrain(folder: Path, *args: object, **options) -> SoakResult:
    return run_forked("pretrain.py", *last_of_each(*FLAGS, *args), cwd=folder, **options)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def checkpoints(folder: Path) -> list[Path]:
    return list_checkpoints(folder / "model.pth.ckpt")


def assert_error(result: SoakResult, *parts: str, code: int) -> None:
    """以 code 结束，stderr 最后一行是“错误：”，有 parts，前面至多有提示。"""
    *hints, last = result.stderr.splitlines()
    assert result.code == code and "Traceback" not in result.stderr, result.stderr
    assert last.startswith("错误：") and not [part for part in parts if part not in last], result.stderr
    assert all(line.startswith(("提示：", "已有的 ", "警告：")) for line in hints), result.stderr


# ---- 磁盘 ----


def limit_file_size() -> None:
    """此后写不出超过 200 KB 的文件：模型写得下，检查点写不下。"""
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))


def fail_on(module: object, name: str, error: OSError, when: str):
    """对 when 里提到的文件调用 module.name 时抛出 error。"""

    def inject() -> None:
        original = getattr(module, name)

        def wrapped(*args, **options):
            if when in f"{args}{options}":
                raise error
            return original(*args, **options)

        setattr(module, name, wrapped)

    return inject


FULL = OSError(28, "No space left on device")
BROKEN = OSError(5, "Input/output error")
READ_ONLY = OSError(30, "Read-only file system")
DISK_FAULTS = {
    "full": (limit_file_size, "超出了文件大小的限制"),
    "read-only": (fail_on(tempfile, "NamedTemporaryFile", READ_ONLY, "step-"), "磁盘是只读的"),
    "rename": (fail_on(os, "replace", BROKEN, "step-"), "磁盘读写出错"),
}


@pytest.mark.parametrize("fault", DISK_FAULTS)
def test_failed_save_names_the_file_and_leaves_everything_whole(folder, fault):
    in_child, reason = DISK_FAULTS[fault]
    before = contents(folder)
    result = pretrain(folder, "--resume", "--max_steps", 20, "--eval_freq", 100, in_child=in_child)
    assert_error(result, "step-00000010.ckpt", reason, " KB，所在磁盘还有", "原有的文件没有改动", code=1)
    assert contents(folder) == before  # 模型、检查点原样，没有临时文件
    assert pretrain(folder, "--resume", "--max_steps", 20).code == 0


def test_disk_that_writes_something_else_is_noticed(folder):
    def corrupt() -> None:
        original = os.fsync

        def fsync(descriptor: int) -> None:
            original(descriptor)
            if os.fstat(descriptor).st_size > 200_000:
                os.pwrite(descriptor, b"?", 100_000)

        os.fsync = fsync

    before = contents(folder)
    result = pretrain(folder, "--resume", "--max_steps", 20, "--eval_freq", 100, in_child=corrupt)
    assert_error(result, "step-00000010.ckpt", "读回来的与写进去的不同", code=1)
    assert contents(folder) == before


def test_too_little_disk_is_said_before_training(fresh):
    def nearly_full() -> None:
        shutil.disk_usage = lambda path: SimpleNamespace(free=10**6)

    before = contents(fresh)
    result = pretrain(fresh, in_child=nearly_full)
    assert_error(result, "model.pth：磁盘空间不够，需要 2.0 MB，所在磁盘还有 1.0 MB", code=1)
    assert "Ep " not in result.stdout and contents(fresh) == before


def test_leftovers_of_a_killed_run_disappear_at_the_next_start(fresh):
    (fresh / "model.pth.ckpt").mkdir()
    names = (".model.pth.abcdef12.tmp", ".model.pth.log.jsonl.abcdef12.tmp", ".other.pth.abcdef12.tmp")
    for name in names:
        (fresh / name).write_bytes(b"half")
    assert pretrain(fresh).code == 0
    assert [path.name for path in fresh.iterdir() if path.name.startswith(".")] == [".other.pth.abcdef12.tmp"]


# ---- 信号 ----


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_signal_saves_and_resume_continues(fresh, signum):
    result = pretrain(fresh, *FOREVER, "--save_every", 10**6, in_child=at_step(9, signal_self(signum)))
    assert result.code == 128 + signum
    assert result.stderr == "已在第 9 步保存，用 --resume 继续；model.pth 里是第 8 步的权重。\n"
    assert step_of(checkpoints(fresh)[-1]) == 9
    again = pretrain(fresh, "--max_steps", 12, "--resume")
    assert again.code == 0 and "从第 9 步继续" in again.stdout


def test_second_signal_leaves_at_once_and_the_last_checkpoint_is_whole(folder):
    def signal_while_saving() -> None:
        original, terminate = os.fsync, signal_self(signal.SIGTERM)
        os.fsync = lambda descriptor: (
            terminate() if os.fstat(descriptor).st_size > 200_000 else None,
            original(descriptor),
        )

    def in_child() -> None:
        at_step(5, signal_self(signal.SIGTERM))()
        signal_while_saving()

    before = contents(folder / "model.pth.ckpt")
    flags = ("--resume", *FOREVER, "--save_every", 10**6, "--eval_freq", 10**6)
    result = pretrain(folder, *flags, in_child=in_child)
    assert result.code == 143 and "Traceback" not in result.stderr and "已在第" not in result.stderr
    assert contents(folder / "model.pth.ckpt") == before


def test_closed_terminal_saves_and_leaves(fresh):
    """终端窗口关了：收到 SIGHUP，标准输出再也写不进去。"""
    master, slave = pty.openpty()

    def enter_terminal() -> None:
        import fcntl
        import termios

        os.close(master)
        os.setsid()
        fcntl.ioctl(slave, termios.TIOCSCTTY, 0)
        for descriptor in range(3):
            os.dup2(slave, descriptor)
        os.close(slave)
        sys.stdout, sys.stderr = (open(number, "w", encoding="utf-8", closefd=False) for number in (1, 2))

    def close_terminal(child: int) -> None:
        os.close(slave)
        seen = b""
        while b"(Step 000004)" not in seen:
            seen += os.read(master, 65536)
        os.close(master)

    result = pretrain(fresh, *FOREVER, in_child=enter_terminal, meanwhile=close_terminal)
    assert result.code == 128 + signal.SIGHUP
    newest = checkpoints(fresh)[-1]
    assert read_checkpoint(newest)["progress"]["step"] >= 4 and read_model_file(fresh / "model.pth").weights
    assert pretrain(fresh, "--resume", "--max_steps", step_of(newest) + 2).code == 0


def test_hangup_is_ignored_under_nohup(fresh):
    def in_child() -> None:
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        at_step(5, signal_self(signal.SIGHUP))()

    result = pretrain(fresh, in_child=in_child)
    assert (result.code, result.stderr) == (0, "")


# ---- 两个进程 ----


def test_two_runs_on_one_output_path(fresh):
    with output_lock(fresh / "model.pth"):
        before = contents(fresh)
        result = pretrain(fresh)
        assert_error(result, f"model.pth：另一个进程（PID {os.getpid()}）正在写入", code=2)
        assert contents(fresh) == before
        assert pretrain(fresh, "--dry_run").code == 0  # 什么也不写，不必等
    assert pretrain(fresh).code == 0


# ---- 内存和数值 ----


def test_lack_of_memory_names_flags_that_would_do_and_keeps_the_state(fresh):
    really_lack = at_step(7, lambda: torch.empty(2**60, dtype=torch.int8))  # 真的要一次，真的要不到
    result = pretrain(fresh, in_child=really_lack)
    parts = ("内存：训练一步时不够用", "--batch_size 2 --accumulation_steps 2", "--resume")
    assert_error(result, *parts, code=1)
    assert step_of(checkpoints(fresh)[-1]) == 6
    again = pretrain(fresh, "--resume", "--batch_size", 2, "--accumulation_steps", 2)
    assert again.code == 0 and "从第 6 步继续" in again.stdout
    assert "batch_size 由 4 改为 2" in again.stderr


def test_loss_that_is_not_finite_names_the_checkpoint_to_continue_from(fresh):
    flags = ("--learning_rate", "1e18", "--dtype", "float32", "--eval_freq", 100, "--max_steps", 100)
    result = pretrain(fresh, *flags, "--save_every", 1)
    parts = (
        "损失为 nan",
        "梯度范数为",
        "学习率",
        "个 token 等 4 处取样",
        "这一步没有保存",
        "步的检查点继续",
        "--resume --learning_rate 0.0004。",
    )
    assert_error(result, *parts, code=1)
    step = step_of(checkpoints(fresh)[-1])
    assert f"第 {step} 步的检查点" in result.stderr
    read_checkpoint(checkpoints(fresh)[-1])  # 存下的状态是好的
    again = pretrain(fresh, "--resume", "--learning_rate", "1e-3", "--dtype", "float32", "--max_steps", step + 1)
    assert f"从第 {step} 步继续" in again.stdout


def test_bug_while_training_still_saves(fresh):
    def fail() -> None:
        raise ValueError("程序自己的错误")

    result = pretrain(fresh, "--save_every", 10**6, in_child=at_step(7, fail))
    assert result.code == 1 and "程序自己的错误" in result.stderr
    assert step_of(checkpoints(fresh)[-1]) == 6


# ---- 接着训练 ----


def refuse_resume(folder: Path, *parts: str, flags: tuple = ()) -> None:
    before = contents(folder)
    assert_error(pretrain(folder, "--resume", *flags), *parts, code=2)
    assert contents(folder) == before


def flip_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 3] ^= 8
    path.write_bytes(data)


def test_nothing_to_resume_says_so(fresh):
    refuse_resume(fresh, "model.pth.ckpt：没有检查点可以继续", "去掉 --resume")


def test_damaged_newest_checkpoint_is_kept_and_the_one_before_is_used(folder):
    newest = checkpoints(folder)[-1]
    flip_bit(newest)
    damaged = newest.read_bytes()
    result = pretrain(folder, "--resume", "--max_steps", 9, "--save_every", 10**6)
    assert result.code == 0 and "从第 6 步继续" in result.stdout
    assert (
        "警告：model.pth.ckpt/step-00000008.ckpt 不能用（校验失败（内容）），改用 step-00000006.ckpt" in result.stderr
    )
    assert newest.read_bytes() == damaged


def test_all_damaged_checkpoints_are_listed_and_none_is_deleted(folder):
    for path in checkpoints(folder):
        flip_bit(path)
    names = [f"{path.name} 校验失败" for path in checkpoints(folder)]
    refuse_resume(folder, "没有完好的检查点", *names)


def test_checkpoint_of_a_newer_version_says_so(folder):
    newest = checkpoints(folder)[-1]
    save_state(newest, {**torch.load(newest, weights_only=True), "format": 99})
    refuse_resume(folder, "step-00000008.ckpt", "由更新的版本写出", "格式 99")


def test_checkpoint_that_is_a_folder_or_a_pipe_is_not_opened(folder):
    for path in checkpoints(folder):
        path.unlink()
    (folder / "model.pth.ckpt" / "step-00000006.ckpt").mkdir()
    os.mkfifo(folder / "model.pth.ckpt" / "step-00000008.ckpt")
    refuse_resume(folder, "step-00000006.ckpt 缺少 state.pth", "step-00000008.ckpt 不是普通文件")


def test_changed_corpus_needs_a_flag_and_keeps_the_vocabulary(folder):
    with (folder / "corpus.txt").open("a", encoding="utf-8") as file:
        file.write("八戒道：" * 500)
    refuse_resume(folder, "数据与检查点记录的不同", "--allow_data_change")
    result = pretrain(folder, "--resume", "--allow_data_change", "--max_steps", 10)
    assert result.code == 0 and "从第 8 步继续" in result.stdout, result.stderr


@pytest.mark.parametrize(
    ("flags", "part"),
    [
        (("--seed", 7), "--seed 是 123，现在是 7"),
        (("--stride", 5), "--stride 是 16，现在是 5"),
        (("--optimizer", "muon"), "现在是 muon"),
    ],
)
def test_setting_that_cannot_change_is_named(folder, flags, part):
    refuse_resume(folder, part, flags=flags)


def test_other_configuration_is_named(folder):
    write_config(folder, num_heads=8)
    refuse_resume(folder, "num_heads 是 4，现在是 8")


def test_finished_run_can_be_continued_for_longer(folder):
    nothing = pretrain(folder, "--resume")
    assert nothing.code == 0 and "从第 8 步继续" in nothing.stdout and "Best validate loss" in nothing.stdout
    longer = pretrain(folder, "--resume", "--max_steps", 12)
    steps = [json.loads(line)["step"] for line in (folder / "model.pth.log.jsonl").read_text("utf-8").splitlines()]
    assert longer.code == 0 and steps == [0, 4, 8, 12]


def test_lost_model_file_is_written_again(folder):
    (folder / "model.pth").unlink()
    assert pretrain(folder, "--resume").code == 0
    assert read_model_file(folder / "model.pth").origin["step"] == 8


def test_checkpoint_can_be_used_for_generation(folder):
    path = checkpoints(folder)[-1]
    result = run_forked("generate.py", "--model_path", path, "--prompt", "悟空", cwd=folder)
    assert (result.code, result.stderr) == (0, "") and result.stdout.startswith("悟空")
