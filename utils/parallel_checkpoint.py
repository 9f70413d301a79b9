"""几个进程一起训练时的检查点：进程 0 写，每个进程各有自己的随机状态。道理见 docs/多机训练.md。"""

from pathlib import Path

import torch

from utils import distributed, processes
from utils.checkpoint import Checkpoints
from utils.errors import UserError
from utils.parallel import OneProcess
from utils.random_state import get_random_state, seed_process

NAMES = {"one": "一个进程", "ddp": "ddp", "fsdp": "fsdp"}


class ReplicatedCheckpoints(Checkpoints):
    """每个进程的权重和动量都相同，只存进程 0 的；文件与一个进程时一样，另记着各个进程的随机状态。"""

    mode = "ddp"

    def save(self, state: dict) -> Path:
        everyone = {"mode": self.mode, "random": distributed.gather(state["random"])}
        return super().save({**state, "processes": everyone})

    @processes.on_main
    def _write(self, path: Path, state: dict, keep_old: bool) -> None:
        super()._write(path, state, keep_old)

    def load_newest(self) -> tuple[Path, dict]:
        """进程 0 读出来，再告诉别的进程：它们不必看得到这个文件夹。"""
        found = super().load_newest() if processes.is_main() else None
        distributed.barrier()
        path, state = distributed.state_from_main(found)
        return self.folder / path.name, {**state, "random": _own_random(state)}


def _own_random(state: dict) -> dict[str, torch.Tensor]:
    """检查点里这个进程的随机状态；那时没有这么多进程，就换一个新的种子。"""
    everyone = recorded_processes(state)["random"]
    if processes.rank() < len(everyone):
        return everyone[processes.rank()]
    seed_process(state["run"]["settings"]["seed"], state["progress"]["step"])
    return get_random_state(torch.device("cpu"))


def recorded_processes(state: dict) -> dict:
    """检查点是怎样一起训练的：{"mode": 并行方式, "random": 各个进程的随机状态}"""
    return state.get("processes") or {"mode": "one", "random": [state["random"]]}


def compare_processes(path: Path, state: dict, parallel: OneProcess, is_allowed: bool) -> list[str]:
    """进程数或并行方式与检查点里的不同：没有允许就抛出 UserError，允许了就返回说明。"""
    recorded = recorded_processes(state)
    old, new = (len(recorded["random"]), recorded["mode"]), (processes.world_size(), parallel.mode)
    if old == new:
        return []
    texts = [f"{count} 个进程（{NAMES[mode]}）" if count > 1 else NAMES["one"] for count, mode in (old, new)]
    if not is_allowed:
        advice = "照原来的启动，或加 --allow_process_change。"
        raise UserError(path, f"是 {texts[0]}训练的，现在是 {texts[1]}", advice)
    changed = "梯度相加的次序" + ("和 dropout 的随机数" if old[0] != new[0] else "")
    return [f"提示：由 {texts[0]}改为 {texts[1]}：样本的次序不变，{changed}变了，从这里起不再逐位相同"]
