"""被杀死、被打断的训练：随机的 kill -9 和 SIGTERM，保存的每一步上的 kill -9；接着训练的结果与不中断的逐位相同。

只用于 POSIX。
"""

import errno
import json
import os
import random
import re
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from soak_process import SoakResult, run_forked

from conftest import ROOT, timeless_report, write_config
from utils.checkpoint import read_checkpoint
from utils.checkpoint_files import list_checkpoints

FLAGS = ("--config", "tiny.json", "--data_path", "corpus.txt")
SAVE_EVERY = 20
OLD_MODEL = b"old"  # 从头训练之前已有的模型文件
SETTINGS = {"batch_size": 4, "learning_rate": 0.003, "eval_freq": 50, "eval_iter": 1, "save_every": SAVE_EVERY}
# 一次保存里会碰磁盘的每个系统调用；在第 n 个之前杀死自己
DISK_CALLS = ("open", "link", "replace", "unlink", "mkdir", "fsync", "chmod", "posix_fadvise", "rename")


@dataclass(frozen=True)
class Task:
    """folder 里的一次训练：总步数固定，随便打断几次，结果都该与 reference 一样。"""

    folder: Path
    max_steps: int

    def run(self, **hooks) -> SoakResult:
        """有检查点就接着，没有就从头。"""
        resume = ["--resume"] if list_checkpoints(self.folder / "model.pth.ckpt") else []
        flags = (*FLAGS, "--max_steps", self.max_steps, *resume)
        result = run_forked("pretrain.py", *flags, cwd=self.folder, timeout=300, **hooks)
        assert "Traceback" not in result.stderr and not result.hung, result.stderr
        return result

    def saved_step(self) -> int:
        """最新的检查点是第几步；它必须完好。"""
        paths = list_checkpoints(self.folder / "model.pth.ckpt")
        return read_checkpoint(paths[-1])["progress"]["step"] if paths else 0

    def is_finished(self) -> bool:
        paths = list_checkpoints(self.folder / "model.pth.ckpt")
        return bool(paths) and read_checkpoint(paths[-1])["is_finished"]

    def outcome(self) -> tuple[list[dict], bytes, bytes, dict]:
        """日志（除去用时）、模型文件、曲线、报告里的数（除去用时）。"""
        lines = (self.folder / "model.pth.log.jsonl").read_text(encoding="utf-8").splitlines()
        log = [{key: value for key, value in json.loads(line).items() if key != "seconds"} for line in lines]
        model_path = self.folder / "model.pth"
        curve = (self.folder / "model.pth.loss.png").read_bytes()
        return log, model_path.read_bytes(), curve, timeless_report(model_path)

    def leftovers(self) -> list[str]:
        return [str(path) for path in self.folder.rglob(".*") if path.is_file()]


def make_task(folder: Path, max_steps: int, **settings) -> Task:
    """准备好配置和语料，dropout 打开，好看出随机状态接得对不对。"""
    folder.mkdir(parents=True, exist_ok=True)
    text = (ROOT / "data" / "西游记.txt").read_text(encoding="utf-8")[:3000]
    (folder / "corpus.txt").write_text(text, encoding="utf-8")
    write_config(folder, drop_rate=0.1, training={**SETTINGS, **settings})
    return Task(folder, max_steps)


def uninterrupted(folder: Path, max_steps: int, **settings) -> tuple:
    task = make_task(folder / "whole", max_steps, **settings)
    assert task.run().code == 0
    return task.outcome()


def send_after(signum: int, seconds: float) -> Callable[[int], None]:
    """过 seconds 秒给子进程发信号；它可能已经做完了。"""

    def send(child: int) -> None:
        time.sleep(seconds)
        os.kill(child, signum)  # 还没有 wait 过，编号一定还是它的

    return send


def kill_at_random(count: int, seed: int, folder: Path) -> str:
    """同一次训练随机 kill -9，直到杀满 count 次；做完一遍就换个文件夹再来。"""
    generator, max_steps, num_kills, num_runs, lost = random.Random(seed), min(2000, 4 * count + 200), 0, 0, 0
    num_while_training = 0
    whole = uninterrupted(folder, max_steps)
    while num_kills < count:
        task = make_task(folder / f"run-{num_runs}", max_steps)
        while num_kills < count:
            before = task.saved_step()
            result = task.run(meanwhile=send_after(signal.SIGKILL, generator.uniform(0.3, 1.2)))
            if result.code == 0:
                break
            assert result.code == -signal.SIGKILL, (result.code, result.stderr)
            num_kills += 1
            num_while_training += "训练：" in result.stdout
            after = task.saved_step()
            assert after >= before, f"检查点从第 {before} 步退到了第 {after} 步"
            printed = [int(step) for step in re.findall(r"\(Step (\d+)\)", result.stdout)]
            lost = max(lost, max(printed, default=0) - after)
        assert task.run().code == 0
        assert task.outcome() == whole, "结果与不中断的不同"
        assert task.leftovers() == [], task.leftovers()
        shutil.rmtree(task.folder)
        num_runs += 1
    assert lost <= SAVE_EVERY, f"丢了 {lost} 步"
    # 机器很忙时起步也慢；次数多了才看得出是不是杀得太早
    assert count < 100 or num_while_training > num_kills / 4, f"只有 {num_while_training} 次杀在训练开始之后"
    when = f"{num_kills:,} 次（{num_while_training:,} 次在训练开始之后）"
    return f"{when}，做完 {num_runs} 遍，全部与不中断的逐位相同；至多丢 {lost} 步（每 {SAVE_EVERY} 步存一次）"


