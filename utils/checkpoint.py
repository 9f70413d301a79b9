"""续练用的检查点：<model_path>.ckpt/step-00000123.ckpt，留最近两个和验证损失最低的一个。道理见 docs/可靠性.md。"""

import contextlib
import json
import math
import re
import shutil
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path

import torch

from utils.archive import RESTORE, check_archive
from utils.checkpoint_files import FROM_SCRATCH, NAME, list_checkpoints, remove_checkpoint, size_of, step_of
from utils.console import hint
from utils.errors import RunError, UserError, describe_os_error
from utils.evaluation_set import comparable
from utils.files import TEMPORARY_SUFFIX, keep_backup, megabytes, remove_leftovers, sync_folder
from utils.model_file import check_tensors, load_state, load_weights, model_file_of, save_state, tokenizer_of
from utils.parallel import MODES
from utils.processes import on_main
from utils.run_history import RunHistory
from utils.run_identity import RunIdentity
from utils.train_utils import PROGRESS, Evaluation, Trainer

FORMAT = 1  # 检查点里的东西变了就加一
MEASURED_ON = "measured_on"  # Evaluation 里唯一不是数的一项
NUM_NEWEST = 2
MAX_FILES = NUM_NEWEST + 2  # 最近的、最好的，和正在写的
TEMPORARY_FOLDER = re.compile(rf"\.(?:{NAME.pattern})\.[a-z0-9_]{{8}}{re.escape(TEMPORARY_SUFFIX)}")


class Checkpoints:
    """一次训练的检查点文件夹。"""

    def __init__(self, folder: Path):
        self.folder = folder
        self._damaged: set[Path] = set()

    @on_main
    def set_aside(self) -> None:
        """从头训练，写第一个文件之前：以前的检查点连文件夹改名保留。"""
        if self.folder.exists():
            size = size_of(self.folder)
            backup = keep_backup(self.folder)
            hint(f"已有的 {self.folder} 保留为 {backup.name}（{megabytes(size)}，用不着就可以删掉）")

    @on_main
    def remove_leftovers(self) -> None:
        """删去上次被杀死时没来得及删的临时文件和文件夹。"""
        remove_leftovers(self.folder, NAME.pattern)
        for path in self.folder.glob(f".*{TEMPORARY_SUFFIX}"):
            if path.is_dir() and not path.is_symlink() and TEMPORARY_FOLDER.fullmatch(path.name):
                shutil.rmtree(path, ignore_errors=True)

    def save(self, state: dict) -> Path:
        """写出一个检查点，再删去用不着的旧的。state 见 training_run.py。"""
        self._create_folder()
        path = self.folder / f"step-{state['progress']['step']:08d}.ckpt"
        self._write(path, {"format": FORMAT, **state}, keep_old=path in self._damaged)
        self._prune(state["records"])
        return path

    @on_main
    def _create_folder(self) -> None:
        try:
            self.folder.mkdir(exist_ok=True)
        except OSError as error:
            raise RunError(self.folder, f"建不了文件夹（{describe_os_error(error)}）", "检查磁盘和权限。") from None
        sync_folder(self.folder.parent)

    def check_folder(self) -> None:
        """训练之前看这个文件夹合不合用；进程 0 能写已经由 training_output.py 看过。"""

    def _write(self, path: Path, state: dict, keep_old: bool) -> None:
        if path.is_dir():  # 同一步，FSDP 存过；文件不能直接顶替文件夹
            if keep_old:
                keep_backup(path)
            else:
                remove_checkpoint(path)
            keep_old = False
        save_state(path, state, keep_old)

    @on_main
    def _prune(self, records: list[dict]) -> None:
        """只留最近的 NUM_NEWEST 个和验证损失最低的一个；坏了的不动。"""
        paths = [path for path in list_checkpoints(self.folder) if path not in self._damaged]

        measured = comparable([Evaluation(**record) for record in records])

        def loss(path: Path) -> float:
            """不晚于它的最后一次评估；在现在的样本上没有量过的算最差。"""
            return [math.inf, *(record.validate_loss for record in measured if record.step <= step_of(path))][-1]

        for path in set(paths) - set(paths[-NUM_NEWEST:]) - {min(paths, key=loss)}:
            with contextlib.suppress(OSError):  # 删不掉的旧检查点留着也无害
                remove_checkpoint(path)

    def load_newest(self) -> tuple[Path, dict]:
        """最新的完好的检查点和它的内容；坏了的说一声，留在原处。"""
        problems = {}
        for path in reversed(list_checkpoints(self.folder)):
            try:
                state = self._read(path)
            except DamagedError as error:
                problems[path] = error.reason
                continue
            for damaged, reason in problems.items():
                hint(f"警告：{damaged} 不能用（{reason}），改用 {path.name}")
            self._damaged = set(problems)
            return path, state
        reasons = "；".join(f"{path.name} {reason}" for path, reason in problems.items())
        raise UserError(self.folder, f"没有完好的检查点（{reasons}）", FROM_SCRATCH)

    def _read(self, path: Path) -> dict:
        return read_checkpoint(path)

    def load_into(self, trainer: Trainer, path: Path, state: dict) -> None:
        """把 load_newest 读出的权重和训练状态装进 trainer；形状不符就抛出 UserError。"""
        load_weights(trainer.model, state["model"], "现在的配置")
        load_progress(trainer, path, state)


