"""由 torchrun 启动，依次做几次训练，进程 0 把每一步的损失写成 JSON。一次启动做完几次，省去重复载入 torch。

参数是一个 JSON 文件：[{"program": "pretrain", "arguments": [...], "name": 结果的名字, "stop": [步, 进程]（可省）}]；
float32_muon 为真时正交化改用 float32，末位的差别才不会被 bfloat16 放大。
"""

import importlib
import json
import os
import signal
import sys
from pathlib import Path

import torch

from utils import muon, processes
from utils.errors import Terminated, UserError
from utils.train_utils import Trainer

TRAIN_STEP = Trainer._train_step
ORTHOGONALIZE = muon.orthogonalize


def orthogonalize_in_float32(matrices: torch.Tensor) -> torch.Tensor:
    """与 muon.orthogonalize 相同，但不降精度。"""
    a, b, c = muon.COEFFICIENTS
    x = matrices.mT if matrices.shape[-2] > matrices.shape[-1] else matrices
    x = x / x.norm(dim=(-2, -1), keepdim=True).clamp(min=muon.EPS)
    for _ in range(muon.ITERATIONS):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.mT if matrices.shape[-2] > matrices.shape[-1] else x


def run(job: dict) -> dict:
    """做一次训练；-> 每一步的损失（十六进制）、这个进程用过哪些样本、怎样结束的。"""
    losses, samples = [], []

    def step(trainer: Trainer, batches: list, progress: float) -> float:
        loss = TRAIN_STEP(trainer, batches, progress)
        if progress < 1 or trainer.learning_rate:  # 试跑的学习率为 0，不算
            losses.append(loss.hex())
            samples.append([inputs[:, 0].tolist() for inputs, targets in batches if (targets >= 0).any()])
            if [len(losses), processes.rank()] == job.get("stop"):
                signal.raise_signal(signal.SIGTERM)
        return loss

    Trainer._train_step = step
    muon.orthogonalize = orthogonalize_in_float32 if job.get("float32_muon") else ORTHOGONALIZE
    sys.argv = [f"{job['program']}.py", *job["arguments"]]
    torch.manual_seed(0)
    end = "done"
    try:
        importlib.import_module(job["program"]).main()
    except (Terminated, UserError) as error:
        end = str(error) or type(error).__name__
    return {"losses": losses, "samples": samples, "end": end}


def main() -> None:
    jobs = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    for signum in (signal.SIGTERM,):
        signal.signal(signum, signal.default_int_handler)
    for job in jobs:
        result = run(job)
        path = Path(f"{job['name']}.{processes.rank()}.json")
        path.write_text(json.dumps(result), encoding="utf-8")
    sys.stdout.flush()
    os._exit(0)  # 不等进程组慢慢收拾


if __name__ == "__main__":
    main()
