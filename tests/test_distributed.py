"""几个进程一起训练：真的用 torchrun 启动，与一个进程的结果比较。一次启动做完多次训练。"""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from conftest import ROOT, free_port, last_of_each, rank_environment, write_config
from utils.checkpoint_files import checkpoint_folder, list_checkpoints
from utils.model_file import read_model_file

pytestmark = pytest.mark.skipif(
    sys.platform == "win32", reason="torch 的 Windows 版没有 gloo 以外的进程组，torchrun 未测"
)

LOOPBACK = "lo0" if sys.platform == "darwin" else "lo"
JOB = ROOT / "tests" / "distributed_job.py"
# 每批 5 个、累积 3 批：一次更新 15 个样本，2 个或 4 个进程都分不均；一轮的最后一次更新更少
UNEVEN = ("--batch_size", "5", "--accumulation_steps", "3", "--grad_clip", "0.3")


@dataclass(frozen=True)
class Outcome:
    """一个任务在各个进程里的结果。"""

    losses: list[float]
    samples: list[list[list[int]]]  # 各进程的各步的样本合在一起
    ends: list[str]
    scans: list[int]  # 各进程读了几遍语料


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
        return Outcome(losses, samples, *([result[key] for result in results] for key in ("end", "scans")))

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


def tuning_jobs(prefix: str, *flags: str) -> list[dict]:
    """两种微调各一次；flags 只给几个进程时用。"""
    shared = ("--init_from", "one.pth", "--max_steps", "6", "--batch_size", "3", "--eval_freq", "3", *flags)
    shared += ("--optimizer", "adamw", "--learning_rate", "0.001")
    classify = ("--data_path", "labels.csv", "--drop_rate", "0", *shared)
    return [
        job(f"{prefix}_classifier", *classify, program="finetune_classifier"),
        job(f"{prefix}_instruction", "--data_path", "talks.json", *shared, program="finetune_instruction"),
    ]


def parallel_jobs(mode: str) -> list[dict]:
    flags = ("--parallel", mode)
    resumed = {"model": f"{mode}_resumed"}
    return [
        job(mode, *UNEVEN, "--max_steps", "50", *flags),
        job(f"{mode}_muon", "--optimizer", "muon", "--max_steps", "12", *flags, float32_muon=True),
        job(f"{mode}_whole", *with_dropout(*flags)),
        job(f"{mode}_cut", *with_dropout(*flags), **resumed, fault=["stop", 7, 1]),
        job(f"{mode}_rest", *with_dropout(*flags), "--resume", **resumed),
    ]


LORA = ("--init_from", "one.pth", "--data_path", "labels.csv", "--trainable", "lora")
LONGER = ("--optimizer", "muon", "--max_steps", "14", "--resume")


@pytest.fixture(scope="module")
def jobs(tmp_path_factory, corpus_text) -> Jobs:
    """做完大部分任务：一个进程的、两个进程的，再是改变进程数的。"""
    folder = tmp_path_factory.mktemp("jobs")
    (folder / "corpus.txt").write_text(corpus_text, encoding="utf-8")
    (folder / "other.txt").write_text(corpus_text[::-1], encoding="utf-8")
    training = {"max_steps": 12, "batch_size": 6, "accumulation_steps": 2, "learning_rate": 0.003, "eval_freq": 4}
    write_config(folder, drop_rate=0.2, training={**training, "epochs": 9}).rename(folder / "dropout.json")
    write_config(folder, training={**training, "epochs": 9})
    labels = "".join(f"{'好' if i % 3 else '坏'},第{i}句{'长' * (i % 5)}\n" for i in range(40))
    (folder / "labels.csv").write_text("label,text\n" + labels, encoding="utf-8")
    talks = [{"instruction": f"{i}", "output": "好" * (1 + i % 3)} for i in range(40)]
    (folder / "talks.json").write_text(json.dumps(talks, ensure_ascii=False), encoding="utf-8")
    jobs = Jobs(folder)
    one = [job("one", *UNEVEN, "--max_steps", "50"), *tuning_jobs("one")]
    one.append(job("one_muon", "--optimizer", "muon", "--max_steps", "12", float32_muon=True))
    two = [*parallel_jobs("ddp"), *parallel_jobs("fsdp"), *tuning_jobs("ddp", "--parallel", "ddp")]
    two += tuning_jobs("fsdp", "--parallel", "fsdp")
    two += [
        job("refused", *LONGER, "--parallel", "fsdp", model="one_muon"),
        job("changed", *LONGER, "--parallel", "fsdp", "--allow_process_change", model="one_muon"),
        job("other_rate", "--max_steps", "2", own={"1": ["--learning_rate", "0.5"]}),
        job("other_dtype", "--max_steps", "2", own={"1": ["--dtype", "bfloat16"]}),
        job("bfloat16", "--parallel", "fsdp", *UNEVEN, "--dtype", "bfloat16", "--max_steps", "4"),
        job("lora", *LORA, "--parallel", "fsdp", program="finetune_classifier"),
    ]
    for count, part in ((1, one), (2, two)):
        result = jobs.run(count, part)
        assert result.returncode == 0, result.stderr[-3000:]
    (folder / "output.txt").write_text(result.stdout, encoding="utf-8")
    (folder / "errors.txt").write_text(result.stderr, encoding="utf-8")
    return jobs


