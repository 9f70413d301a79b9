"""一次训练从头到尾：进度条、日志行、保存权重和检查点、接着训练、损失曲线。所有训练程序共用。"""

import contextlib
import math
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

import torch
from torch import nn
from tqdm import tqdm

from utils import sharded_tensor
from utils.budget import Budget, carry_over
from utils.checkpoint import MAX_FILES
from utils.checkpoint_files import checkpoint_folder, list_checkpoints, size_of
from utils.console import hint, say
from utils.distributed import barrier, max_over, number_from_main
from utils.errors import UserError, leave_by_signal, stop_signals
from utils.evaluation_schedule import continue_evaluations
from utils.files import check_free_space
from utils.loss_spikes import SpikeDetector
from utils.model_file import count_bytes
from utils.parallel_checkpoint import compare_processes
from utils.processes import is_main, on_main, world_size
from utils.run_files import Kept, RunFiles
from utils.run_identity import RunIdentity, compare_runs
from utils.run_report import RunReport, RunStory
from utils.settings import TrainingSettings
from utils.strategies import build_checkpoints
from utils.train_utils import Evaluation, Interrupted, NotFiniteError, Trainer

SAVE_SECONDS = 300.0  # 没有指定 --save_minutes 时，检查点的间隔
SAVE_FRACTION = 1 / 50  # 并且保存不占去训练时间的更大部分
ECHO_SECONDS = 5.0  # Slurm 和 torchrun 会把同一个信号各发一次给每个进程，这么久之内的不算第二个
LIMITS = ("epochs", "max_steps", "max_minutes")  # 训练到哪里为止


def format_log_line(record: Evaluation) -> str:
    """Ep 1 (Step 000000): Train loss 9.375, Validate loss 9.433；有准确率的接着写。"""
    text = (
        f"Ep {record.epoch} (Step {record.step:06d}): "
        f"Train loss {record.train_loss:.3f}, Validate loss {record.validate_loss:.3f}"
    )
    if record.validate_accuracy is None:
        return text
    return f"{text}, Train accuracy {record.train_accuracy:.1%}, Validate accuracy {record.validate_accuracy:.1%}"


def format_duration(seconds: float) -> str:
    """给人看的时长，如 3 分 20 秒。"""
    minutes, seconds = divmod(round(seconds), 60)
    if minutes == 0:
        return f"{seconds} 秒" if seconds else "不到 1 秒"
    if minutes < 60:
        return f"{minutes} 分 {seconds} 秒"
    return f"{minutes / 60:.1f} 小时" if minutes < 48 * 60 else f"{minutes / 1440:.1f} 天"


class ProgressBar:
    """终端里的进度条：进度、损失、每秒 token 数、剩余时间。stderr 不是终端时什么也不画。"""

    def __init__(self, trainer: Trainer, budget: Budget):
        form = "{percentage:3.0f}%|{bar}| {desc} 剩余 {remaining}"
        begun = min(1.0, budget.progress(trainer)) if trainer.step else 0.0
        self._bar = tqdm(
            total=1.0,
            initial=begun,
            bar_format=form,
            disable=sys.stderr is None or not is_main() or None,
            leave=False,
            mininterval=0.5,
            file=sys.stderr,
        )
        self._trainer, self._budget, self._tokens_before = trainer, budget, trainer.tokens
        self._seconds_before = budget.seconds

    def update(self, loss: float, progress: float) -> None:
        if self._bar.disable:
            return
        seconds = self._budget.seconds - self._seconds_before
        speed = (self._trainer.tokens - self._tokens_before) / max(1e-9, seconds)
        text = f"第 {self._trainer.step} 步 损失 {loss:.3f} {speed:,.0f} token/s"
        with contextlib.suppress(OSError):  # 终端关了也要训练下去
            self._bar.set_description_str(text, refresh=False)
            self._bar.update(min(1.0, progress) - self._bar.n)

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._bar.close()


