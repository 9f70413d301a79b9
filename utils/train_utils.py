"""训练：损失、评估和唯一的训练循环。预训练和各种微调只是数据集不同。道理见 docs/损失.md。"""

import math
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from itertools import islice

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Subset

from utils.cross_entropy import IGNORE_INDEX, cross_entropy
from utils.data_loader import create_dataloader
from utils.errors import RunError
from utils.optimizers import learning_rate_factor, set_learning_rate
from utils.settings import TrainingSettings

FINISHING_SECONDS = 3.0  # 训练结束后写样文、画曲线大约要几秒
FULL_PRECISION = nullcontext()  # 不做混合精度
MAX_EVAL_TOKENS = 65_536  # 没有指定 --eval_iter 时，每次评估最多看多少个 token

Batch = tuple[Tensor, Tensor]


def calc_loss_batch(model: nn.Module, inputs: Tensor, targets: Tensor) -> Tensor:
    """一批的平均交叉熵 -log p(目标)，单位 nat/token，只算目标不是 IGNORE_INDEX 的位置。

    inputs, targets: (batch, seq) -> 标量
    """
    return cross_entropy(model(inputs).flatten(0, 1), targets.flatten())


def copy_to(device: torch.device, batch: Batch) -> Batch:
    """把一批复制到设备上；原来在锁页内存里时，复制与计算同时进行。"""
    inputs, targets = (tensor.to(device, non_blocking=True) for tensor in batch)
    return inputs, targets


def count_supervised(targets: Tensor) -> int:
    """计损失的 token 数。"""
    return int((targets != IGNORE_INDEX).sum())


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """关掉 dropout 和梯度，结束后恢复原来的模式。"""
    was_training = model.training
    model.eval()
    try:
        with torch.inference_mode():
            yield
    finally:
        model.train(was_training)


def calc_loss_loader(
    model: nn.Module, batches: Iterable[Batch], precision: AbstractContextManager = FULL_PRECISION
) -> float:
    """若干批的平均损失，按 token 平均：短的一批不会占同样的分量。"""
    device = next(model.parameters()).device
    total_loss, total_tokens = 0.0, 0
    with evaluating(model):
        for inputs, targets in batches:
            num_tokens = count_supervised(targets)
            with precision:
                loss = calc_loss_batch(model, *copy_to(device, (inputs, targets)))
            total_loss += loss.item() * num_tokens
            total_tokens += num_tokens
    return total_loss / total_tokens


@dataclass(frozen=True)
class Evaluation:
    """一次评估的结果，也是日志的一行。"""

    epoch: int  # 从 1 数起
    step: int  # 已更新参数的次数
    tokens: int  # 至今训练过的 token 数
    seconds: float  # 训练开始以来
    learning_rate: float  # 最近一步的学习率
    train_loss: float
    validate_loss: float


class Budget:
    """训练到什么时候为止：轮数、步数、时间，先到者为准。时间都是 time.monotonic() 的读数。"""

    def __init__(self, total_steps: int, deadline: float = math.inf, seconds_per_step: float = 0.0):
        self.total_steps, self.deadline, self.seconds_per_step = total_steps, deadline, seconds_per_step
        self.started = time.monotonic()

    @property
    def seconds(self) -> float:
        """训练开始以来的秒数。"""
        return time.monotonic() - self.started

    def progress(self, step: int) -> float:
        """0 是刚开始，达到 1 就该停。"""
        by_time = self.seconds / max(1e-9, self.deadline - self.started)
        return max(step / self.total_steps, by_time)


def plan_budget(trainer: "Trainer", command_started: float) -> Budget:
    """试跑几步，定下总步数和截止时间；--max_minutes 管整个命令，所以要给结束时的评估和画图留出时间。"""
    settings = trainer.settings
    seconds_per_step = trainer.rehearse()
    limit = settings.epochs * trainer.steps_per_epoch
    total_steps = min(limit, settings.max_steps or limit)
    if not settings.max_minutes:
        return Budget(total_steps, seconds_per_step=seconds_per_step)
    seconds = 60 * settings.max_minutes
    finishing = seconds_per_step + trainer.evaluation_seconds(seconds_per_step) + FINISHING_SECONDS
    if not trainer.evaluates_everything:
        finishing += trainer.forward_seconds(seconds_per_step) * len(trainer.validate_loader.dataset)
    deadline = command_started + seconds - min(finishing, seconds / 5)
    return Budget(total_steps, deadline, seconds_per_step)


