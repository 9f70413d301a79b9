"""几个进程一起训练时出的事：被杀、停住、断开、磁盘满、写错参数。真的用 torchrun 启动。"""

import re
import socket
import subprocess
import sys

import pytest
from torchrun_jobs import (
    NO_WINDOWS,
    Jobs,
    assert_same_weights,
    job,
    make_folder,
    make_machines,
    run_on_two_machines,
    run_two_agents,
    with_dropout,
)

from conftest import ROOT, rank_environment, write_config
from utils.checkpoint_files import checkpoint_folder, list_checkpoints

pytestmark = NO_WINDOWS


@pytest.fixture(scope="module")
def jobs(tmp_path_factory, corpus_text) -> Jobs:
    """两种并行方式各有一次没有出事的训练，供比较。"""
    jobs = Jobs(make_folder(tmp_path_factory.mktemp("faults"), corpus_text))
    whole = [job(f"{mode}_whole", *with_dropout("--parallel", mode)) for mode in ("ddp", "fsdp")]
    result = jobs.run(2, whole)
    assert result.returncode == 0, result.stderr[-3000:]
    return jobs


def errors_of(result: subprocess.CompletedProcess) -> list[str]:
    return [line for line in result.stderr.splitlines() if line.startswith("错误：")]


def test_killed_process_is_named_and_the_restart_passes_over_the_damaged_checkpoint(jobs):
    """被杀之前，最新的检查点里有一份坏了一位：自动接着的是它的前一个。"""
    arguments = with_dropout("--parallel", "fsdp", "--save_every", "3")
    spoiled = job("spoiled", *arguments, fault=["spoil", 8, 1], as_program=True)
    result = jobs.run(2, [spoiled], "--max_restarts", "1")
    assert result.returncode == 0, result.stderr[-3000:]
    (named,) = errors_of(result)
    assert named.startswith("错误：进程 1（") and "没有消息了" in named
    assert "从第 3 步继续" in result.stdout and "step-00000006" in result.stderr
    assert_same_weights(jobs, "fsdp_whole", "spoiled")


def test_restart_of_several_machines_resumes_by_itself(jobs, tmp_path):
    """被杀的是另一台机器上的进程：这一台的 torchrun 不把它算作一次重启，照样要接着练。"""
    arguments = with_dropout("--parallel", "ddp", "--save_every", "3")
    killed = job("killed", *arguments, fault=["kill", 8, 1], as_program=True)
    machine = make_machines(jobs, tmp_path)[0]
    results = run_two_agents((machine, machine), [killed], "--max_restarts", "2")
    assert [result.returncode for result in results] == [0, 0], results[0].stderr[-2000:] + results[1].stderr[-2000:]
    (named,) = (line for result in results for line in errors_of(result))
    assert named.startswith("错误：进程 1（") and "没有消息了" in named
    assert sum("从第 6 步继续" in result.stdout for result in results) == 1
    assert not list(machine.glob("*.bak"))
    assert_same_weights(jobs, "ddp_whole", machine / "killed")


def test_process_that_hangs_is_named_and_ends_the_job(jobs):
    hung = job("hung", "--parallel", "fsdp", "--patience", "5", fault=["hang", 5, 1], as_program=True)
    result = jobs.run(2, [hung], "--shutdown_timeout", "1")
    named = errors_of(result)
    assert result.returncode != 0 and len(named) == 1
    assert named[0].startswith("错误：进程 1（") and "没有消息了" in named[0]


DIES_WHILE_OTHERS_WAIT = """
import os, signal, torch
from utils import distributed, process_group, processes
from utils.errors import run_program

def make():
    if processes.rank() == 1:
        os.kill(os.getpid(), signal.SIGKILL)

def main():
    process_group.start(torch.device("cpu"), patience=30)
    distributed.in_turns(make)

run_program(main)
"""


def test_process_killed_while_the_others_wait_without_limit_is_named(tmp_path):
    command = ["-c", DIES_WHILE_OTHERS_WAIT]
    (code, stderr), _ = run_on_two_machines(tmp_path, command, command)
    assert code == 1 and stderr.startswith("错误：进程 1（") and "没有消息了" in stderr


def test_process_killed_while_the_others_wait_is_named_under_torchrun_too(tmp_path):
    """torchrun 马上给其余的发信号；它们离开之前说出是谁。"""
    (tmp_path / "job.py").write_text(DIES_WHILE_OTHERS_WAIT, encoding="utf-8")
    command = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "3", "job.py"]
    env = {**rank_environment(0, 1, 1), "RANK": ""}
    result = subprocess.run(
        [sys.executable, *command], cwd=tmp_path, env=env, capture_output=True, encoding="utf-8", timeout=120
    )
    (named,) = errors_of(result)
    assert named.startswith("错误：进程 1（") and "没有消息了" in named