def load_progress(trainer: Trainer, path: Path, state: dict) -> None:
    """装进权重以外的部分。"""
    try:
        trainer.load_progress(state)
    except (ValueError, KeyError, IndexError, TypeError, AttributeError, RuntimeError):
        raise UserError(path, "里面的训练状态与现在的模型不符", FROM_SCRATCH) from None


def recorded_tokenizer(folder: Path) -> dict:
    """检查点里的分词器；数据改过之后还要用原来的词表。"""
    return tokenizer_of(Checkpoints(folder).load_newest()[1]["model"], None).state()


class DamagedError(UserError):
    """检查点坏了，可以试试更早的。"""


def read_checkpoint(path: Path) -> dict:
    """读出并检查一个检查点：坏了抛出 DamagedError，新版本写的抛出 UserError。

    张量在内存里，不映射文件：训练会改写它们。
    """
    return check_state(path, lambda: _load(path), _check_tensors)


def _load(path: Path) -> dict:
    if path.is_dir():  # FSDP 存的
        from utils.sharded_checkpoint import read_whole

        return read_whole(path)
    check_archive(path, "检查点")
    return load_state(path, mmap=False)


def check_state(path: Path, load: Callable[[], dict], check_tensors: Callable[[Path, dict], None]) -> dict:
    """load() 读出的检查点，内容都检查过；张量由 check_tensors 检查。"""
    try:
        state = load()
    except UserError as error:
        raise DamagedError(path, error.reason, RESTORE) from None
    version = state.get("format")
    if isinstance(version, int) and version > FORMAT:
        raise UserError(path, f"由更新的版本写出（格式 {version}，这里认识 {FORMAT}）", "更新 PocketLLM 再继续。")
    try:
        _check_structure(state)
        check_tensors(path, state)
    except (UserError, LookupError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        raise DamagedError(path, getattr(error, "reason", "内容不完整"), RESTORE) from None
    return state


def _check_structure(state: dict) -> None:
    """张量以外的各项都在，类型和范围都对；不对就抛出任何一种错误。"""
    progress, run = state["progress"], state["run"]
    counts = [value for name, value in progress.items() if name != "learning_rate" and value is not None]
    is_right = (
        state["format"] == FORMAT
        and progress.keys() == set(PROGRESS)
        and all(type(value) is int and value >= 0 for value in counts)
        and (None not in progress.values() or progress["evaluated_step"] is None)
        and _is_number(progress["learning_rate"])
        and _is_number(state["seconds"])
        and isinstance(state["is_finished"], bool)
        and run.keys() == {item.name for item in fields(RunIdentity)}
        and all(isinstance(run[name], dict) for name in ("config", "settings", "environment"))
        and all(isinstance(run[name], str) for name in ("data", "tokenizer"))
        and _are_random_states(state["random"])
        and (state.get("epoch_size") is None or type(state["epoch_size"]) is int and state["epoch_size"] > 0)
        and (state.get("processes") is None or _are_processes(**state["processes"]))
        and len(state["records"]) > 0
        and type(state.get("eval_samples", 1)) is int  # 早期的检查点没有
        and all(map(_is_record, state["records"]))
    )
    if not is_right:
        raise ValueError
    state["history"] = RunHistory.from_state(state.get("history") or RunHistory().state())  # 早期的检查点没有
    json.dumps(run)  # 里面只有基本类型，才能与现在的比较


def _check_tensors(path: Path, state: dict) -> None:
    """权重和动量都是有限数。"""
    for index, optimizer in enumerate(state["optimizers"]):
        for number, values in optimizer.items():
            check_tensors(path, {f"optimizers.{index}.{number}.{name}": value for name, value in values.items()})
    state["model"] = model_file_of(path, state["model"])


def _are_random_states(*states: dict) -> bool:
    return all(value.dtype == torch.uint8 for state in states for value in (state["cpu"], *state.values()))


def _are_processes(mode: str, random: list[dict]) -> bool:
    """几个进程一起训练时记下的：并行方式，各个进程的随机状态。"""
    return mode in MODES and len(random) > 1 and _are_random_states(*random)


def _is_number(value: object) -> bool:
    return type(value) in (int, float) and math.isfinite(value)


def _is_record(record: dict) -> bool:
    """是不是一次评估；分类以外的准确率是 None，早期的检查点没有记下是在哪一组样本上量的。"""
    numbers = [value for name, value in record.items() if value is not None and name != MEASURED_ON]
    has_all = record.keys() | {MEASURED_ON} == {item.name for item in fields(Evaluation)}
    return has_all and isinstance(record.get(MEASURED_ON, ""), str) and all(map(_is_number, numbers))
