"""训练：损失、评估和唯一的训练循环。预训练和各种微调只是数据集不同。道理见 docs/损失与困惑度.md。"""

import math
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from itertools import islice

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from utils import sharded_tensor
from utils.budget import Budget
from utils.cross_entropy import IGNORE_INDEX, cross_entropy
from utils.distributed import map_batches, max_over, number_from_main, sum_over
from utils.errors import RunError
from utils.evaluation_schedule import MAX_EVAL_TOKENS, EvaluationSchedule
from utils.evaluation_set import EVAL_BATCH, digest_of_samples, evaluation_loader
from utils.gradient_norms import clip_gradients
from utils.optimizers import learning_rate_factor, load_optimizer_state, set_learning_rate
from utils.parallel import OneProcess
from utils.random_state import get_random_state, set_random_state
from utils.settings import TrainingSettings

FULL_PRECISION = nullcontext()  # 不做混合精度
# Trainer 的这些属性随检查点保存
PROGRESS = ("step", "tokens", "epoch", "samples_done", "evaluated_step", "learning_rate")

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
    # 分片的权重在推理模式里凑齐，就不能再用来训练，所以只关梯度
    is_sharded = any(map(sharded_tensor.is_sharded, model.parameters()))
    without_gradients = torch.no_grad if is_sharded else torch.inference_mode
    try:
        with without_gradients():
            yield
    finally:
        model.train(was_training)


def calc_loss_loader(
    model: nn.Module,
    batches: Iterable[Batch],
    precision: AbstractContextManager = FULL_PRECISION,
    before_batch: Callable[[], None] = lambda: None,
) -> float:
    """若干批的平均损失，按 token 平均：短的一批不会占同样的分量。before_batch 在每一批之前调用。"""
    device = next(model.parameters()).device

    def measure(batch: Batch) -> tuple[float, int]:
        num_tokens = count_supervised(batch[1])
        with precision:
            loss = calc_loss_batch(model, *copy_to(device, batch))
        return loss.item() * num_tokens, num_tokens

    total_loss, total_tokens = 0.0, 0
    with evaluating(model):
        for loss, num_tokens in map_batches(measure, batches, before_batch):
            total_loss += loss
            total_tokens += num_tokens
    return total_loss / total_tokens


@dataclass(frozen=True)
class Evaluation:
    """一次评估的结果，也是日志的一行。"""

    epoch: int  # 从 1 数起
    step: int  # 已更新参数的次数
    tokens: int  # 至今训练过的 token 数，微调时含补齐的
    seconds: float  # 训练开始以来
    learning_rate: float  # 最近一步的学习率
    train_loss: float
    validate_loss: float
    train_accuracy: float | None = None  # 只有分类才算
    validate_accuracy: float | None = None
    measured_on: str = ""  # 验证损失是在哪一组样本上量的，指纹


class NotFiniteError(RunError):
    """第 step 步的损失或梯度不是有限数。"""

    def __init__(self, step: int, reason: str, advice: str = "这一步没有保存；减小 --learning_rate 再试。"):
        super().__init__(f"第 {step} 步", reason, advice)
        self.step, self.reason = step, reason


