"""一次训练写出的权重、日志和损失曲线。"""

import contextlib
import json
import re
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

from utils.checkpoint import read_model_file, save_model
from utils.console import hint
from utils.errors import UserError
from utils.files import remove_leftovers, write_atomically
from utils.plotting import plot_losses
from utils.train_utils import Evaluation, Trainer


@dataclass(frozen=True)
class Kept:
    """模型文件里是哪一步的权重。"""

    step: int
    validate_loss: float | None  # 中断时保存的没有评估过


class RunFiles:
    """一次训练写出的三个文件，名字都由 model_path 而来；写之前把同名的旧文件留作备份。"""

    def __init__(self, model_path: Path):
        self.model = model_path
        self.log = model_path.with_name(model_path.name + ".log.jsonl")
        self.curve = model_path.with_name(model_path.name + ".loss.png")
        self.records: list[Evaluation] = []
        self.kept: Kept | None = None
        self._ours: set[Path] = set()  # 这次训练写的，可以直接顶替

    def continue_run(self, records: list[Evaluation], run_name: str) -> None:
        """接着写名为 run_name 的训练的文件；模型文件里是哪一步的权重，它自己记着。"""
        self.records, self._ours = records, {self.log, self.curve}
        with contextlib.suppress(UserError):  # 模型文件不在了或坏了：像第一次那样重新写
            origin = read_model_file(self.model).origin
            if origin and origin["run"] == run_name:
                self._ours.add(self.model)
                self.kept = Kept(origin["step"], origin["validate_loss"])

    def save_model(self, trainer: Trainer, run_name: str, validate_loss: float | None) -> None:
        origin = {"run": run_name, "step": trainer.step, "validate_loss": validate_loss}
        self._write(self.model, lambda keep_old: save_model(self.model, trainer.model, keep_old, origin))
        self.kept = Kept(trainer.step, validate_loss)

    def add_record(self, record: Evaluation) -> None:
        """日志每次整个重写：几百行而已，换来任何时刻文件都完整。"""
        self.records.append(record)
        lines = "".join(json.dumps(asdict(item)) + "\n" for item in self.records)
        self._write(self.log, partial(write_atomically, self.log, lambda file: file.write(lines.encode("utf-8"))))

    def draw_curve(self) -> None:
        self._write(self.curve, partial(plot_losses, self.records, self.curve))

    def remove_leftovers(self) -> None:
        """删去上次被杀死时没来得及删的临时文件。"""
        names = "|".join(re.escape(path.name) for path in (self.model, self.log, self.curve))
        remove_leftovers(self.model.parent, names)

    def _write(self, path: Path, write: Callable[[bool], Path | None]) -> None:
        """不是这次训练写的同名文件，第一次写之前留作备份。"""
        if backup := write(path not in self._ours):
            hint(f"已有的 {path} 保留为 {backup.name}")
        self._ours.add(path)