@pytest.mark.parametrize("mode", ["ddp", "fsdp"])
def test_losses_of_two_processes_are_those_of_one(jobs, mode):
    ours, one = jobs.outcome(mode), jobs.outcome("one")
    assert len(one.losses) == 50
    assert ours.losses == pytest.approx(one.losses, abs=1e-6)


@pytest.mark.parametrize("mode", ["ddp", "fsdp"])
def test_every_sample_is_used_once_in_the_same_step(jobs, mode):
    ours, one = jobs.outcome(mode), jobs.outcome("one")
    assert [sorted(step) for step in ours.samples] == [sorted(step) for step in one.samples]
    assert len({len(step) for step in one.samples}) > 1  # 一轮的最后一次更新样本少些
    assert [row["tokens"] for row in jobs.log(mode)] == [row["tokens"] for row in jobs.log("one")]


@pytest.mark.parametrize("mode", ["ddp", "fsdp"])
def test_evaluation_of_the_same_weights_is_exactly_equal(jobs, mode):
    for name in ("train_loss", "validate_loss"):
        assert jobs.log(mode)[0][name] == jobs.log("one")[0][name]  # 第 0 步，权重一位不差


@pytest.mark.parametrize("mode", ["ddp", "fsdp"])
def test_muon_of_two_processes_is_that_of_one(jobs, mode):
    assert jobs.outcome(f"{mode}_muon").losses == pytest.approx(jobs.outcome("one_muon").losses, abs=1e-6)


@pytest.mark.parametrize("mode", ["ddp", "fsdp"])
@pytest.mark.parametrize("task", ["classifier", "instruction"])
def test_fine_tuning_of_two_processes_is_that_of_one(jobs, mode, task):
    ours, one = jobs.outcome(f"{mode}_{task}"), jobs.outcome(f"one_{task}")
    assert len(one.losses) == 6 and ours.losses == pytest.approx(one.losses, abs=1e-6)
    accuracies = [[row["validate_accuracy"] for row in jobs.log(f"{who}_{task}")] for who in (mode, "one")]
    assert accuracies[0] == accuracies[1]


@pytest.mark.parametrize("mode", ["ddp", "fsdp"])
def test_model_file_is_the_same_plain_file(jobs, mode):
    ours, one = (torch.load(jobs.folder / f"{name}.pth", weights_only=True) for name in (mode, "one"))
    assert list(ours) == list(one) and ours["_extra_state"]["config"] == one["_extra_state"]["config"]
    for name in one.keys() - {"_extra_state"}:
        assert type(ours[name]) is torch.Tensor and ours[name].dtype == one[name].dtype
        torch.testing.assert_close(ours[name], one[name], atol=1e-4, rtol=0)
    assert ours["out_head.weight"].data_ptr() == ours["tok_emb.weight"].data_ptr()
    sizes = [(jobs.folder / f"{name}.pth").stat().st_size for name in (mode, "one")]
    assert abs(sizes[0] - sizes[1]) < 200  # 差在验证损失写成几位
    read_model_file(jobs.folder / f"{mode}.pth")


