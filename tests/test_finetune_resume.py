"""两个微调程序被打断再接着训练，与不中断的逐位相同。"""

import json
import re
import signal

import pytest
from builders import make_records, make_texts

from conftest import run, timeless_report, write_config
from utils.checkpoint import read_checkpoint
from utils.checkpoint_files import list_checkpoints

soak_process = pytest.importorskip("soak_process", reason="只用于 POSIX：要用 fork")
at_step, run_forked, signal_self = soak_process.at_step, soak_process.run_forked, soak_process.signal_self

COMMON = ("--output_path", "out.pth", "--epochs", 2, "--eval_freq", 4, "--batch_size", 16, "--accumulation_steps", 2)
PROGRAMS = {
    "finetune_classifier.py": ("--data_path", "spam.csv", "--balance"),
    "finetune_instruction.py": ("--data_path", "data.json", "--keep", "best"),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory, corpus_text):
    folder = tmp_path_factory.mktemp("resume")
    (folder / "corpus.txt").write_text(corpus_text, encoding="utf-8")
    config = write_config(folder, context_length=64)
    assert run("pretrain.py", "--config", config, "--data_path", "corpus.txt", cwd=folder).code == 0
    lines = [f"{label},{text.replace('，', ' ')}" for label, text in make_texts(120)]
    (folder / "spam.csv").write_text("label,text\n" + "\n".join(lines), encoding="utf-8")
    (folder / "data.json").write_text(json.dumps(make_records(), ensure_ascii=False), encoding="utf-8")
    return folder


def outcome(folder) -> tuple:
    """(模型文件, 曲线, 除去用时的日志和报告)"""
    lines = (folder / "out.pth.log.jsonl").read_text(encoding="utf-8").splitlines()
    log = [{name: value for name, value in json.loads(line).items() if name != "seconds"} for line in lines]
    curve = (folder / "out.pth.loss.png").read_bytes()
    return (folder / "out.pth").read_bytes(), curve, log, timeless_report(folder / "out.pth")


@pytest.mark.parametrize("trainable", ["all", "lora"])
@pytest.mark.parametrize("program", PROGRAMS)
def test_interrupted_run_is_bit_for_bit_the_uninterrupted_one(folder, tmp_path, program, trainable):
    for name in ("model.pth", "spam.csv", "data.json"):
        (tmp_path / name).symlink_to(folder / name)
    flags = (*COMMON, *PROGRAMS[program], "--trainable", trainable)
    assert run_forked(program, *flags, cwd=tmp_path).code == 0
    whole = outcome(tmp_path)
    # 一步两批：试跑四步数去八批，第九加四批是第三步的前一半，停在两批之间
    stopped = run_forked(program, *flags, cwd=tmp_path, in_child=at_step(9, signal_self(signal.SIGTERM)))
    assert stopped.code == 128 + signal.SIGTERM and "用 --resume 继续" in stopped.stderr, stopped.stderr
    assert run_forked(program, *flags, "--resume", cwd=tmp_path).code == 0
    assert outcome(tmp_path) == whole


def test_smaller_batch_still_ends_with_the_epochs_asked_for(folder, tmp_path):
    for name in ("model.pth", "spam.csv"):
        (tmp_path / name).symlink_to(folder / name)
    flags = ("--data_path", "spam.csv", "--output_path", "out.pth", "--epochs", 3, "--eval_freq", 1000)
    whole = run_forked("finetune_classifier.py", *flags, "--batch_size", 8, cwd=tmp_path)
    total = int(re.search(r"共 (\d+) 步", whole.stdout)[1])
    stop = at_step(total // 2, signal_self(signal.SIGTERM))
    stopped = run_forked("finetune_classifier.py", *flags, "--batch_size", 8, cwd=tmp_path, in_child=stop)
    assert stopped.code == 128 + signal.SIGTERM, stopped.stderr
    resumed = run_forked("finetune_classifier.py", *flags, "--batch_size", 4, "--resume", cwd=tmp_path)
    assert resumed.code == 0 and "提示：batch_size 由 8 改为 4" in resumed.stderr
    state = read_checkpoint(list_checkpoints(tmp_path / "out.pth.ckpt")[-1])
    place = state["progress"]
    assert (place["epoch"], place["samples_done"]) == (3, state["epoch_size"])
    assert f"共 {place['step']} 步" in resumed.stdout and place["step"] > total
