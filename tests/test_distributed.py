"""几个进程一起训练的结果，与一个进程的比较：真的用 torchrun 启动，一次启动做完多次训练。出的事在另一个文件。"""

import json
import re
import subprocess
import sys

import pytest
import torch
from torchrun_jobs import NO_WINDOWS, Jobs, job, make_folder, with_dropout

from conftest import ROOT, free_port, rank_environment
from utils.checkpoint import read_checkpoint
from utils.checkpoint_files import checkpoint_folder, list_checkpoints
from utils.model_file import read_model_file

pytestmark = NO_WINDOWS

# 每批 5 个、累积 3 批：一次更新 15 个样本，2 个或 4 个进程都分不均；一轮的最后一次更新更少
UNEVEN = ("--batch_size", "5", "--accumulation_steps", "3", "--grad_clip", "0.3")
LORA = ("--init_from", "one.pth", "--data_path", "labels.csv", "--trainable", "lora")
GETS_WORSE = ("--keep", "best", "--eval_freq", "1", "--learning_rate", "3", "--max_steps", "4")  # 最好的不是最后一步
PART = ("--epochs", "1", "--max_steps", "1000", "--batch_size", "7", "--eval_freq", "3")
OTHER = ("--batch_size", "5", "--accumulation_steps", "1", "--eval_iter", "1", "--resume")
LONGER = ("--optimizer", "muon", "--max_steps", "14", "--resume")


def tuning_jobs(prefix: str, *flags: str) -> list[dict]:
    """两种微调各一次；flags 只给几个进程时用。"""
    shared = ("--init_from", "one.pth", "--max_steps", "6", "--batch_size", "3", "--eval_freq", "3", *flags)
    shared += ("--optimizer", "adamw", "--learning_rate", "0.001")
    classify = ("--data_path", "labels.csv", "--drop_rate", "0", *shared)
    return [
        job(f"{prefix}_classifier", *classify, program="finetune_classifier"),
        job(f"{prefix}_instruction", "--data_path", "talks.json", *shared, program="finetune_instruction"),
        job(f"{prefix}_best", *classify, *GETS_WORSE, program="finetune_classifier"),
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
        job(f"{mode}_part", *PART, *flags, fault=["stop", 4, 1]),
        job(f"{mode}_other", *PART, *OTHER, *flags, model=f"{mode}_part"),
    ]


@pytest.fixture(scope="module")
def jobs(tmp_path_factory, corpus_text) -> Jobs:
    """做完大部分任务：一个进程的、两个进程的，再是改变进程数的。"""
    jobs = Jobs(make_folder(tmp_path_factory.mktemp("jobs"), corpus_text))
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
    (jobs.folder / "output.txt").write_text(result.stdout, encoding="utf-8")
    (jobs.folder / "errors.txt").write_text(result.stderr, encoding="utf-8")
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


@pytest.mark.parametrize("mode", ["ddp", "fsdp"])
def test_epoch_continued_with_another_batch_uses_every_sample_once(jobs, mode):
    part, other = jobs.outcome(f"{mode}_part"), jobs.outcome(f"{mode}_other")
    assert len(part.samples) == 4 and other.ends == ["done", "done"]
    used = [tuple(row) for step in part.samples + other.samples for row in step]
    state = read_checkpoint(list_checkpoints(jobs.folder / f"{mode}_part.pth.ckpt")[-1])
    assert len(set(used)) == len(used) == state["epoch_size"] == state["progress"]["samples_done"]
    assert f"{mode}_part.pth 里第 3 步的权重重新量过，验证损失 " in (jobs.folder / "errors.txt").read_text("utf-8")


@pytest.mark.parametrize("mode", ["ddp", "fsdp"])
def test_best_weights_are_loaded_back_in_every_process(jobs, mode):
    """报的准确率应是文件里的权重的，与一个进程时相同。"""
    tables = [re.search(r"测试准确率.*\n(.*  .*\n)+", jobs.outcome(f"{who}_best").said[0])[0] for who in (mode, "one")]
    assert tables[0] == tables[1] and re.search(r"第 [123] 步的权重", tables[0])


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
    assert sum(line.startswith("Ep 1 (Step 000000)") for line in lines) == 17  # 训练了几次就有几行
    folder = checkpoint_folder(jobs.folder / "fsdp.pth")
    assert [path.name for path in folder.iterdir()] == [path.name for path in list_checkpoints(folder)]
    assert not list(jobs.folder.rglob("*.tmp"))


def test_four_processes_are_exact_too(jobs):
    modes = ("ddp", "fsdp")
    four = [job(f"four_{mode}", *UNEVEN, "--max_steps", "10", "--parallel", mode) for mode in modes]
    result = jobs.run(4, four)
    assert result.returncode == 0, result.stderr[-3000:]
    one = jobs.outcome("one")
    for mode in modes:
        ours = jobs.outcome(f"four_{mode}")
        assert ours.samples == one.samples[:10] and len(ours.losses) == 10
        assert jobs.log(f"four_{mode}")[0]["validate_loss"] == jobs.log("one")[0]["validate_loss"]


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