class Trainer:
    """训练循环。run() 是生成器，每评估一次交出一个 Evaluation，打印、记录、保存都由取用的一方决定。"""

    def __init__(
        self,
        model: nn.Module,
        optimizers: list[torch.optim.Optimizer],
        train_loader: DataLoader,
        validate_loader: DataLoader,
        settings: TrainingSettings,
        precision: AbstractContextManager = FULL_PRECISION,
    ):
        self.model, self.optimizers, self.settings, self.precision = model, optimizers, settings, precision
        self.train_loader, self.validate_loader = train_loader, validate_loader
        self.device = next(model.parameters()).device
        self.steps_per_epoch = math.ceil(len(train_loader) / settings.accumulation_steps)
        self.step, self.tokens, self.epoch = 0, 0, 1
        self.learning_rate = 0.0
        self.stop_requested = False
        self.on_step: Callable[[float, float], None] = lambda loss, progress: None
        self.validate_sample = evaluation_loader(validate_loader, self._num_eval_samples())
        self.train_sample = evaluation_loader(train_loader, len(self.validate_sample.dataset))

    def _num_eval_samples(self) -> int:
        """每次评估看几个样本。"""
        if self.settings.eval_iter:
            return self.settings.eval_iter * self.settings.batch_size
        return max(1, MAX_EVAL_TOKENS // self.validate_loader.dataset[0][0].numel())

    @property
    def evaluates_everything(self) -> bool:
        """每次评估看的是不是整个验证部分。"""
        return len(self.validate_sample.dataset) == len(self.validate_loader.dataset)

    def forward_seconds(self, seconds_per_step: float) -> float:
        """一个样本的前向要几秒；前向约占训练一步的三分之一。"""
        return seconds_per_step / (self.settings.batch_size * self.settings.accumulation_steps) / 3

    def evaluation_seconds(self, seconds_per_step: float) -> float:
        """一次评估要几秒。"""
        num_samples = len(self.train_sample.dataset) + len(self.validate_sample.dataset)
        return self.forward_seconds(seconds_per_step) * num_samples

    def run(self, budget: Budget) -> Iterator[Evaluation]:
        """训练到 budget 用完或 stop_requested 为止；第 0 步和最后一步总会评估（中断时除外）。"""
        self.model.train()
        yield self.evaluate(budget)
        groups = self._grouped_batches()
        while not self.stop_requested:
            progress = budget.progress(self.step) if self.step else 0.0  # 时间再紧也至少走一步
            if progress >= 1:
                break
            loss = self._train_step(next(groups), progress)
            self.on_step(loss, progress)
            if self.step % self.settings.eval_freq == 0:
                yield self.evaluate(budget)
        if self.step % self.settings.eval_freq and not self.stop_requested:
            yield self.evaluate(budget)

    def _grouped_batches(self) -> Iterator[list[Batch]]:
        """无尽的一轮又一轮；每次交出更新一次参数所用的几批。"""
        while True:
            self.train_loader.sampler.epoch = self.epoch
            batches = iter(self.train_loader)
            while group := list(islice(batches, self.settings.accumulation_steps)):
                yield group
            self.epoch += 1

    def _train_step(self, batches: list[Batch], progress: float) -> float:
        """更新一次参数，返回这几批的平均损失（nat/token）。"""
        loss = self._backward(batches)
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), self.settings.grad_clip)
        if not math.isfinite(loss) or not torch.isfinite(norm):
            what = f"损失为 {loss}" if not math.isfinite(loss) else f"梯度范数为 {norm.item()}"
            raise RunError(f"第 {self.step + 1} 步", what, "这一步没有保存；减小 --learning_rate 再试。")
        factor = learning_rate_factor(self.step, self.settings.warmup_steps, progress)
        set_learning_rate(self.optimizers, factor)
        self.learning_rate = factor * self.settings.learning_rate
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad()
        self.step += 1
        self.tokens += sum(inputs.numel() for inputs, _ in batches)
        return loss

    def _backward(self, batches: list[Batch]) -> float:
        """前向和反向。各批按 token 数加权，累积的梯度便等于把它们合成一大批。"""
        counts = [count_supervised(targets) for _, targets in batches]
        losses = []
        for batch, count in zip(batches, counts, strict=True):
            with self.precision:
                loss = calc_loss_batch(self.model, *copy_to(self.device, batch)) * (count / sum(counts))
            loss.backward()
            losses.append(loss.detach())
        return sum(loss.item() for loss in losses)  # 到最后才取数，显卡中途不必停下来等

    def evaluate(self, budget: Budget) -> Evaluation:
        """在固定的几批上评估；不动训练的随机状态。"""
        seconds = budget.seconds
        losses = evaluate_model(self.model, self.train_sample, self.validate_sample, self.precision)
        return Evaluation(self.epoch, self.step, self.tokens, seconds, self.learning_rate, *losses)

    def rehearse(self, max_steps: int = 4, max_seconds: float = 20.0) -> float:
        """试跑二到四步，返回每步秒数；学习率为 0、跑完抹去优化器状态和随机状态，什么也没有改变。"""
        before = self.step, self.tokens, self.epoch
        accelerators = [] if self.device.type == "cpu" else [self.device.index or 0]
        with torch.random.fork_rng(accelerators, device_type=self.device.type):
            durations = list(self._timed_steps(max_steps, max_seconds))
        for optimizer in self.optimizers:
            optimizer.state.clear()
        self.step, self.tokens, self.epoch = before
        return min(durations[1:])  # 第一步含预热，不算

    def _timed_steps(self, max_steps: int, max_seconds: float) -> Iterator[float]:
        """以学习率 0 走几步，交出各步的秒数；至少两步。"""
        started = time.monotonic()
        for index, batches in enumerate(islice(self._grouped_batches(), max_steps)):
            begin = time.monotonic()
            self._train_step(batches, progress=1.0)
            yield time.monotonic() - begin
            if index and time.monotonic() - started > max_seconds:
                return


def evaluate_model(
    model: nn.Module,
    train_batches: Iterable[Batch],
    validate_batches: Iterable[Batch],
    precision: AbstractContextManager = FULL_PRECISION,
) -> tuple[float, float]:
    """-> (训练损失, 验证损失)，nat/token"""
    return calc_loss_loader(model, train_batches, precision), calc_loss_loader(model, validate_batches, precision)


def evaluation_loader(loader: DataLoader, num_samples: int) -> DataLoader:
    """评估用的固定样本：从整个数据集里均匀取 num_samples 个（不够就是全部），不打乱。"""
    total = len(loader.dataset)
    count = min(total, num_samples)
    indices = [position * total // count for position in range(count)]
    return create_dataloader(Subset(loader.dataset, indices), loader.batch_size)