@contextmanager
def stop_on_signal(trainer: Trainer) -> Iterator[list[int]]:
    """第一个停止的信号让训练在这一批之后停下，第二个立刻离开；交出收到的信号。"""
    received: list[int] = []
    first_at = 0.0

    def handle(signum: int, frame: object) -> None:
        nonlocal first_at
        now = time.monotonic()
        if received and world_size() > 1 and now - first_at < ECHO_SECONDS:
            return
        first_at = now
        trainer.stop_requested = True
        received.append(signum)
        if len(received) > 1:
            leave_by_signal(signum)
        if sys.stderr and sys.stderr.isatty():
            hint("算完这一批就停；再按一次立刻离开。")

    previous = {signum: signal.signal(signum, handle) for signum in stop_signals()}
    try:
        yield received
    finally:
        for signum, handler in previous.items():
            signal.signal(signum, handler)


class TrainingRun:
    """训练到底：每次评估打印一行、记一行日志，保存要留的权重，按时存检查点；被打断也不丢算好的东西。"""

    def __init__(
        self,
        trainer: Trainer,
        budget: Budget,
        model_path: Path,
        identity: RunIdentity,
        story: RunStory | None = None,
    ):
        self.trainer, self.budget, self.identity = trainer, budget, identity
        self.files = RunFiles(model_path)
        self.checkpoints = build_checkpoints(trainer.parallel.mode, checkpoint_folder(model_path))
        self.report = RunReport(self.files.report, trainer, budget, identity, story or RunStory())
        self._is_resumed = False
        self._saved: tuple | None = None  # 上一个检查点的 _position()
        self._is_saving_checkpoint = False
        self._started = self._saved_at = time.monotonic()
        self._saving_seconds = self._last_save_seconds = 0.0  # 写模型和检查点一共用了多久；上一个检查点用了多久

    def prepare(
        self, is_resuming: bool = False, allow_data_change: bool = False, allow_process_change: bool = False
    ) -> None:
        """开始之前：清理上次的残留，看磁盘放不放得下，接上次的检查点（或提醒有可以接的）。"""
        self.files.remove_leftovers()
        self.checkpoints.remove_leftovers()
        self.checkpoints.check_folder()
        existing = list_checkpoints(self.checkpoints.folder)
        self._check_free_space(existing if is_resuming else [])
        if is_resuming:
            self._resume(allow_data_change, allow_process_change)
        elif existing:
            hint(f"提示：从头训练；要接着 {existing[-1]} 训练，请加 --resume")

    @on_main
    def _check_free_space(self, reused: list[Path]) -> None:
        """磁盘放不下将要写的就抛出 RunError；reused 的检查点会被顶替。"""
        weights = count_bytes(self.trainer.model.state_dict())
        # 模型文件和正在写的新的；检查点再加优化器至多两份动量
        needed = 2 * weights + MAX_FILES * 3 * weights
        check_free_space(self.files.model, needed - sum(map(size_of, reused)))

    def _resume(self, allow_data_change: bool, allow_process_change: bool) -> None:
        """装回最新的完好的检查点；与现在的命令对不上就抛出 UserError，不改动任何文件。"""
        path, state = self.checkpoints.load_newest()
        notes = compare_runs(path, state["run"], self.identity, allow_data_change)
        notes += compare_processes(path, state, self.trainer.parallel, allow_process_change)
        continue_evaluations(self.trainer, state.get("eval_samples"))
        self.budget.continue_after(state["seconds"])
        self.files.continue_run([Evaluation(**record) for record in state["records"]], state["progress"]["step"])
        if self.trainer.settings.keep == "best":
            notes += filter(None, [self.files.measure_again(self.trainer)])
        self.checkpoints.load_into(self.trainer, path, state)
        self._adjust_progress(state)
        self.report.continue_run(state["history"])
        self._is_resumed, self._saved = True, self._position(state["is_finished"])
        for note in notes:
            hint(note)
        say(f"从第 {self.trainer.step} 步继续：{path}")

    def _adjust_progress(self, state: dict) -> None:
        """装回的进度是照上次的数据和限额记的，换成照现在的。"""
        trainer, epoch_size = self.trainer, len(self.trainer.train_loader.sampler)
        trainer.samples_done = carry_over(trainer.samples_done, state.get("epoch_size") or epoch_size, epoch_size)
        if self.files.records[-1].measured_on != trainer.measured_on:
            trainer.evaluated_step = None  # 在现在的样本上还没有评估过
        limits = [{name: run["settings"].get(name) for name in LIMITS} for run in (state["run"], asdict(self.identity))]
        if state["is_finished"] and limits[0] == limits[1]:
            self.budget.finish(trainer)  # 已经做完，没有要加练的

    def run(self) -> Kept:
        """-> 模型文件里是哪一步的权重。被信号打断时先保存，再以相应的退出码离开。"""
        bar = ProgressBar(self.trainer, self.budget)
        spikes = SpikeDetector()

        def on_step(loss: float, progress: float) -> None:
            bar.update(loss, progress)
            self.report.observe_step(loss)
            if text := spikes.describe_spike(self.trainer.step, loss):
                hint(text)

        self.trainer.on_step, self.trainer.between_steps = on_step, self._save_when_due
        with stop_on_signal(self.trainer) as received:
            try:
                self._consume_evaluations()
                self._save_checkpoint(is_finished=True)
                self.trainer.check_stop()
            except Interrupted:
                self._leave(max_over([max(received, default=0)])[0])
            except NotFiniteError as error:
                self._finish_report(f"停下了：第 {error.step} 步{error.reason}")
                raise NotFiniteError(error.step, error.reason, self._advise_lower_learning_rate()) from None
            except Exception:
                self._save_before_failing()
                raise
            finally:
                bar.close()
        self.report.add_last_samples()
        self.report.finish(self.files.records, "训练完成")
        self.files.on_result = lambda result: self.report.finish(self.files.records, "训练完成", result)
        self.files.draw_curve(self.report.history.steps)
        return self.files.kept

    def _consume_evaluations(self) -> None:
        for record in self.trainer.run(self.budget):
            say(format_log_line(record))
            check_finite(record)
            if not self._is_resumed and not self.files.records:
                self.files.back_up_old_results()
                self.checkpoints.set_aside()
            self.files.add_record(record)
            self.report.observe(self.files.records)
            if record.step and self._is_worth_keeping(record):
                self._save_model(record.validate_loss)
        # 接着一次已经做完的训练，模型文件却不在了，或要的不是原来那一份
        if self.files.kept is None or self.trainer.settings.keep == "last" and not self.files.holds(self.trainer):
            self._save_model(self.files.records[-1].validate_loss)

    def _is_worth_keeping(self, record: Evaluation) -> bool:
        kept = self.files.kept
        if kept is None or kept.validate_loss is None or self.trainer.settings.keep == "last":
            return True
        return record.validate_loss < kept.validate_loss

    def _position(self, is_finished: bool = False) -> tuple:
        """两个检查点的位置相同，内容就相同，不必再存。"""
        return self.trainer.step, self.trainer.evaluated_step, is_finished

    def _save_when_due(self) -> None:
        """两步之间：到了时间、步数，或一轮刚结束，就存一个检查点；之后看看要不要停。"""
        trainer, settings = self.trainer, self.trainer.settings
        elapsed = time.monotonic() - self._saved_at
        is_time = elapsed >= (60 * settings.save_minutes if settings.save_minutes else SAVE_SECONDS)
        is_epoch_end = trainer.samples_done == len(trainer.train_loader.sampler)
        is_counted = settings.save_every and trainer.step % settings.save_every == 0
        is_due = is_counted or is_time and settings.save_minutes or (is_time or is_epoch_end) and self._is_cheap()
        is_ending = self.budget.progress(trainer) >= 1  # 马上要存最后一个
        if number_from_main(bool(trainer.step and is_due and not is_ending)):
            self._save_checkpoint()
        trainer.check_stop()

    def _is_cheap(self) -> bool:
        """再存一个检查点，保存也不会超过训练时间的 SAVE_FRACTION。"""
        limit = (time.monotonic() - self._started) * SAVE_FRACTION
        return self._saving_seconds + self._last_save_seconds <= limit

    def _save_checkpoint(self, is_finished: bool = False) -> None:
        """这一步还没有存过，权重也都是有限数，就存一个检查点。"""
        is_saved = self._saved in (self._position(is_finished), self._position(is_finished=True))
        if is_saved or not is_finite(self.trainer.model):
            return
        state = {
            **self.trainer.state(),
            "run": asdict(self.identity),
            "is_finished": is_finished,
            "seconds": self.budget.seconds,
            "epoch_size": len(self.trainer.train_loader.sampler),
            "records": [asdict(record) for record in self.files.records],
            "eval_samples": len(self.trainer.validate_sample.dataset),
            "history": self.report.state(),
        }
        self._is_saving_checkpoint = True
        self._last_save_seconds = self._timed(lambda: self.checkpoints.save(state))
        self._is_saving_checkpoint = False
        self._saved, self._saved_at = self._position(is_finished), time.monotonic()

    def _save_model(self, validate_loss: float | None) -> None:
        self._timed(lambda: self.files.save_model(self.trainer, validate_loss))

    def _timed(self, save: Callable[[], object]) -> float:
        """做一次保存，返回用了几秒。"""
        begin = time.monotonic()
        save()
        seconds = time.monotonic() - begin
        self._saving_seconds += seconds
        return seconds

    def _save_before_failing(self) -> None:
        """出错离开之前，状态完好就存一个检查点；存不成只说一声，要紧的是原来的错误。

        几个进程一起训练时不存：出错的往往只是其中一个，别的没有停在这里。
        """
        is_sound = self.trainer.is_consistent and not self._is_saving_checkpoint
        if is_sound and self.files.records and world_size() == 1:
            try:
                self._save_checkpoint()
            except (UserError, RuntimeError, MemoryError) as error:
                hint(f"提示：离开之前没能存下检查点（{error}）")

    def _finish_report(self, status: str) -> None:
        """出错离开之前在报告里说明；写不成也不要紧，要紧的是原来的错误。"""
        if self.files.records:
            with contextlib.suppress(UserError):
                self.report.finish(self.files.records, status)

    def _advise_lower_learning_rate(self) -> str:
        """小到三分之一，并且不超过默认值：学习率是 100 时，33 照样不行。"""
        settings, usual = self.trainer.settings, TrainingSettings()
        names = ["learning_rate"] + ["muon_learning_rate"] * (settings.optimizer == "muon")
        rates = " ".join(f"--{name} {min(getattr(settings, name) / 3, getattr(usual, name)):.2g}" for name in names)
        if self._saved is None:
            return f"这一步没有保存；减小学习率再试，如 {rates}。"
        return f"这一步没有保存；从第 {self._saved[0]} 步的检查点继续，学习率小一些：--resume {rates}。"

    def _leave(self, signum: int) -> None:
        """存下现在的状态，再以信号约定的退出码离开。"""
        trainer, files = self.trainer, self.files
        is_sound = trainer.step > 0 and is_finite(trainer.model)
        if is_sound:
            if files.kept is None or trainer.settings.keep == "last" and not files.holds(trainer):
                self._save_model(None)
            self._save_checkpoint()
        if files.records:
            files.draw_curve(self.report.history.steps)
            self.report.finish(files.records, f"在第 {trainer.step:,} 步中断")
        barrier()  # 先离开的会让 torchrun 去停掉还在写文件的
        where = f"{files.model} 里是第 {files.kept.step} 步的权重" if files.kept else "还没有可保存的权重"
        action = "保存，用 --resume 继续" if is_sound else "停止"
        hint(f"已在第 {trainer.step} 步{action}；{where}。")
        leave_by_signal(signum)


def check_finite(record: Evaluation) -> None:
    """损失不是有限数的权重不值得保存。"""
    if not math.isfinite(record.train_loss + record.validate_loss):
        raise NotFiniteError(record.step, f"训练损失为 {record.train_loss}，验证损失为 {record.validate_loss}")


def is_finite(model: nn.Module) -> bool:
    """权重都是有限数，在每个进程上。"""
    is_here = all(bool(torch.isfinite(sharded_tensor.local(parameter)).all()) for parameter in model.parameters())
    return not any(max_over([not is_here]))
