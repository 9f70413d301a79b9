"""FSDP 的检查点：每个进程存自己的那一份，读也是。文件夹里有什么见 sharded_checkpoint.py。"""

from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from utils import distributed, processes
from utils.checkpoint import check_state, load_progress
from utils.checkpoint_files import FROM_SCRATCH
from utils.errors import RunError, UserError
from utils.parallel_checkpoint import ReplicatedCheckpoints
from utils.sharded_checkpoint import SHARED_FOLDER, create_shared, load_shards, read_rest, restore, save_folder
from utils.train_utils import Trainer


class ShardedCheckpoints(ReplicatedCheckpoints):
    """每个进程存自己的那一份，读也是；读得了一个进程或 DDP 存的，反过来也行。"""

    mode = "fsdp"

    def check_folder(self) -> None:
        """各台机器都要看得到同一个文件夹，否则抛出 RunError：练了半天才发现就晚了。"""
        probe = create_shared(self.folder)
        seen = distributed.gather((processes.name(), probe.is_dir()))
        if processes.is_main():
            probe.rmdir()
        blind = [name for name, is_seen in seen if not is_seen]
        if blind:
            raise RunError(self.folder.parent, f"{'、'.join(blind)} 看不到这个文件夹", SHARED_FOLDER)

    def _write(self, path: Path, state: dict, keep_old: bool) -> None:
        save_folder(path, state, keep_old)

    def _read(self, path: Path) -> dict:
        """文件夹里的张量先不读，load_into 时各进程读各自的。"""
        return check_state(path, lambda: read_rest(path), _check_shapes) if path.is_dir() else super()._read(path)

    def load_into(self, trainer: Trainer, path: Path, state: dict) -> None:
        if "shapes" not in state:
            super().load_into(trainer, path, state)
            return
        tensors = dict(_own_places(path, trainer, state["shapes"]))
        load_shards(path, tensors)
        load_progress(trainer, path, restore(tensors, state))


def _check_shapes(path: Path, state: dict) -> None:
    """张量的名字和形状都是基本类型；不对就抛出任何一种错误。"""
    for name, shape in state["shapes"].items():
        if not isinstance(name, str) or not all(type(size) is int and size >= 0 for size in shape):
            raise ValueError(name)


def _own_places(path: Path, trainer: Trainer, shapes: dict) -> Iterator[tuple[str, Tensor]]:
    """检查点里的每个张量读到哪里：权重就是模型自己的，动量是与参数同样分片的空位。"""
    state, optimizers = trainer.state(), trainer.optimizers
    for name, shape in shapes.items():
        kind, _, rest = name.partition(".")
        number, _, index = rest.rpartition(".")[0].partition(".")
        try:
            if kind == "model":
                place = state["model"][rest]
            elif shape:
                place = torch.zeros_like(_parameters_of(optimizers[int(number)])[int(index)], requires_grad=False)
            else:
                place = torch.zeros(())  # AdamW 的步数
        except (LookupError, ValueError):
            raise UserError(path, f"里面的 {name} 在现在的模型里没有", FROM_SCRATCH) from None
        if list(place.shape) != list(shape):
            raise UserError(path, f"里面的 {name} 是 {tuple(shape)}，现在的模型要 {tuple(place.shape)}", FROM_SCRATCH)
        yield name, place


def _parameters_of(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]
