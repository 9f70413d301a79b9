"""一次训练从头到尾：进度条、日志行、保存最好的权重、损失曲线。所有训练程序共用。"""

import json
import math
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from pathlib import Path

import torch
from torch import nn
from tqdm import tqdm

from utils.checkpoint import save_model
from utils.console import hint, say
from utils.errors import RunError, Terminated
from utils.files import write_atomically
from utils.plotting import plot_losses
from utils.train_utils import Budget, Evaluation, Trainer


def format_log_line(record: Evaluation) -> str:
    """Ep 1 (Step 000000): Train loss 9.375, Validate loss 9.433"""
    return (
        f"Ep {record.epoch} (Step {record.step:06d}): "
        f"Train loss {record.train_loss:.3f}, Validate loss {record.validate_loss:.3f}"
    )


def format_duration(seconds: float) -> str:
    """给人看的时长，如 3 分 20 秒。"""
    minutes, seconds = divmod(round(seconds), 60)
    if minutes == 0:
        return f"{seconds} 秒"
    if minutes < 60:
        return f"{minutes} 分 {seconds} 秒"
    return f"{minutes / 60:.1f} 小时" if minutes < 48 * 60 else f"{minutes / 1440:.1f} 天"


class RunFiles:
    """一次训练写出的三个文件，名字都由 model_path 而来；写之前把同名的旧文件留作备份。"""

    def __init__(self, model_path: Path):
        self.model = model_path
        self.log = model_path.with_name(model_path.name + ".log.jsonl")
        self.curve = model_path.with_name(model_path.name + ".loss.png")
        self.records: list[Evaluation] = []
        self._written: set[Path] = set()

    def save_model(self, trainer: Trainer) -> None:
        self._write(self.model, lambda keep_old: save_model(self.model, trainer.model, keep_old))

    def add_record(self, record: Evaluation) -> None:
        """日志每次整个重写：几百行而已，换来任何时刻文件都完整。"""
        self.records.append(record)
        lines = "".join(json.dumps(asdict(item)) + "\n" for item in self.records)
        self._write(self.log, partial(write_atomically, self.log, lambda file: file.write(lines.encode("utf-8"))))

    def draw_curve(self) -> None:
        self._write(self.curve, partial(plot_losses, self.records, self.curve))

    def _write(self, path: Path, write: Callable[[bool], Path | None]) -> None:
        """这次训练第一次写 path 时，把同名的旧文件留作备份。"""
        if backup := write(path not in self._written):
            hint(f"已有的 {path} 保留为 {backup.name}")
        self._written.add(path)


class ProgressBar:
    """终端里的进度条：进度、损失、每秒 token 数、剩余时间。stderr 不是终端时什么也不画。"""

    def __init__(self, trainer: Trainer, budget: Budget):
        form = "{percentage:3.0f}%|{bar}| {desc} 剩余 {remaining}"
        self._bar = tqdm(total=1.0, bar_format=form, disable=None, leave=False, mininterval=0.5, file=sys.stderr)
        self._trainer, self._budget = trainer, budget
        trainer.on_step = self.update

    def update(self, loss: float, progress: float) -> None:
        if self._bar.disable:
            return
        speed = self._trainer.tokens / max(1e-9, self._budget.seconds)
        text = f"第 {self._trainer.step} 步 损失 {loss:.3f} {speed:,.0f} token/s"
        self._bar.set_description_str(text, refresh=False)
        self._bar.update(min(1.0, progress) - self._bar.n)

    def close(self) -> None:
        self._bar.close()


@contextmanager
def stop_on_signal(trainer: Trainer) -> Iterator[list[int]]:
    """第一个 SIGINT 或 SIGTERM 让训练在这一步之后停下，第二个立刻离开；交出收到的信号。"""
    received: list[int] = []

    def handle(signum: int, frame: object) -> None:
        trainer.stop_requested = True
        received.append(signum)
        if len(received) > 1:
            raise KeyboardInterrupt if signum == signal.SIGINT else Terminated
        if sys.stderr.isatty():
            hint("走完这一步就停；再按一次立刻离开。")

    previous = {signum: signal.signal(signum, handle) for signum in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield received
    finally:
        for signum, handler in previous.items():
            signal.signal(signum, handler)


def run_training(trainer: Trainer, budget: Budget, files: RunFiles) -> Evaluation:
    """训练到底，每次评估打印一行、记一行日志，保存要留的权重；返回所保存的权重的那次评估。

    被信号打断时先保存，再以相应的退出码离开。
    """
    kept = None
    bar = ProgressBar(trainer, budget)
    with stop_on_signal(trainer) as received:
        try:
            for record in trainer.run(budget):
                say(format_log_line(record))
                check_finite(record)
                files.add_record(record)
                if record.step and (kept is None or trainer.settings.keep == "last" or is_better(record, kept)):
                    files.save_model(trainer)
                    kept = record
        finally:
            bar.close()
    if received:
        _leave(trainer, files, kept, received[0])
    files.draw_curve()
    return kept


def check_finite(record: Evaluation) -> None:
    """损失不是有限数的权重不值得保存。"""
    if not math.isfinite(record.train_loss + record.validate_loss):
        reason = f"训练损失为 {record.train_loss}，验证损失为 {record.validate_loss}"
        raise RunError(f"第 {record.step} 步", reason, "这一步没有保存；减小 --learning_rate 再试。")


def is_finite(model: nn.Module) -> bool:
    return all(bool(torch.isfinite(parameter).all()) for parameter in model.parameters())


def is_better(record: Evaluation, kept: Evaluation) -> bool:
    return record.validate_loss < kept.validate_loss


def _leave(trainer: Trainer, files: RunFiles, kept: Evaluation | None, signum: int) -> None:
    if trainer.step and (kept is None or trainer.settings.keep == "last") and is_finite(trainer.model):
        files.save_model(trainer)
        saved_step = trainer.step
    else:
        saved_step = kept.step if kept else None
    if files.records:
        files.draw_curve()
    message = f"，{files.model} 里是第 {saved_step} 步的权重" if saved_step else "，还没有可保存的权重"
    hint(f"已在第 {trainer.step} 步停止{message}。")
    raise KeyboardInterrupt if signum == signal.SIGINT else Terminated
