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

from utils import processes
from utils.full_state import scatter_full_state
from utils.memory import return_freed_memory
from utils.parallel import Replicated
from utils.training_memory import TrainingMemory

GROUP_COPIES = 4  # 一组凑齐时一共占几份：收到的、拼好的权重，梯度和待发的梯度，gloo 自己的缓冲；在 CPU 上量的


class Sharded(Replicated):
    """fully_shard (FSDP2)：每个 Transformer 块是一组，其余的是一组；各组前向时凑齐，算完放掉，反向时再凑一次。"""

    mode = "fsdp"

    def __init__(self, dtype: torch.dtype):
        self._whole: nn.Module | None = None
        self._dtype = dtype
        return_freed_memory()

    def create(self, make_model: Callable[[], nn.Module], device: torch.device) -> nn.Module:
        """只有形状的模型。进程 0 另在内存里建立整个的，随机数与一个进程时相同，wrap 时分给各个进程。"""
        self._device = device
        self._whole = make_model() if processes.is_main() else None
        with torch.device("meta"):
            return make_model()

    def place(self, model: nn.Module, device: torch.device) -> nn.Module:
        """先留在内存里，wrap 时一块一块地分。"""
        self._device = device
        return model

    def own_memory(self, memory: TrainingMemory) -> TrainingMemory:
        """自己的那几行，加上最外面一组和一块凑齐时的权重、梯度和收发的缓冲；进程 0 开头和保存时还有整个的权重。"""
        memory, size = super().own_memory(memory), processes.world_size()
        outer = memory.cfg.vocab_size * memory.cfg.emb_dim
        group = outer + max(0, memory.num_parameters - outer) // memory.cfg.num_layers
        accumulates = self._own_samples(memory.settings) > memory.settings.batch_size
        held = (memory.num_trained - memory.num_trained // size) * accumulates  # 累积着的梯度是整个的
        whole = memory.num_parameters * processes.is_main()
        own = memory.num_parameters // size + GROUP_COPIES * group + held + whole
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
        if next(model.parameters()).is_meta:
            self._fill(model.to_empty(device=self._device))
        self.forward = model

    def _fill(self, model: nn.Module) -> None:
        """把进程 0 建立的模型分给各个进程。"""
        whole, self._whole = self._whole, None
        scatter_full_state(model, whole and dict(whole.named_parameters()))
        for name, buffer in model.named_buffers():
            if whole:
                buffer.copy_(whole.get_buffer(name))
            dist.broadcast(buffer, src=0)

    @property
    def _precision(self) -> MixedPrecisionPolicy:
        """各块的权重直接凑成 bfloat16：少传一半；也免得 autocast 另存一份转换过的，一直留到反向。

        CPU 的 layer_norm 不认 bfloat16 的缩放，那里照旧由 autocast 转换。
        """
        if self._dtype == torch.float32 or self._device.type == "cpu":
            return MixedPrecisionPolicy()
        return MixedPrecisionPolicy(param_dtype=self._dtype, reduce_dtype=torch.float32, cast_forward_inputs=False)

    def exchanging(self, is_last: bool) -> AbstractContextManager:
        self.forward.set_requires_gradient_sync(is_last)
        return nullcontext()

    def whole_norms(self, norms: list[Tensor]) -> list[Tensor]:
        squares = torch.stack(norms).square()
        dist.all_reduce(squares)
        return list(squares.sqrt())

    @contextmanager
    def writing_together(self, model: nn.Module) -> Iterator[None]:
        """分数都用进程 0 的：各台机器的末位不同时，挑出不同的 token，有的停了，有的还在写，就会互相等。"""
        alone = model.next_logits

        def together(*args: Any, **kwargs: Any) -> Tensor:
            logits = alone(*args, **kwargs).contiguous()
            dist.broadcast(logits, src=0)
            return logits

        model.next_logits = together
        try:
            yield
        finally:
            model.next_logits = alone