@pytest.mark.parametrize("mode", ["ddp", "fsdp"])
def test_signal_to_one_process_saves_everywhere_and_resuming_is_bit_for_bit(jobs, mode):
    whole, cut, rest = (jobs.outcome(f"{mode}_{part}") for part in ("whole", "cut", "rest"))
    assert len(cut.losses) == 7 and len(whole.losses) == 12
    assert [loss.hex() for loss in whole.losses] == [loss.hex() for loss in cut.losses + rest.losses]
    one, other = (torch.load(jobs.folder / f"{mode}_{name}.pth", weights_only=True) for name in ("whole", "resumed"))
    assert all(torch.equal(one[name], other[name]) for name in one.keys() - {"_extra_state"})
    assert "已在第 7 步保存" in (jobs.folder / "errors.txt").read_text(encoding="utf-8")


def test_signal_to_torchrun_saves_too(jobs):
    stopped = job("stopped", *with_dropout("--parallel", "fsdp"), fault=["stop_torchrun", 5, 1], as_program=True)
    result = jobs.run(2, [stopped])
    (step,) = re.findall(r"已在第 (\d+) 步保存，用 --resume 继续", result.stderr)
    names = [path.name for path in list_checkpoints(checkpoint_folder(jobs.folder / "stopped.pth"))]
    assert names[-1] == f"step-{int(step):08}.ckpt" and 5 <= int(step) < 12


def test_dropout_differs_between_processes(jobs):
    assert jobs.outcome("ddp_whole").losses != pytest.approx(jobs.outcome("one").losses[:12], abs=1e-3)


def test_other_way_of_working_together_needs_a_flag(jobs):
    refused, changed = jobs.outcome("refused"), jobs.outcome("changed")
    assert refused.losses == [] and len(set(refused.ends)) == 1
    assert "是 一个进程训练的，现在是 2 个进程（fsdp）" in refused.ends[0]
    assert "--allow_process_change" in refused.ends[0]
    assert len(changed.losses) == 2 and changed.ends == ["done", "done"]
    assert "从这里起不再逐位相同" in (jobs.folder / "errors.txt").read_text(encoding="utf-8")


def test_checkpoint_of_two_processes_continues_in_one(jobs):
    alone = job("alone", "--optimizer", "muon", "--max_steps", "16", "--resume", model="fsdp_muon")
    alone["arguments"].append("--allow_process_change")
    result = jobs.run(1, [alone])
    assert "改为 一个进程" in result.stderr and len(jobs.outcome("alone").losses) == 4


def test_processes_that_disagree_stop_before_the_first_step(jobs):
    rate, dtype = jobs.outcome("other_rate"), jobs.outcome("other_dtype")
    assert rate.losses == dtype.losses == []
    for outcome, subject in ((rate, "learning_rate"), (dtype, "dtype")):
        assert len(set(outcome.ends)) == 1 and f"错误：{subject}：各个进程不一致" in outcome.ends[0]
    assert "进程 0（" in rate.ends[0] and "是 0.003" in rate.ends[0] and "进程 1（" in rate.ends[0]
    assert "是 0.5" in rate.ends[0]
    assert not (jobs.folder / "other_rate.pth").exists()


def test_sharded_model_is_trained_in_bfloat16_too(jobs):
    outcome = jobs.outcome("bfloat16")
    assert outcome.ends == ["done", "done"]
    assert outcome.losses[0] == pytest.approx(jobs.outcome("one").losses[0], abs=0.02)


def test_lora_with_fsdp_is_refused(jobs):
    assert set(jobs.outcome("lora").ends) == {
        "错误：--parallel：fsdp 不能与 --trainable lora 同用。用 --parallel ddp。"
    }


def test_corpus_is_read_once_on_a_machine(jobs):
    for mode in ("ddp", "fsdp"):
        assert sum(jobs.outcome(mode).scans) == 1


def test_start_says_how_many_processes_and_who_writes(jobs):
    output = (jobs.folder / "output.txt").read_text(encoding="utf-8")
    assert re.search(r"^并行：2 个进程（ddp），文件由 进程 0（.+，PID \d+） 写$", output, re.MULTILINE)


def test_only_one_process_talks_and_writes(jobs):
    lines = (jobs.folder / "output.txt").read_text(encoding="utf-8").splitlines()
    assert sum(line.startswith("Ep 1 (Step 000000)") for line in lines) == 13  # 训练了几次就有几行
    folder = checkpoint_folder(jobs.folder / "fsdp.pth")
    assert [path.name for path in folder.iterdir()] == [path.name for path in list_checkpoints(folder)]
    assert not list(jobs.folder.rglob("*.tmp"))


