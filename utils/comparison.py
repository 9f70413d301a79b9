"""比较几种配置：每种用同样的预算训练，由 pretrain.py 在自己的进程里进行；算好的记下来，再做时不必重算。"""

import hashlib
import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import BinaryIO

from tqdm import tqdm

from utils.checkpoint_files import checkpoint_folder, list_checkpoints
from utils.errors import RunError, Terminated, UserError
from utils.evaluation_set import EVAL_BATCH
from utils.file_lock import output_lock
from utils.files import write_atomically
from utils.memory import peak_bytes
from utils.run_files import RunFiles
from utils.variations import Variation

PROGRAM = Path(__file__).resolve().parent.parent / "pretrain.py"
EVALUATIONS = 8  # 每次训练途中评估几次，曲线上就有几个点
EVALUATION_SHARE = 0.15  # 评估的计算不超过训练的几成
FORWARD_SHARE = 1 / 3  # 前向占训练一步的几成
STARTUP_SECONDS = 5.0  # 载入、试跑、写样文和画图大约要几秒
ENDLESS = 10**6  # 轮数由预算决定
POLL_SECONDS = 0.1


@dataclass(frozen=True)
class EqualBudget:
    """每次训练可用的：几分钟，或多少次浮点运算。恰有一个不是 None。"""

    minutes: float | None
    flops: float | None

    def __str__(self) -> str:
        return f"{self.minutes:g} 分钟" if self.flops is None else f"{self.flops:.3g} 次浮点运算"


@dataclass(frozen=True)
class Plan:
    """一种配置要怎样训练，以及不训练就知道的几个数。"""

    variation: Variation
    num_parameters: int
    cache_bytes: int  # KV 缓存里一个 token 占的字节
    flops_per_token: int
    seconds_per_step: float  # 试跑量出来的
    max_steps: int | None  # 按浮点运算的预算算出；按时间的为 None
    num_windows: int  # 验证部分有几个窗口
    train_tokens: int  # 一轮有多少个 token
    tokens_per_character: tuple[float, float]  # 训练、验证部分；损失乘上它就从 nat/token 变成 nat/字
    estimated_bytes: int

    def seconds(self, budget: EqualBudget) -> float:
        """估计整个命令要多久。"""
        if budget.minutes:
            return 60 * budget.minutes
        return STARTUP_SECONDS + (1 + EVALUATION_SHARE) * self.max_steps * self.seconds_per_step

    def training(self, budget: EqualBudget, seed: int) -> dict:
        """配置文件的 training 一节：预算、种子，和途中评估的次数（自己写明的除外）。"""
        settings = self.variation.settings
        steps = self.max_steps or max(1, int(60 * budget.minutes / self.seconds_per_step))
        samples = steps * settings.batch_size * settings.accumulation_steps
        windows = EVALUATION_SHARE * samples / FORWARD_SHARE / (2 * EVALUATIONS)  # 训练、验证部分各这么多个
        windows = min(self.num_windows, max(1, windows))
        evaluation = {
            "eval_freq": max(1, math.ceil(steps / EVALUATIONS)),
            "eval_iter": max(1, round(windows / EVAL_BATCH)),
        }
        limits = {"epochs": ENDLESS, "max_steps": self.max_steps, "max_minutes": budget.minutes}
        return {**self.variation.values["training"], **evaluation, **limits, "seed": seed}


def tokens_per_step(variation: Variation) -> int:
    settings = variation.settings
    return settings.batch_size * settings.accumulation_steps * variation.config.model.context_length


def count_steps(variation: Variation, flops_per_token: int, budget: EqualBudget) -> int | None:
    """预算够走几步；一步也不够就抛出 UserError。"""
    if budget.flops is None:
        return None
    flops_per_step = flops_per_token * tokens_per_step(variation)
    if budget.flops < flops_per_step:
        reason = f"{budget.flops:.3g} 不够走一步（{variation.config.path}）"
        raise UserError("--flops", reason, f"至少要 {flops_per_step:.3g}。")
    return round(budget.flops / flops_per_step)


@dataclass(frozen=True)
class Run:
    """用一个种子训练一种配置；文件夹的名字里有全部输入的指纹，同样的训练不会做第二遍。"""

    plan: Plan
    budget: EqualBudget
    seed: int
    data_path: Path
    encoding: str
    data_digest: str

    @property
    def label(self) -> tuple[str, ...]:
        return self.plan.variation.label

    @property
    def values(self) -> dict:
        """这次训练的配置文件。"""
        return {**self.plan.variation.values, "training": self.plan.training(self.budget, self.seed)}

    @property
    def name(self) -> str:
        """评估的次数随试跑的快慢而变，不算在指纹里。"""
        identity = [self.plan.variation.values, asdict(self.budget), self.seed, self.data_digest, self.encoding]
        digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:10]
        readable = re.sub(r"[^\w.=-]+", "_", "_".join(self.label))[:40]
        return f"{readable}_seed{self.seed}_{digest}"


def read_result(folder: Path) -> dict | None:
    """以前算好的结果；没有或坏了就是 None，再算一遍。"""
    with suppress(OSError, ValueError, KeyError, TypeError):
        result = json.loads((folder / "result.json").read_bytes())
        if isinstance(result, dict) and math.isfinite(result["nats_per_char"]):
            return result
    return None