class Interrupted(Exception):
    """有人要求停下 (Trainer.stop_requested)。"""


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
        self.parallel = OneProcess()
        self.parallel.wrap(model)
        self.train_loader, self.validate_loader = train_loader, validate_loader
        self.device = next(model.parameters()).device
        self.update_size = settings.batch_size * settings.accumulation_steps  # 一轮的最后一次更新可能少几个样本
        self.steps_per_epoch = math.ceil(len(train_loader) / settings.accumulation_steps)
        self.step, self.tokens, self.epoch = 0, 0, 1
        self.samples_done = 0  # 这一轮里用过的样本数
        self.evaluated_step: int | None = None
        self.learning_rate = 0.0
        self.gradient_norms: dict[str, Tensor] = {}  # 最近一步各参数的，裁剪之前
        self.is_consistent = True  # 参数更新到一半时为假，那时的状态不能保存
        self.stop_requested = False
        self.on_step: Callable[[float, float], None] = lambda loss, progress: None
        self.between_steps: Callable[[], None] = lambda: None
        self.calc_accuracy: Callable[[DataLoader], float] | None = None  # 评估时另外算的准确率
        self.evaluate_on(self._num_eval_samples())

    def evaluate_on(self, num_samples: int) -> None:
        """每次评估看验证部分的 num_samples 个样本（不够就是全部），和训练部分的同样多个。"""
        self.validate_sample = evaluation_loader(self.validate_loader, num_samples)
        self.train_sample = evaluation_loader(self.train_loader, len(self.validate_sample.dataset))
        self.measured_on = digest_of_samples(self.validate_sample.dataset)

    def _num_eval_samples(self) -> int:
        """每次评估看几个样本。"""
        if self.settings.eval_iter:
            return self.settings.eval_iter * EVAL_BATCH
        return max(1, int(MAX_EVAL_TOKENS / self.tokens_per_sample))

    @property
    def tokens_per_sample(self) -> float:
        """一个样本平均多少个 token，取前一百个来估计。"""
        dataset = self.validate_loader.dataset
        count = min(len(dataset), 100)
        return sum(dataset[index][0].numel() for index in range(count)) / count

    @property
    def evaluates_everything(self) -> bool:
        """每次评估看的是不是整个验证部分。"""
        return len(self.validate_sample.dataset) == len(self.validate_loader.dataset)

    def forward_seconds(self, seconds_per_step: float) -> float:
        """一个样本的前向要几秒；前向约占训练一步的三分之一。"""
        return seconds_per_step / self.update_size / 3

    def evaluation_seconds(self, seconds_per_step: float) -> float:
        """一次评估要几秒。"""
        num_samples = len(self.train_sample.dataset) + len(self.validate_sample.dataset)
        return self.forward_seconds(seconds_per_step) * num_samples

    def run(self, budget: Budget) -> Iterator[Evaluation]:
        """训练到 budget 用完为止；第 0 步和最后一步总会评估。stop_requested 时抛出 Interrupted。"""
        self.model.train()
        groups, schedule = self._grouped_batches(), EvaluationSchedule.of(self, budget)
        while True:
            if schedule.is_due(self.step, number_from_main(budget.progress(self))):
                yield from self._evaluate_once(budget)
            self.between_steps()
            progress = number_from_main(budget.progress(self)) if self.step else 0.0  # 时间再紧也至少走一步
            if progress >= 1:
                break
            loss = self._train_step(next(groups), progress)
            self.on_step(loss, progress)
        yield from self._evaluate_once(budget)

    def check_stop(self) -> None:
        """每一批之前问一次要不要停；有一个进程要停，就一起停。"""
        if any(max_over([self.stop_requested])):
            raise Interrupted

    def _grouped_batches(self) -> Iterator[list[Batch]]:
        """无尽的一轮又一轮；每次交出更新一次参数所用的几批。从 (epoch, samples_done) 接着取。"""
        loader, group_size = self.parallel.own_batches(self.train_loader, self.settings.accumulation_steps)
        while True:
            self.train_loader.sampler.epoch, self.train_loader.sampler.done = self.epoch, self.samples_done
            batches = iter(loader)
            while group := list(islice(batches, group_size)):
                yield group
            self.epoch, self.samples_done = self.epoch + 1, 0

    def _train_step(self, batches: list[Batch], progress: float) -> float:
        """更新一次参数，返回这几批的平均损失（nat/token）；中途被打断时，状态如同这一步没有开始。"""
        factor = learning_rate_factor(self.step, self.settings.warmup_steps, progress)
        self.learning_rate = factor * self.settings.learning_rate
        random_state = get_random_state(self.device)
        try:
            loss, num_tokens = self._backward(batches)
            norm, norms = clip_gradients(self.model, self.settings.grad_clip, self.parallel)
        except BaseException:
            set_random_state(self.device, random_state)
            self._zero_grad()
            raise
        if not math.isfinite(loss + norm):
            raise self._not_finite(loss, norm)
        set_learning_rate(self.optimizers, factor)
        self.is_consistent = False
        for optimizer in self.optimizers:
            optimizer.step()
        self._zero_grad()
        self.gradient_norms = norms
        self.step += 1
        self.tokens += num_tokens
        self.samples_done = min(self.samples_done + self.update_size, len(self.train_loader.sampler))
        self.is_consistent = True
        return loss

    def _zero_grad(self) -> None:
        for optimizer in self.optimizers:
            optimizer.zero_grad()

    def _not_finite(self, loss: float, norm: float) -> NotFiniteError:
        """损失或梯度不是有限数：说清是哪一步、哪几个样本。"""
        indices = self._next_indices()
        place = self.train_loader.dataset.place_of(indices[0])
        more = f"等 {len(indices)} 处" if len(indices) > 1 else ""
        reason = f"损失为 {loss:.4g}，梯度范数为 {norm:.4g}，学习率 {self.learning_rate:.3g}，这一批从{place}{more}取样"
        return NotFiniteError(self.step + 1, reason)

    def _next_indices(self) -> list[int]:
        """下一次更新用的是数据集里的哪些样本。"""
        self.train_loader.sampler.done = self.samples_done
        return list(islice(self.train_loader.sampler, self.update_size))

    def _backward(self, batches: list[Batch]) -> tuple[float, int]:
        """前向和反向。各批按 token 数加权，累积的梯度便等于把它们合成一大批。-> (平均损失, 一共几个 token)"""
        counts = [count_supervised(targets) for _, targets in batches]
        sizes = [inputs.numel() for (inputs, _), count in zip(batches, counts, strict=True) if count]
        num_supervised, num_tokens = sum_over([sum(counts), sum(sizes)])
        losses = []
        for number, (batch, count) in enumerate(zip(batches, counts, strict=True), start=1):
            self.check_stop()
            with self.parallel.exchanging(is_last=number == len(batches)):
                with self.precision:
                    share = count / num_supervised
                    loss = calc_loss_batch(self.parallel.forward, *copy_to(self.device, batch)) * share
                loss.backward()
            losses.append(loss.detach())
        (loss,) = sum_over([sum(loss.item() for loss in losses)])  # 到最后才取数，显卡中途不必停下来等
        return loss, num_tokens

    def _evaluate_once(self, budget: Budget) -> Iterator[Evaluation]:
        """这一步还没有评估过就评估。"""
        if self.evaluated_step != self.step:
            record = self.evaluate(budget)
            self.evaluated_step = self.step
            yield record

    def evaluate(self, budget: Budget) -> Evaluation:
        """在固定的几批上评估；不动训练的随机状态。"""
        seconds = budget.seconds
        samples = self.train_sample, self.validate_sample
        losses = evaluate_model(self.model, *samples, self.precision, self.check_stop)
        accuracies = [self.calc_accuracy(sample) for sample in samples] if self.calc_accuracy else [None, None]
        position = self.epoch, self.step, self.tokens, seconds, self.learning_rate
        return Evaluation(*position, *losses, *accuracies, self.measured_on)

    def state(self) -> dict:
        """接着训练所需要的一切；两步之间取才有意义。张量没有复制。"""
        return {
            "model": self.model.state_dict(),
            "optimizers": [optimizer.state_dict()["state"] for optimizer in self.optimizers],
            "random": get_random_state(self.device),
            "progress": {name: getattr(self, name) for name in PROGRESS},
        }

    def load_progress(self, state: dict) -> None:
        """装回 state() 里权重以外的部分；形状或内容不符时抛出 ValueError 等。"""
        for optimizer, recorded in zip(self.optimizers, state["optimizers"], strict=True):
            load_optimizer_state(optimizer, recorded)
        set_random_state(self.device, state["random"])
        for name in PROGRESS:
            setattr(self, name, state["progress"][name])

    def rehearse(self, max_steps: int = 4, max_seconds: float = 20.0) -> float:
        """试跑二到四步，返回每步秒数；学习率为 0、跑完抹去优化器状态和随机状态，什么也没有改变。"""
        before = {name: getattr(self, name) for name in PROGRESS}
        accelerators = [] if self.device.type == "cpu" else [self.device.index or 0]
        with torch.random.fork_rng(accelerators, device_type=self.device.type):
            durations = list(self._timed_steps(max_steps, max_seconds))
        for optimizer in self.optimizers:
            optimizer.state.clear()
        for name, value in before.items():
            setattr(self, name, value)
        self.gradient_norms = {}
        return number_from_main(min(durations[1:]))  # 第一步含预热，不算

    def _timed_steps(self, max_steps: int, max_seconds: float) -> Iterator[float]:
        """以学习率 0 走几步，交出各步的秒数；至少两步。"""
        started = time.monotonic()
        for index, batches in enumerate(islice(self._grouped_batches(), max_steps)):
            begin = time.monotonic()
            self._train_step(batches, progress=1.0)
            yield time.monotonic() - begin
            if index and number_from_main(time.monotonic() - started) > max_seconds:
                return


def evaluate_model(
    model: nn.Module,
    train_batches: Iterable[Batch],
    validate_batches: Iterable[Batch],
    precision: AbstractContextManager = FULL_PRECISION,
    before_batch: Callable[[], None] = lambda: None,
) -> tuple[float, float]:
    """-> (训练损失, 验证损失)，nat/token"""
    train, validate = (calc_loss_loader(model, b, precision, before_batch) for b in (train_batches, validate_batches))
    return train, validate
