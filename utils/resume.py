"""续练用的检查点：<model_path>.ckpt/step-00000123.ckpt，留最近两个和验证损失最低的一个。道理见 docs/可靠性.md。"""

import contextlib
from dataclasses import fields
from pathlib import Path

import torch

from utils.archive import NOT_A_MODEL, check_archive
from utils.checkpoint import check_tensors, load_state, model_file_of, save_state, tokenizer_of
from utils.checkpoint_files import FROM_SCRATCH, NAME, list_checkpoints, step_of
from utils.console import hint
from utils.errors import UserError
from utils.files import keep_backup, remove_leftovers, sync_folder
from utils.run_identity import RunIdentity
from utils.train_utils import PROGRESS, Evaluation

FORMAT = 1  # 检查点里的东西变了就加一
NUM_NEWEST = 2
MAX_FILES = NUM_NEWEST + 2  # 最近的、最好的，和正在写的


class Checkpoints:
    """一次训练的检查点文件夹。"""

    def __init__(self, folder: Path):
        self.folder = folder
        self._is_ours = False  # 里面是不是这次训练的；别的训练留下的先改名保留
        self._damaged: set[Path] = set()

    def save(self, state: dict) -> Path:
        """写出一个检查点，再删去用不着的旧的。state 见 training_run.py。"""
        if not self._is_ours and self.folder.exists():
            hint(f"已有的 {self.folder} 保留为 {keep_backup(self.folder).name}")
        self.folder.mkdir(exist_ok=True)
        sync_folder(self.folder.parent)
        self._is_ours = True
        path = self.folder / f"step-{state['progress']['step']:08d}.ckpt"
        save_state(path, {"format": FORMAT, **state}, keep_old=path in self._damaged)
        self._prune(state["records"])
        return path

    def _prune(self, records: list[dict]) -> None:
        """只留最近的 NUM_NEWEST 个和验证损失最低的一个；坏了的不动。"""
        paths = [path for path in list_checkpoints(self.folder) if path not in self._damaged]

        def loss(path: Path) -> float:
            """不晚于它的最后一次评估。"""
            return [record["validate_loss"] for record in records if record["step"] <= step_of(path)][-1]

        for path in set(paths) - set(paths[-NUM_NEWEST:]) - {min(paths, key=loss)}:
            with contextlib.suppress(OSError):  # 删不掉的旧检查点留着也无害
                path.unlink()

    def load_newest(self) -> tuple[Path, dict]:
        """最新的完好的检查点和它的内容；坏了的说一声，留在原处。"""
        remove_leftovers(self.folder, NAME.pattern)
        problems = {}
        for path in reversed(list_checkpoints(self.folder)):
            try:
                state = read_checkpoint(path)
            except DamagedError as error:
                problems[path] = error.reason
                continue
            for damaged in problems:
                hint(f"警告：{damaged} 已损坏，改用 {path.name}")
            self._damaged, self._is_ours = set(problems), True
            return path, state
        reasons = "；".join(f"{path.name} {reason}" for path, reason in problems.items())
        raise UserError(self.folder, f"没有完好的检查点（{reasons}）", FROM_SCRATCH)


def recorded_tokenizer(folder: Path) -> dict:
    """检查点里的分词器；数据改过之后还要用原来的词表。"""
    return tokenizer_of(Checkpoints(folder).load_newest()[1]["model"], None).state()


class DamagedError(UserError):
    """检查点坏了，可以试试更早的。"""


def read_checkpoint(path: Path) -> dict:
    """读出并检查一个检查点：坏了抛出 DamagedError，新版本写的抛出 UserError。

    张量在内存里，不映射文件：训练会改写它们。
    """
    try:
        check_archive(path, "检查点")
        state = load_state(path, mmap=False)
    except UserError as error:
        raise DamagedError(path, error.reason) from None
    version = state.get("format")
    if isinstance(version, int) and version > FORMAT:
        raise UserError(path, f"由更新的版本写出（格式 {version}，这里认识 {FORMAT}）", "更新 PocketLLM 再继续。")
    try:
        _check_structure(path, state)
    except (UserError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise DamagedError(path, getattr(error, "reason", NOT_A_MODEL)) from None
    return state


def _check_structure(path: Path, state: dict) -> None:
    """各项都在，类型都对；不对就抛出任何一种错误。"""
    if state["format"] != FORMAT or state["progress"].keys() != set(PROGRESS):
        raise ValueError
    for name, value in state["progress"].items():
        if not isinstance(value, (int, float)) and (name, value) != ("evaluated_step", None):
            raise ValueError
    names = {item.name for item in fields(Evaluation)}
    if any(record.keys() != names for record in state["records"]) or not state["records"]:
        raise ValueError
    float(state["seconds"])
    if state["run"].keys() != {item.name for item in fields(RunIdentity)} or not isinstance(state["name"], str):
        raise ValueError
    if any(not isinstance(value, dict) for name, value in state["run"].items() if name not in ("tokenizer", "data")):
        raise ValueError
    if any(value.dtype != torch.uint8 for value in (state["random"]["cpu"], *state["random"].values())):
        raise ValueError
    for index, optimizer in enumerate(state["optimizers"]):
        for number, values in optimizer.items():
            check_tensors(path, {f"optimizers.{index}.{number}.{name}": value for name, value in values.items()})
    state["model"] = model_file_of(path, state["model"])