def train(run: Run, folder: Path) -> dict:
    """训练一次，结果写进 folder/result.json 并返回；没有练完就抛出 RunError。上次中断的接着练。"""
    model_path = folder / "model.pth"
    is_resuming = bool(list_checkpoints(checkpoint_folder(model_path)))
    if not is_resuming:  # 中断得太早，没有可以接的
        if folder.exists():
            with output_lock(model_path):  # compare.py 被杀死时，它的训练也许还在继续
                pass
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        text = json.dumps(run.values, ensure_ascii=False, indent=4)
        write_atomically(folder / "config.json", lambda file: file.write(text.encode("utf-8")))
    arguments = [f"--config={folder / 'config.json'}", f"--data_path={run.data_path}", f"--encoding={run.encoding}"]
    command = [sys.executable, str(PROGRAM), *arguments, f"--model_path={model_path}", *["--resume"] * is_resuming]
    # 标准错误另存一份：样文和提示语只到标准输出，冒充不了失败的原因
    with (folder / "train.txt").open("ab") as output, (folder / "errors.txt").open("ab") as errors:
        start = errors.tell()
        with running(command, output, errors) as process:
            peak = watch(process, " ".join(run.label), run.plan.seconds(run.budget))
    if process.returncode:
        text = (folder / "errors.txt").read_bytes()[start:].decode("utf-8", errors="replace")
        advice = f"它说的话都在 {folder} 的 train.txt 和 errors.txt。"
        raise RunError(" ".join(run.label), explain(process.returncode, text), advice)
    result = summarize(run, RunFiles(model_path), peak)
    data = json.dumps(result, ensure_ascii=False).encode("utf-8")
    write_atomically(folder / "result.json", lambda file: file.write(data))
    shutil.rmtree(checkpoint_folder(model_path), ignore_errors=True)  # 练完了，用不着了
    return result


@contextmanager
def running(command: list[str], output: BinaryIO, errors: BinaryIO) -> Iterator[subprocess.Popen]:
    """运行到结束。停下的信号只由我们转告它：终端里按一次 Ctrl-C，它不会收到两次。"""
    is_windows = os.name == "nt"
    separate = {"creationflags": subprocess.CREATE_NEW_PROCESS_GROUP} if is_windows else {"start_new_session": True}
    environment = {**os.environ, "PYTHONIOENCODING": "utf-8"}
    options = {"stdin": subprocess.DEVNULL, "stdout": output, "stderr": errors, "env": environment}
    process = subprocess.Popen(command, **options, **separate)
    try:
        yield process
    except BaseException:
        stop = signal.CTRL_BREAK_EVENT if is_windows else signal.SIGTERM
        while process.poll() is None:
            with suppress(KeyboardInterrupt, Terminated):  # 再按一次就再转告一次，它会立刻离开
                process.send_signal(stop)
                process.wait()
        raise


def watch(process: subprocess.Popen, label: str, expected_seconds: float) -> int:
    """等它结束，返回它占用内存的最高点（字节）；在终端里画一条进度。"""
    form = "{desc} {percentage:3.0f}%|{bar}| 已用 {elapsed}"
    bar = tqdm(
        total=expected_seconds, desc=label, bar_format=form, disable=sys.stderr is None or None, leave=False, delay=1
    )
    peak, started = 0, time.monotonic()
    with bar:
        while process.poll() is None:
            peak = max(peak, peak_bytes(process.pid))
            bar.update(min(expected_seconds, time.monotonic() - started) - bar.n)
            time.sleep(POLL_SECONDS)
    return peak


def explain(code: int, errors: str) -> str:
    """训练为什么没有完成：退出码说明是不是它自己报的错，原因就是标准错误的最后一行，见 utils/errors.py。"""
    if code < 0:
        return f"被信号 {-code} 结束，多半是内存不够"
    lines = errors.strip().splitlines()
    return lines[-1].removeprefix("错误：").rstrip("。") if lines else f"以退出码 {code} 结束"


def summarize(run: Run, files: RunFiles, peak: int) -> dict:
    """由程序写出的结果和日志得出这次训练的各项。"""
    final = json.loads(files.result.read_bytes())
    records = list(map(json.loads, files.log.read_text(encoding="utf-8").splitlines()))
    train, validate = run.plan.tokens_per_character
    last, plan = records[-1], run.plan
    kept = next((record for record in records if record["step"] == final["step"]), last)
    return {
        "nats_per_char": final["nats_per_char"],
        "train_nats_per_char": kept["train_loss"] * train,
        "kept_step": final["step"],
        "steps": last["step"],
        "tokens": last["tokens"],
        "epochs": last["tokens"] / plan.train_tokens,
        "seconds": last["seconds"],
        "flops": last["tokens"] * plan.flops_per_token,
        "peak_bytes": peak,
        "curve": [
            {
                "seconds": record["seconds"],
                "flops": record["tokens"] * plan.flops_per_token,
                "nats_per_char": record["validate_loss"] * validate,
            }
            for record in records
        ],
    }