def test_same_mistake_of_all_processes_is_told_once(jobs):
    """先离开的一走，torchrun 就给其余的发信号：它们正在离开，不能变成 traceback。"""
    wrong = job("wrong", "--data_path", "missing.txt", as_program=True)
    result = jobs.run(4, [wrong])
    assert errors_of(result) == ["错误：missing.txt：找不到数据文件。检查路径；随项目附带的语料和数据在 data/ 下。"]
    assert result.stderr.count("Traceback") <= 1  # torchrun 自己的


def test_machines_with_different_corpora_stop_before_the_first_step(jobs):
    shared = [ROOT / "pretrain.py", "--config", "tiny.json", "--device", "cpu", "--model_path", "disagree.pth"]
    commands = [[*shared, "--data_path", name] for name in ("corpus.txt", "other.txt")]
    ends = run_on_two_machines(jobs.folder, *commands)
    assert [code for code, _ in ends] == [2, 2]
    # 没有 torchrun，存消息的是进程 0：它先离开的话，另一个问不到说过没有，就自己也说
    assert 1 <= sum(text.count("错误：语料：各个进程不一致：进程 0（") for _, text in ends) <= 2
    assert not (jobs.folder / "disagree.pth").exists()


def test_replicated_run_writes_on_the_machine_of_the_main_process_only(jobs, tmp_path):
    machines = make_machines(jobs, tmp_path)
    arguments = with_dropout("--parallel", "ddp", "--save_every", "3", "--max_steps", "6")
    apart = job("apart", *arguments, model="out/m", as_program=True)
    results = run_two_agents(machines, [apart])
    assert [result.returncode for result in results] == [0, 0], results[0].stderr[-2000:] + results[1].stderr[-2000:]
    assert sorted((machine / "out" / "m.pth").exists() for machine in machines) == [False, True]
    assert sorted((machine / "out").exists() for machine in machines) == [False, True]


def test_sharded_run_needs_a_shared_folder_before_it_starts(jobs, tmp_path):
    machines = make_machines(jobs, tmp_path)
    apart = job("apart", *with_dropout("--parallel", "fsdp"), model="out/m", as_program=True)
    results = run_two_agents(machines, [apart])
    text = "".join(result.stderr for result in results)
    assert text.count("看不到这个文件夹。FSDP 的检查点要写在各台机器共用的文件夹里。") == 1
    assert "Step 000000" not in "".join(result.stdout for result in results)
    assert not list(tmp_path.rglob("*.tmp"))


@pytest.mark.parametrize(("mode", "rank"), [("ddp", 0), ("fsdp", 1)])
def test_full_disk_of_one_process_ends_the_job_with_its_reason(jobs, mode, rank):
    arguments = with_dropout("--parallel", mode, "--save_every", "3")
    result = jobs.run(2, [job(f"full_{mode}", *arguments, fault=["fill", 4, rank], as_program=True)])
    (named,) = errors_of(result)
    assert result.returncode != 0 and "磁盘" in named and "没有消息" not in named
    kept = list_checkpoints(checkpoint_folder(jobs.folder / f"full_{mode}.pth"))
    assert [path.name for path in kept] == ["step-00000003.ckpt"]


def test_unexpected_error_of_one_process_is_not_taken_for_a_lost_one(jobs):
    arguments = with_dropout("--parallel", "ddp")
    result = jobs.run(2, [job("failed", *arguments, fault=["fail", 4, 1], as_program=True)])
    assert result.returncode != 0 and "ValueError: 没有想到的错误" in result.stderr
    assert "没有消息" not in result.stderr


def test_signal_to_torchrun_saves_too(jobs):
    stopped = job("stopped", *with_dropout("--parallel", "fsdp"), fault=["stop_torchrun", 5, 1], as_program=True)
    result = jobs.run(2, [stopped])
    (step,) = re.findall(r"已在第 (\d+) 步保存，用 --resume 继续", result.stderr)
    names = [path.name for path in list_checkpoints(checkpoint_folder(jobs.folder / "stopped.pth"))]
    assert names[-1] == f"step-{int(step):08}.ckpt" and 5 <= int(step) < 12


def test_busy_port_is_named(tmp_path, corpus_text):
    (tmp_path / "corpus.txt").write_text(corpus_text, encoding="utf-8")
    config = write_config(tmp_path)
    with socket.socket() as taken:
        taken.bind(("", 0))
        taken.listen()
        port = taken.getsockname()[1]
        result = subprocess.run(
            [sys.executable, ROOT / "pretrain.py", "--config", config, "--data_path", "corpus.txt"],
            cwd=tmp_path,
            env=rank_environment(0, 2, port),
            capture_output=True,
            encoding="utf-8",
            timeout=120,
        )
    assert result.returncode == 2
    assert f"错误：127.0.0.1:{port}：端口已被占用" in result.stderr
