"""FSDP：权重、梯度、动量按行分给各个进程，用到哪一块才凑齐哪一块，用完就放掉。道理见 docs/多机训练.md。"""

import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method
from torch.utils._python_dispatch import TorchDispatchMode

from utils import processes, sharded_tensor
from utils.memory import return_freed_memory
from utils.parallel import Replicated
from utils.peers import watch
from utils.training_memory import TrainingMemory

GROUP_COPIES = 4  # 一组凑齐时一共占几份：收到的、拼好的权重，梯度和待发的梯度，gloo 自己的缓冲；在 CPU 上量的


class Sharded(Replicated):
    """fully_shard (FSDP2)：每个 Transformer 块是一组，其余的是一组；各组前向时凑齐，算完放掉，反向时再凑一次。"""

    mode = "fsdp"

    def __init__(self, dtype: torch.dtype):
        self._start: RecordedStart | None = None
        self._dtype = dtype
        return_freed_memory()

    def create(self, make_model: Callable[[], nn.Module], device: torch.device) -> nn.Module:
        """只有形状的模型；wrap 时每个进程只填自己的那几行，谁也不必放下整个模型。"""
        self._device = device
        self._start = RecordedStart()
        with torch.device("meta"), self._start:
            model = make_model()
        self._start.name_parameters(model)
        return model

    def place(self, model: nn.Module, device: torch.device) -> nn.Module:
        """先留在内存里，wrap 时一块一块地分。"""
        self._device = device
        return model

    def own_memory(self, memory: TrainingMemory) -> TrainingMemory:
        """自己的那几行，加上最外面一组和一块凑齐时的权重、梯度和收发的缓冲。"""
        memory, size = super().own_memory(memory), processes.world_size()
        outer = memory.cfg.vocab_size * memory.cfg.emb_dim
        group = outer + max(0, memory.num_parameters - outer) // memory.cfg.num_layers
        accumulates = self._own_samples(memory.settings) > memory.settings.batch_size
        held = (memory.num_trained - memory.num_trained // size) * accumulates  # 累积着的梯度是整个的
        own = memory.num_parameters // size + GROUP_COPIES * group + held
        return replace(memory, num_parameters=own, num_trained=memory.num_trained // size)

    def wrap(self, model: nn.Module) -> None:
        mesh = init_device_mesh(self._device.type, (processes.world_size(),))
        for module in (*model.trf_blocks, model):
            precision = self._precision if module is not model else MixedPrecisionPolicy()
            # 最外面一组也要放掉：评估之后更新参数，留着的就是旧的
            fully_shard(module, mesh=mesh, reshard_after_forward=True, mp_policy=precision)
            module.set_gradient_divide_factor(1.0)  # 梯度相加而不是平均，理由同 DDP
            module.set_force_sum_reduction_for_comms(True)
        register_fsdp_forward_method(model, "next_logits")  # 生成和分类用它
        if self._precision.param_dtype:  # 权重是 bfloat16，生成也要有 autocast
            model.next_logits = torch.autocast(self._device.type, self._dtype)(model.next_logits)
        warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view")  # 没有人就地改它的输出
        if self._start:
            self._start.fill(model, self._device)
        self.forward = model

    @property
    def _precision(self) -> MixedPrecisionPolicy:
        """各块的权重直接凑成 bfloat16：少传一半；也免得 autocast 另存一份转换过的，一直留到反向。

        CPU 的 layer_norm 不认 bfloat16 的缩放，那里照旧由 autocast 转换。
        """
        if self._dtype == torch.float32 or self._device.type == "cpu":
            return MixedPrecisionPolicy()
        return MixedPrecisionPolicy(param_dtype=self._dtype, reduce_dtype=torch.float32, cast_forward_inputs=False)

    def exchanging(self, is_last: bool) -> AbstractContextManager:
        watch().mark()
        self.forward.set_requires_gradient_sync(is_last)
        return nullcontext()

    def whole_norms(self, norms: list[Tensor]) -> list[Tensor]:
        watch().mark()
        squares = torch.stack(norms).square()
        dist.all_reduce(squares)
        return list(squares.sqrt())

    @contextmanager
    def writing_together(self, model: nn.Module) -> Iterator[None]:
        """分数都用进程 0 的：各台机器的末位不同时，挑出不同的 token，有的停了，有的还在写，就会互相等。"""
        alone = model.next_logits

        def together(*args: Any, **kwargs: Any) -> Tensor:
            watch().mark()
            logits = alone(*args, **kwargs).contiguous()
            dist.broadcast(logits, src=0)
            return logits

        model.next_logits = together
        try:
            yield
        finally:
            model.next_logits = alone


class RecordedStart(TorchDispatchMode):
    """记下建立模型时怎样填权重，之后一个一个地重做，只留自己的那几行：随机数与整个建立时逐个相同。"""

    def __init__(self):
        super().__init__()
        self._calls: list[tuple[Tensor, Any, tuple, dict]] = []
        self._names: dict[int, str] = {}

    def __torch_dispatch__(self, function: Any, types: tuple, args: tuple = (), kwargs: dict | None = None) -> Any:
        result = function(*args, **(kwargs or {}))
        if function in FACTORIES:
            self._calls.append((result, _aten.fill_.Scalar, FACTORIES[function], {}))
        elif function in FILLS:
            self._calls.append((args[0], function, args[1:], kwargs or {}))
        return result

    def name_parameters(self, model: nn.Module) -> None:
        """建立完之后，记下哪处内存是哪个参数。"""
        self._names = {_storage_of(parameter): name for name, parameter in model.named_parameters()}

    @torch.no_grad()
    def fill(self, model: nn.Module, device: torch.device) -> None:
        """依原来的次序重做；model 已经分片，还没有内存。"""
        model.to_empty(device=device)
        parameters = dict(model.named_parameters())
        buffer = torch.empty(max(meta.numel() for meta, *_ in self._calls))  # 一次只有一个矩阵是整个的
        for meta, function, args, kwargs in self._calls:
            values = buffer[: meta.numel()].view(meta.shape)
            function(values, *args, **kwargs)
            if name := self._names.get(_storage_of(meta)):
                sharded_tensor.copy_rows(parameters[name], values)
        self._calls.clear()
        if list(model.position.buffers()):  # RoPE 的正弦和余弦由配置就能重算
            model.position = type(model.position)(model.cfg).to(device)


def _storage_of(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


_aten = torch.ops.aten
FILLS = {_aten.uniform_.default, _aten.normal_.default, _aten.zero_.default, _aten.fill_.Scalar}
FACTORIES = {_aten.ones.default: (1,), _aten.zeros.default: (0,)}