def test_four_processes_are_exact_too(jobs):
    modes = ("ddp", "fsdp")
    four = [job(f"four_{mode}", *UNEVEN, "--max_steps", "50", "--parallel", mode) for mode in modes]
    result = jobs.run(4, four)
    assert result.returncode == 0, result.stderr[-3000:]
    one = jobs.outcome("one")
    for mode in modes:
        ours = jobs.outcome(f"four_{mode}")
        assert ours.samples == one.samples and len(ours.losses) == 50
        assert ours.losses == pytest.approx(one.losses, abs=1e-6)
        assert jobs.log(f"four_{mode}")[0]["validate_loss"] == jobs.log("one")[0]["validate_loss"]


@pytest.mark.parametrize("mode", ["ddp", "fsdp"])
def test_killed_process_is_named_and_the_restart_resumes_by_itself(jobs, mode):
    arguments = with_dropout("--parallel", mode, "--save_every", "3")
    killed = job(f"killed_{mode}", *arguments, fault=["kill", 8, 1], as_program=True)
    result = jobs.run(2, [killed], "--max_restarts", "1")
    named = [line for line in result.stderr.splitlines() if line.startswith("错误：")]
    assert len(named) == 1 and named[0].startswith("错误：进程 1（") and "没有消息了" in named[0]
    assert result.returncode == 0, result.stderr[-3000:]
    assert "从第 6 步继续" in result.stdout
    assert_same_weights(jobs, f"{mode}_whole", f"killed_{mode}")


def test_damaged_checkpoint_is_passed_over_by_the_restart(jobs):
    """被杀之前，最新的检查点里有一份坏了一位：自动接着的是它的前一个。"""
    arguments = with_dropout("--parallel", "fsdp", "--save_every", "3")
    spoiled = job("spoiled", *arguments, fault=["spoil", 8, 1], as_program=True)
    result = jobs.run(2, [spoiled], "--max_restarts", "1")
    assert result.returncode == 0, result.stderr[-3000:]
    assert "从第 3 步继续" in result.stdout and "step-00000006" in result.stderr
    assert_same_weights(jobs, "fsdp_whole", "spoiled")


def assert_same_weights(jobs: Jobs, *names: str | Path) -> None:
    one, other = (torch.load(jobs.folder / f"{name}.pth", weights_only=True) for name in names)
    assert all(torch.equal(one[name], other[name]) for name in one.keys() - {"_extra_state"})


@pytest.mark.parametrize("mode", ["ddp", "fsdp"])
def test_process_that_hangs_is_named_and_ends_the_job(jobs, mode):
    hung = job(f"hung_{mode}", "--parallel", mode, "--patience", "2", fault=["hang", 5, 1], as_program=True)
    result = jobs.run(2, [hung])
    named = [line for line in result.stderr.splitlines() if line.startswith("错误：")]
    assert result.returncode != 0 and len(named) == 1
    assert named[0].startswith("错误：进程 1（") and "停在" in named[0]


DIES_WHILE_OTHERS_WAIT = """
import os, signal, torch
from utils import distributed, processes
from utils.errors import run_program

def make():
    if processes.rank() == 1:
        os.kill(os.getpid(), signal.SIGKILL)

def main():
    distributed.start(torch.device("cpu"), patience=2)
    distributed.in_turns("corpus", make)

run_program(main)
"""


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
        env = {**rank_environment(0, 1, port), "GLOO_SOCKET_IFNAME": LOOPBACK}
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


def test_restart_of_several_machines_resumes_by_itself(jobs, tmp_path):
    """出事的是另一台机器上的进程：这一台的 torchrun 不把它算作一次重启，照样要接着练。"""
    arguments = with_dropout("--parallel", "ddp", "--save_every", "3")
    killed = job("killed", *arguments, fault=["kill", 8, 1], as_program=True)
    machine = make_machines(jobs, tmp_path)[0]
    results = run_two_agents((machine, machine), [killed], "--max_restarts", "2")
    assert [result.returncode for result in results] == [0, 0], results[0].stderr[-2000:] + results[1].stderr[-2000:]
    assert sum("从第 6 步继续" in result.stdout for result in results) == 1
    assert not list(machine.glob("*.bak"))
    assert_same_weights(jobs, "ddp_whole", machine / "killed")


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


