"""分片的检查点：一个文件夹，每个进程写自己的那一份 (torch.distributed.checkpoint)，写齐、核对之后才改名成真的。

step-00000123.ckpt/ 里是 __0_0.distcp 等（各进程的权重和动量）、.metadata（哪一块在哪里）和 state.pth（其余的一切，
连同前面各文件的 sha256）。state.pth 最后写，带封印；文件夹的名字最后才定。
"""

import hashlib
import io
import os
import pickle
import shutil
import tempfile
import warnings
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint.metadata import Metadata

from utils import distributed, processes, sharded_tensor
from utils.archive import RESTORE, check_archive
from utils.checkpoint_files import remove_checkpoint
from utils.errors import RunError, UserError, describe_os_error
from utils.files import READ_BYTES, TEMPORARY_SUFFIX, current_umask, keep_backup, sync_folder
from utils.model_file import DESCRIPTION_KEY, load_state, save_state
from utils.process_group import is_lost

STATE_NAME, METADATA_NAME = "state.pth", ".metadata"
# 描述分块的 pickle 里只该有这些
ALLOWED = {
    "torch": {"Size", "device", "float32", "float64", "float16", "bfloat16", "int64", "uint8", "strided"},
    "torch.serialization": {"_get_layout"},
    "torch.distributed.checkpoint.metadata": {
        *("Metadata", "TensorStorageMetadata", "ChunkStorageMetadata", "TensorProperties", "MetadataIndex"),
        *("_MEM_FORMAT_ENCODING", "StorageMeta"),
    },
    "torch.distributed.checkpoint.filesystem": {"_StorageInfo"},
    "pathlib": {"Path", "PosixPath", "WindowsPath"},
}
OWN_ITEMS = ("description", "aliases", "shapes", "files")  # state.pth 里为了还原张量而记的
Tensors = dict[str, Tensor]


SHARED_FOLDER = "FSDP 的检查点要写在各台机器共用的文件夹里。"


def flatten(state: dict) -> tuple[Tensors, dict]:
    """trainer.state() -> ({名字: 张量}，各进程一份一份地存；其余的一切)"""
    tensors, aliases, places = {}, {}, {}
    for name, value in state["model"].items():
        if isinstance(value, Tensor):
            place = sharded_tensor.local(value).untyped_storage()._cdata
            if place in places:  # 输出层与嵌入共用的矩阵只存一份
                aliases[f"model.{name}"] = places[place]
            else:
                tensors[f"model.{name}"], places[place] = value, f"model.{name}"
    for number, optimizer in enumerate(state["optimizers"]):
        for index, values in optimizer.items():
            tensors |= {f"optimizers.{number}.{index}.{name}": value for name, value in values.items()}
    rest = {name: value for name, value in state.items() if name not in ("model", "optimizers")}
    rest |= {"description": state["model"][DESCRIPTION_KEY], "aliases": aliases}
    rest["shapes"] = {name: list(tensor.shape) for name, tensor in tensors.items()}
    return tensors, rest


def restore(tensors: Tensors, rest: dict) -> dict:
    """flatten 的逆。"""
    state = {name: value for name, value in rest.items() if name not in OWN_ITEMS}
    state |= {"model": {DESCRIPTION_KEY: rest["description"]}, "optimizers": []}
    tensors = {**tensors, **{name: tensors[other] for name, other in rest["aliases"].items()}}
    for name, tensor in tensors.items():
        kind, _, rest_of_name = name.partition(".")
        if kind == "model":
            state["model"][rest_of_name] = tensor
            continue
        number, index, key = rest_of_name.split(".")
        while len(state["optimizers"]) <= int(number):
            state["optimizers"].append({})
        state["optimizers"][int(number)].setdefault(int(index), {})[key] = tensor
    return state


def save_folder(path: Path, state: dict, keep_old: bool) -> None:
    """每个进程都调用；state 里的张量是分片的。任何时刻断电，path 要么没有，要么是完整的。"""
    tensors, rest = flatten(state)
    temporary = create_shared(path)
    try:
        _write_shards(tensors, temporary)
        digests = distributed.gather({file.name: digest_of(file) for file in _own_files(temporary)})
        rest["files"] = {name: digest for part in digests for name, digest in part.items()}
        _publish(temporary, path, rest, keep_old)
    except BaseException:
        if processes.is_main():
            shutil.rmtree(temporary, ignore_errors=True)
        raise
    distributed.barrier()