def kill_at_disk_call(number: int) -> Callable[[], None]:
    """让子进程在第 number 次碰磁盘之前杀死自己；从训练开始数起。"""

    def arm() -> None:
        calls = iter(range(1, 10**9))

        def wrap(name: str) -> None:
            original = getattr(os, name)

            def wrapped(*args, **options):
                if next(calls) == number:
                    os.kill(os.getpid(), signal.SIGKILL)
                return original(*args, **options)

            setattr(os, name, wrapped)

        for name in DISK_CALLS:
            wrap(name)

    return arm


def kill_at_every_disk_call(count: int, seed: int, folder: Path) -> str:
    """在一次短训练的每一个磁盘操作之前各杀一次（count 再大也只有这么多个），接着训练。"""
    num_kills = _kill_everywhere(count, seed, folder, lambda: None)
    return f"{num_kills} 处各一次，全部与不中断的逐位相同，没有残留"


def kill_without_hard_links(count: int, seed: int, folder: Path) -> str:
    """同上，但磁盘没有硬链接：已有的模型只能改名保留，有一段时间没有 model.pth。"""

    def refuse_links() -> None:
        def refuse(*_: object) -> None:
            raise OSError(errno.EPERM, os.strerror(errno.EPERM))

        os.link = refuse

    num_kills = _kill_everywhere(count, seed, folder, refuse_links)
    return f"{num_kills} 处各一次，全部与不中断的逐位相同，原有的模型都在"


def _kill_everywhere(count: int, seed: int, folder: Path, prepare_disk: Callable[[], None]) -> int:
    """已有一个旧的模型。-> 杀了几次"""
    settings = {"save_every": 2, "eval_freq": 4}
    whole = uninterrupted(folder, 6, **settings)
    numbers = list(range(1, 10**6))
    if count < 200:  # 抽查
        numbers = sorted(random.Random(seed).sample(range(1, 120), count))
    num_kills = 0
    for number in numbers:
        task = make_task(folder / "run", 6, **settings)
        (task.folder / "model.pth").write_bytes(OLD_MODEL)
        arm = kill_at_disk_call(number)
        code = task.run(in_child=lambda arm=arm: (prepare_disk(), arm())).code
        if code == 0:
            if count >= 200:
                break
        else:
            assert code == -signal.SIGKILL
            num_kills += 1
            task.saved_step()
            assert task.run(in_child=prepare_disk).code == 0
        assert task.outcome() == whole, f"在第 {number} 个磁盘操作之前杀死，结果不同"
        assert task.leftovers() == [], (number, task.leftovers())
        assert any(path.read_bytes() == OLD_MODEL for path in task.folder.glob("model.pth.bak*") if path.is_file())
        shutil.rmtree(task.folder)
    assert num_kills
    return num_kills


def terminate_at_random(count: int, seed: int, folder: Path) -> str:
    """随机时刻 SIGTERM：每次都以 143 离开，存好了，接着训练的结果逐位相同。"""
    generator, max_steps, num_signals, num_runs = random.Random(seed), min(2000, 20 * count + 200), 0, 0
    num_saved = 0
    whole = uninterrupted(folder, max_steps, save_every=10**6)
    while num_signals < count:
        task = make_task(folder / f"run-{num_runs}", max_steps, save_every=10**6)
        while num_signals < count:
            result = task.run(meanwhile=send_after(signal.SIGTERM, generator.uniform(0.2, 1.2)))
            if result.code == 0:
                break
            assert result.code == 128 + signal.SIGTERM, (result.code, result.stderr)
            num_signals += 1
            saved = re.search(r"已在第 (\d+) 步保存", result.stderr)
            # 还没有评估过一次，就没有可存的；训练完了在写样文，该存的都存了
            has_nothing_new = "Ep " not in result.stdout or task.is_finished()
            assert saved or has_nothing_new or "已在第 0 步停止" in result.stderr, (result.stdout, result.stderr)
            if saved:
                num_saved += 1
                assert task.saved_step() == int(saved[1])
        assert task.run().code == 0
        assert task.outcome() == whole, "结果与不中断的不同"
        assert task.leftovers() == []
        shutil.rmtree(task.folder)
        num_runs += 1
    return f"{num_signals} 次（{num_saved} 次有新的步数，全部存好），做完 {num_runs} 遍，全部与不中断的逐位相同"


def measures() -> Iterator[tuple[str, int, Callable[[int, int, Path], str]]]:
    """(名字, 个数, 函数)"""
    yield "随机 kill -9", 1_000, kill_at_random
    yield "每个磁盘操作之前 kill -9", 1_000, kill_at_every_disk_call
    yield "没有硬链接时 kill -9", 1_000, kill_without_hard_links
    yield "随机 SIGTERM", 100, terminate_at_random