@pytest.mark.parametrize("mode", ["ddp", "fsdp"])
@pytest.mark.parametrize("rank", [0, 1])
def test_full_disk_of_one_process_ends_the_job_with_its_reason(jobs, mode, rank):
    arguments = with_dropout("--parallel", mode, "--save_every", "3")
    name = f"full_{mode}_{rank}"
    result = jobs.run(2, [job(name, *arguments, fault=["fill", 4, rank], as_program=True)])
    named = [line for line in result.stderr.splitlines() if line.startswith("错误：")]
    if mode == "ddp" and rank == 1:  # 它什么也不写
        assert result.returncode == 0 and named == []
        return
    assert result.returncode != 0 and len(named) == 1 and "没有消息" not in named[0]
    assert "磁盘" in named[0] or "No space" in named[0], named
    kept = list_checkpoints(checkpoint_folder(jobs.folder / f"{name}.pth"))
    assert [path.name for path in kept] == ["step-00000003.ckpt"]


def test_unexpected_error_of_one_process_is_not_taken_for_a_lost_one(jobs):
    arguments = with_dropout("--parallel", "ddp")
    result = jobs.run(2, [job("failed", *arguments, fault=["fail", 4, 1], as_program=True)])
    assert result.returncode != 0 and "ValueError: 没有想到的错误" in result.stderr
    assert "没有消息" not in result.stderr


@pytest.mark.parametrize("mode", ["ddp", "fsdp"])
def test_best_weights_are_loaded_back_in_every_process(jobs, mode):
    """学习率太大，最好的不是最后一步：报的准确率应是文件里的权重的，与一个进程时相同。"""
    flags = ("--init_from", "one.pth", "--data_path", "labels.csv", "--keep", "best", "--eval_freq", "1")
    flags += ("--learning_rate", "3", "--max_steps", "4", "--drop_rate", "0")
    judged = []
    for count, name in ((1, f"best_one_{mode}"), (2, f"best_{mode}")):
        parallel = ("--parallel", mode) if count > 1 else ()
        best = job(name, *flags, *parallel, program="finetune_classifier", as_program=True)
        result = jobs.run(count, [best])
        assert result.returncode == 0, result.stderr[-2000:]
        judged.append(re.search(r"测试准确率 \S+%（第 [123] 步的权重）\n[^：]*", result.stdout)[0])
    assert judged[0] == judged[1]


def test_process_killed_while_the_others_wait_without_limit_is_named(tmp_path):
    command = ["-c", DIES_WHILE_OTHERS_WAIT]
    (code, stderr), _ = run_on_two_machines(tmp_path, command, command)
    assert code == 1 and stderr.startswith("错误：进程 1（") and "没有消息了" in stderr


def test_machines_with_different_corpora_stop_before_the_first_step(jobs):
    shared = [ROOT / "pretrain.py", "--config", "tiny.json", "--device", "cpu", "--model_path", "disagree.pth"]
    commands = [[*shared, "--data_path", name] for name in ("corpus.txt", "other.txt")]
    ends = run_on_two_machines(jobs.folder, *commands)
    assert [code for code, _ in ends] == [2, 2]
    assert sum(text.count("错误：语料：各个进程不一致：进程 0（") for _, text in ends) == 1
    assert not (jobs.folder / "disagree.pth").exists()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_group_of_one_process_trains_like_no_group(tmp_path, device, dtype):
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("没有 CUDA 显卡")
    result = subprocess.run(
        [sys.executable, ROOT / "tests" / "single_rank_job.py", device, dtype],
        env=rank_environment(0, 1, free_port()),
        cwd=tmp_path,
        capture_output=True,
        encoding="utf-8",
        timeout=300,
    )
    assert result.returncode == 0, result.stderr[-3000:]
    losses = json.loads(result.stdout)
    tolerance = 1e-5 if (device, dtype) == ("cpu", "float32") else 0.05
    assert losses["ddp"] == pytest.approx(losses["one"], abs=tolerance)
    assert losses["fsdp"] == pytest.approx(losses["one"], abs=tolerance)
    assert (tmp_path / "fsdp.pth").stat().st_size


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