def _write_shards(tensors: Tensors, folder: Path) -> None:
    if not folder.is_dir():
        raise RunError(folder, f"{processes.name()} 看不到这个文件夹", SHARED_FOLDER)
    try:
        dcp.save(tensors, storage_writer=dcp.FileSystemWriter(folder))
    except dcp.api.CheckpointException as error:
        number, (cause, _) = next(iter(error.failures.items()))
        system = cause if isinstance(cause, OSError) else cause.__context__  # torch.save 把磁盘错误包在里面
        reason = f"进程 {number} 写不进去（{describe_os_error(system) if system else '磁盘满了，或读写出错'}）"
        raise RunError(folder.parent, reason, "原有的检查点没有改动；检查磁盘的空间和权限。") from None


def create_shared(path: Path) -> Path:
    """path 旁边的一个临时文件夹，进程 0 建立；各台机器上的 path 可以不同，名字是同一个。"""
    return path.parent / distributed.from_main(_create_temporary(path))


@processes.on_main
def _create_temporary(path: Path) -> str:
    return Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}.", suffix=TEMPORARY_SUFFIX)).name


def _own_files(folder: Path) -> list[Path]:
    """这个进程写的文件；.metadata 是进程 0 写的。"""
    own = sorted(folder.glob(f"__{processes.rank()}_*"))
    return [*own, folder / METADATA_NAME] if processes.is_main() else own


@processes.on_main
def _publish(temporary: Path, path: Path, rest: dict, keep_old: bool) -> None:
    """写下其余的一切，再把文件夹改成真正的名字。"""
    save_state(temporary / STATE_NAME, rest)
    temporary.chmod(0o777 & ~current_umask())
    if keep_old:
        keep_backup(path)
    elif path.exists():  # 同一步存过，如 --max_minutes 到点时正好刚存；文件夹不能直接顶替
        remove_checkpoint(path)
    os.replace(temporary, path)
    sync_folder(path.parent)


def digest_of(path: Path) -> str:
    """文件的 sha256；刚写完的先丢掉内存里的缓存页，读到的才是磁盘上的。"""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        while data := file.read(READ_BYTES):
            digest.update(data)
    return digest.hexdigest()


def read_rest(path: Path) -> dict:
    """检查文件夹里的每一个文件，读出张量以外的一切；有任何不对都抛出 UserError。"""
    if not (path / STATE_NAME).exists():
        raise UserError(path, f"缺少 {STATE_NAME}", RESTORE)
    check_archive(path / STATE_NAME, "检查点")
    rest = load_state(path / STATE_NAME, mmap=False)
    if not all(isinstance(rest.get(name), dict) for name in OWN_ITEMS):
        raise UserError(path, "内容不完整", RESTORE)
    for name, digest in rest["files"].items():
        if Path(name).name != name or not (path / name).is_file():
            raise UserError(path, f"缺少 {name}", RESTORE)
        if digest_of(path / name) != digest:
            raise UserError(path, f"校验失败（{name}）", RESTORE)
    return rest


def read_whole(path: Path) -> dict:
    """在一个进程里读出整个检查点，张量都是完整的；不必有进程组。"""
    rest = read_rest(path)
    tensors = {name: torch.empty(shape) for name, shape in rest["shapes"].items()}
    load_shards(path, tensors, alone=True)
    return restore(tensors, rest)


def load_shards(path: Path, tensors: Tensors, alone: bool = False) -> None:
    """把 path 里的内容读进 tensors：分片的各进程读各自的，分法可以与写时不同。"""
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="torch.distributed is")  # 只有一个进程，我们知道
            dcp.load(tensors, storage_reader=_SafeReader(path), no_dist=alone)
    except (dcp.api.CheckpointException, pickle.UnpicklingError, ValueError, RuntimeError) as error:
        if is_lost(error):  # 断了的是连接，检查点没有坏
            raise
        raise UserError(path, f"读不出来（{str(error).splitlines()[-1]}）", RESTORE) from None


class _SafeReader(dcp.FileSystemReader):
    """.metadata 是 pickle，能执行任意代码；这里只认描述分块的那几个类。"""

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        metadata = _RestrictedUnpickler(io.BytesIO((Path(self.path) / METADATA_NAME).read_bytes())).load()
        if any(Path(item.relative_path).name != item.relative_path for item in metadata.storage_data.values()):
            raise pickle.UnpicklingError(".metadata 指向别处的文件，已拒绝读取")
        if getattr(metadata, "storage_meta", None) is None:
            metadata.storage_meta = dcp.metadata.StorageMeta()
        metadata.storage_meta.load_id = self.load_id
        return metadata


class _RestrictedUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if name not in ALLOWED.get(module, ()):
            raise pickle.UnpicklingError(f".metadata 里有 {module}.{name}，已拒绝读取")
        return super().find_class(module, name)
