"""一次训练写出的权重、适配器、日志、损失曲线、报告和最后的结果。"""

import contextlib
import json
import math
import re
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from utils.adapter import LORA_PREFIX, save_adapter
from utils.console import hint
from utils.distributed import from_main, is_on
from utils.errors import UserError
from utils.evaluation_set import comparable
from utils.files import keep_backup, link_backup, list_backups, remove_leftovers, write_atomically
from utils.model_file import load_weights, read_model_file, save_model
from utils.plotting import plot_losses
from utils.processes import is_main, on_main
from utils.step_history import StepHistory
from utils.train_utils import Evaluation, Trainer, calc_loss_loader


@dataclass(frozen=True)
class Kept:
    """模型文件里是哪一步的权重。"""

    step: int
    validate_loss: float | None  # 中断时保存的没有评估过
    measured_on: str | None = None  # 在哪一组样本上评估的，见 Evaluation


class RunFiles:
    """一次训练写出的文件，名字都由 model_path 而来。"""

    def __init__(self, model_path: Path):
        self.model = model_path
        self.adapter = model_path.with_name(model_path.name + ".lora")  # 只在用 LoRA 时写
        self.log = model_path.with_name(model_path.name + ".log.jsonl")
        self.curve = model_path.with_name(model_path.name + ".loss.png")
        self.report = model_path.with_name(model_path.name + ".report.html")
        self.result = model_path.with_name(model_path.name + ".result.json")  # 练完才写
        self.records: list[Evaluation] = []
        self.kept: Kept | None = None
        self.on_result: Callable[[dict], None] = lambda result: None  # 报告的开头也说最后的结果
        self._is_ahead = False  # 模型文件里的是检查点之后存的，以后未必再走到同样的权重

    @property
    def paths(self) -> tuple[Path, ...]:
        return self.model, self.adapter, self.log, self.curve, self.report, self.result

    @on_main
    def back_up_old_results(self) -> None:
        """从头训练，写第一个文件之前：同名的旧文件各添一个备份的名字，之后写的便可以直接顶替。

        适配器不一定再写，结果练完才写，所以改名，免得旧的留在新的模型旁边。
        """
        for path in self.paths:
            if backup := (keep_backup if path in (self.adapter, self.result) else link_backup)(path):
                hint(f"已有的 {path} 保留为 {backup.name}")

    def continue_run(self, records: list[Evaluation], step: int) -> None:
        """从第 step 步接着写；模型文件里是哪一步的权重，它自己记着。不在了、坏了、或是以前训练的，就当作还没有写过。"""
        self.records = records
        self.kept = from_main(self._read_kept())
        self._is_ahead = self.kept is not None and self.kept.step > step

    def holds(self, trainer: Trainer) -> bool:
        """模型文件里的，是不是 trainer 现在的权重。"""
        return self.kept is not None and self.kept.step == trainer.step and not self._is_ahead

    def measure_again(self, trainer: Trainer) -> str | None:
        """验证的样本换过了：把模型文件里的权重在新的样本上重新量一遍，返回说明；没有换、没有量过则为 None。

        要用 trainer 的模型，所以在装回检查点之前做。
        """
        kept = self.kept
        if kept is None or kept.validate_loss is None or kept.measured_on == trainer.measured_on:
            return None
        self.load_kept(trainer)
        loss = calc_loss_loader(trainer.model, trainer.validate_sample, trainer.precision)
        self.kept = Kept(kept.step, loss if math.isfinite(loss) else None, trainer.measured_on)
        return f"提示：验证的样本换过了；{self.model} 里第 {kept.step} 步的权重重新量过，验证损失 {loss:.3f}"

    @property
    def has_best(self) -> bool:
        """模型文件里的，是不是能比较的各次评估里最好的；模型文件丢过，或改过 --keep，就未必是。"""
        records = [record for record in comparable(self.records) if record.step]
        best = min(records, key=lambda record: record.validate_loss, default=None)
        loss = self.kept.validate_loss
        return best is None or best.step == self.kept.step or loss is not None and loss <= best.validate_loss

    @on_main
    def _read_kept(self) -> Kept | None:
        if not self.model.exists():
            return None
        if any(backup.samefile(self.model) for backup in list_backups(self.model)):
            return None  # 还是从头训练之前的那一个
        with contextlib.suppress(UserError):
            if origin := read_model_file(self.model).origin:
                return Kept(origin["step"], origin["validate_loss"], origin.get("measured_on"))
        return None

    def load_kept(self, trainer: Trainer) -> None:
        """内存里是最后的权重，文件里是最好的；训练之后要说的是文件里的，装进 trainer 的模型。"""
        if self.holds(trainer):
            return
        file = read_model_file(self.model) if is_main() else None
        targets = trainer.model.state_dict()
        adapter = {name: target.zero_() for name, target in targets.items() if LORA_PREFIX in name}  # 文件里已经合并
        if not is_on():
            load_weights(trainer.model, replace(file, weights={**file.weights, **adapter}), self.model)
            return
        from utils.full_state import scatter_full_state  # 只有一个进程时不必载入

        scatter_full_state(trainer.model, file and file.weights)

    def save_model(self, trainer: Trainer, validate_loss: float | None) -> None:
        self.kept = Kept(trainer.step, validate_loss, trainer.measured_on)
        save_model(self.model, trainer.model, origin=asdict(self.kept))
        save_adapter(self.adapter, trainer.model)
        self._is_ahead = False

    def add_record(self, record: Evaluation) -> None:
        """日志每次整个重写，任何时刻文件都完整；几千行也只要几毫秒。"""
        self.records.append(record)
        self._write_log()

    @on_main
    def write_result(self, **values: object) -> None:
        """练完之后，模型文件里的权重最后测得怎样；给程序读的，与屏幕上说的是同样的数。"""
        result = {"step": self.kept.step, **values}
        text = json.dumps(result, ensure_ascii=False, indent=2) + "\n"
        write_atomically(self.result, lambda file: file.write(text.encode("utf-8")))
        self.on_result(result)

    @on_main
    def _write_log(self) -> None:
        self.result.unlink(missing_ok=True)  # 又练了，以前的结果不再是这些权重的
        lines = "".join(json.dumps(asdict(item)) + "\n" for item in self.records)
        write_atomically(self.log, lambda file: file.write(lines.encode("utf-8")))

    @on_main
    def draw_curve(self, steps: StepHistory) -> None:
        plot_losses(self.records, steps, self.curve)

    @on_main
    def remove_leftovers(self) -> None:
        """删去上次被杀死时没来得及删的临时文件。"""
        names = "|".join(re.escape(path.name) for path in self.paths)
        remove_leftovers(self.model.parent, names)
