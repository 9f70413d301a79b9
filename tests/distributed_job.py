"""由 torchrun（或直接由 python）启动，依次做几次训练；每个进程把自己看到的写成 JSON。只给测试用。

参数是一个 JSON 文件，里面是一串任务。一次启动做完几次，省去重复载入 torch。
"""

import contextlib
import errno
import importlib
import io
import json
import os
import signal
import sys
import time
from pathlib import Path

import torch

import pretrain
from utils import muon, processes
from utils.checkpoint_files import checkpoint_folder, list_checkpoints
from utils.errors import Terminated, UserError, run_program
from utils.run_files import RunFiles
from utils.train_utils import Trainer

TRAIN_STEP = Trainer._train_step
OPEN_SOURCE = pretrain.open_source
ORTHOGONALIZE = muon.orthogonalize


def orthogonalize_in_float32(matrices: torch.Tensor) -> torch.Tensor:
    """与 muon.orthogonalize 相同，但不降到 bfloat16：输入末位的差别便不会放大几万倍。"""
    a, b, c = muon.COEFFICIENTS
    is_tall = matrices.shape[-2] > matrices.shape[-1]
    x = matrices.mT if is_tall else matrices
    x = x / x.norm(dim=(-2, -1), keepdim=True).clamp(min=muon.EPS)
    for _ in range(muon.ITERATIONS):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.mT if is_tall else x


def hang() -> None:
    """活着，却不往前走。"""
    while True:
        time.sleep(0.05)


def spoil() -> None:
    """改坏最新的检查点里一份的一位，再被杀。"""
    newest = list_checkpoints(checkpoint_folder(Path("spoiled.pth")))[-1]
    part = max(newest.glob("*.distcp"), key=lambda path: path.stat().st_size)
    data = bytearray(part.read_bytes())
    data[len(data) // 2] ^= 1
    part.write_bytes(data)
    os.kill(os.getpid(), signal.SIGKILL)


def fill_disk() -> None:
    """从此什么也写不进去。"""

    def refuse(*args: object, **kwargs: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    os.fsync = refuse


def fail() -> None:
    raise ValueError("没有想到的错误")


FAULTS = {
    "stop_torchrun": lambda: os.kill(os.getppid(), signal.SIGTERM),
    "fail": fail,
    "fill": fill_disk,
    "spoil": spoil,
    "stop": lambda: signal.raise_signal(signal.SIGTERM),
    "kill": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "hang": hang,
}


class Recorder:
    """代替 Trainer._train_step：记下每步的损失和样本，到了指定的步就出事。"""

    def __init__(self, job: dict):
        self.losses, self.samples, self.scans = [], [], 0
        self._fault = job.get("fault")  # [什么事, 第几步之后, 哪个进程]，只出一次
        self._done = Path(f"{job['name']}.fault")

    def install(self) -> None:
        recorder = self

        def step(trainer: Trainer, batches: list, progress: float) -> float:
            loss = TRAIN_STEP(trainer, batches, progress)
            if trainer.learning_rate:  # 试跑的学习率为 0，不算
                recorder.losses.append(loss.hex())
                recorder.samples.append([row for x, y in batches if (y >= 0).any() for row in x.tolist()])
                place = [trainer.step, processes.rank()]
                if recorder._fault and recorder._fault[1:] == place and not recorder._done.exists():
                    recorder._done.touch()
                    FAULTS[recorder._fault[0]]()
            return loss

        def scan(*args: object) -> object:
            recorder.scans += 1
            return OPEN_SOURCE(*args)

        Trainer._train_step, pretrain.open_source = step, scan


def train(job: dict) -> dict:
    """做一次训练；-> 这个进程每一步的损失（十六进制）、算过的样本、读过几遍语料，怎样结束的，打印了什么。"""
    recorder = Recorder(job)
    recorder.install()
    muon.orthogonalize = orthogonalize_in_float32 if job.get("float32_muon") else ORTHOGONALIZE
    arguments = job["own"].get(str(processes.rank()), job["arguments"])
    sys.argv = [f"{job['program']}.py", *arguments]
    main, end = importlib.import_module(job["program"]).main, "done"
    if job.get("as_program"):
        run_program(main)
    with contextlib.redirect_stdout(io.StringIO()) as said:
        try:
            main()
        except (Terminated, UserError) as error:
            end = str(error)
    print(said.getvalue(), end="")
    seen = {"losses": recorder.losses, "samples": recorder.samples, "scans": recorder.scans}
    return {**seen, "end": end, "said": said.getvalue()}


def main() -> None:
    RunFiles.draw_curve = lambda self, steps: None  # 画图占去大半时间，这里用不着
    for job in json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")):
        result = train(job)
        Path(f"{job['name']}.{processes.rank()}.json").write_text(json.dumps(result), encoding="utf-8")
    sys.stdout.flush()
    os._exit(0)  # 连接不必一条条地关


if __name__ == "__main__":
    main()
