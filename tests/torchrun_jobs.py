"""用 torchrun（或不用它）启动 distributed_job.py：任务怎样写，结果怎样读。只给测试用。"""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from conftest import ROOT, free_port, last_of_each, rank_environment, write_config
from utils.process_group import FRESH_STORE

NO_WINDOWS = pytest.mark.skipif(
    sys.platform == "win32", reason="torch 的 Windows 版没有 gloo 以外的进程组，torchrun 未测"
)
LOOPBACK = "lo0" if sys.platform == "darwin" else "lo"
JOB = ROOT / "tests" / "distributed_job.py"


@dataclass(frozen=True)
class Outcome:
    """一个任务在各个进程里的结果。"""

    losses: list[float]
    samples: list[list[list[int]]]  # 各进程的各步的样本合在一起
    ends: list[str]
    scans: list[int]  # 各进程读了几遍语料
    said: list[str]  # 各进程打印的


class Jobs:
    """在 folder 里做任务。"""

    def __init__(self, folder: Path):
        self.folder = folder

    def run(self, num_processes: int, jobs: list[dict], *flags: str) -> subprocess.CompletedProcess:
        (self.folder / "jobs.json").write_text(json.dumps(jobs), encoding="utf-8")
        torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", num_processes]
        launcher = [sys.executable] if num_processes == 1 else [*torchrun, *flags]
        env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "PYTHONIOENCODING": "utf-8"}
        return subprocess.run(
            [*map(str, launcher), str(JOB), "jobs.json"],
            cwd=self.folder,
            env=env,
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            timeout=300,
        )

    def outcome(self, name: str) -> Outcome:
        paths = sorted(self.folder.glob(f"{name}.[0-9].json"))
        results = [json.loads(path.read_text(encoding="utf-8")) for path in paths]
        assert len({tuple(result["losses"]) for result in results}) == 1, "各个进程报的损失应相同"
        steps = zip(*(result["samples"] for result in results), strict=True)
        samples = [[row for part in step for row in part] for step in steps]
        losses = [float.fromhex(loss) for loss in results[0]["losses"]]
        return Outcome(losses, samples, *([result[key] for result in results] for key in ("end", "scans", "said")))

    def log(self, name: str) -> list[dict]:
        lines = (self.folder / f"{name}.pth.log.jsonl").read_text(encoding="utf-8").splitlines()
        return [json.loads(line) for line in lines]


def job(
    name: str, *arguments: str, program: str = "pretrain", model: str = "", own: dict | None = None, **options
) -> dict:
    """训练到 <model 或 name>.pth 的一个任务。"""
    output = "--model_path" if program == "pretrain" else "--output_path"
    shared = [output, f"{model or name}.pth", "--dtype", "float32", "--device", "cpu"]
    if program == "pretrain":
        shared += ["--config", "tiny.json", "--data_path", "corpus.txt"]
    arguments = last_of_each(*shared, *arguments)
    own = {rank: last_of_each(*arguments, *words) for rank, words in (own or {}).items()}
    return {"program": program, "name": name, "arguments": arguments, "own": own, **options}


def with_dropout(*arguments: str) -> tuple[str, ...]:
    return ("--config", "dropout.json", *arguments)


def make_folder(folder: Path, corpus_text: str) -> Path:
    """folder 里写好配置和各种数据。"""
    (folder / "corpus.txt").write_text(corpus_text, encoding="utf-8")
    (folder / "other.txt").write_text(corpus_text[::-1], encoding="utf-8")
    training = {"max_steps": 12, "batch_size": 6, "accumulation_steps": 2, "learning_rate": 0.003, "eval_freq": 4}
    write_config(folder, drop_rate=0.2, training={**training, "epochs": 9}).rename(folder / "dropout.json")
    write_config(folder, training={**training, "epochs": 9})
    labels = "".join(f"{'好' if i % 3 else '坏'},第{i}句{'长' * (i % 5)}\n" for i in range(40))
    (folder / "labels.csv").write_text("label,text\n" + labels, encoding="utf-8")
    talks = [{"instruction": f"{i}", "output": "好" * (1 + i % 3)} for i in range(40)]
    (folder / "talks.json").write_text(json.dumps(talks, ensure_ascii=False), encoding="utf-8")
    return folder


def assert_same_weights(jobs: Jobs, *names: str | Path) -> None:
    one, other = (torch.load(jobs.folder / f"{name}.pth", weights_only=True) for name in names)
    assert all(torch.equal(one[name], other[name]) for name in one.keys() - {"_extra_state"})


def run_on_two_machines(folder: Path, *commands: list[str]) -> list[tuple[int, str]]:
    """每条命令是一台机器上唯一的进程，没有 torchrun。-> [(退出码, 标准错误)]"""
    port, started = free_port(), []
    for rank, command in enumerate(commands):
        machine = {"LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1", "GLOO_SOCKET_IFNAME": LOOPBACK}
        env = {**rank_environment(rank, len(commands), port), **machine}
        pipes = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "encoding": "utf-8"}
        started.append(subprocess.Popen([sys.executable, *map(str, command)], env=env, cwd=folder, **pipes))
    errors = [process.communicate(timeout=120)[1] for process in started]
    return [(process.returncode, text) for process, text in zip(started, errors, strict=True)]


def run_two_agents(folders: tuple[Path, Path], jobs: list[dict], *flags: str) -> list[subprocess.CompletedProcess]:
    """两台机器各一个 torchrun、各一个进程；在各自的文件夹里做同样的任务。"""
    port, started = free_port(), []
    for folder in folders:
        (folder / "jobs.json").write_text(json.dumps(jobs), encoding="utf-8")
        command = ["--nnodes", "2", "--nproc_per_node", "1", "--rdzv_backend", "c10d", *flags]
        command += ["--rdzv_endpoint", f"127.0.0.1:{port}", str(JOB), "jobs.json"]
        env = {**rank_environment(0, 1, port), "GLOO_SOCKET_IFNAME": LOOPBACK, FRESH_STORE: "1"}
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "encoding": "utf-8"}
        torchrun = [sys.executable, "-m", "torch.distributed.run", *command]
        started.append(subprocess.Popen(torchrun, cwd=folder, env=env, **pipes))
    outputs = [process.communicate(timeout=300) for process in started]
    return [
        subprocess.CompletedProcess(process.args, process.returncode, *output)
        for process, output in zip(started, outputs, strict=True)
    ]


def make_machines(jobs: Jobs, folder: Path) -> tuple[Path, Path]:
    """两个文件夹，有同样的配置和语料：两台没有共用文件夹的机器。"""
    machines = folder / "a", folder / "b"
    for machine in machines:
        machine.mkdir()
        for name in ("dropout.json", "corpus.txt"):
            shutil.copy(jobs.folder / name, machine)
    return machines
