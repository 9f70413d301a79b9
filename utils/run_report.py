"""训练报告：一边训练一边记下素材，写成 <model_path>.report.html。不改变训练的结果，时间记着账花。"""

import platform
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import torch

from utils.budget import Budget
from utils.cli import command_line
from utils.distributed import from_main
from utils.files import write_atomically
from utils.gradient_norms import norms_by_part
from utils.processes import on_main
from utils.run_history import Observation, RunHistory, Sample
from utils.run_identity import RunIdentity
from utils.run_page import PageData, render_page
from utils.train_utils import Evaluation, Trainer

SAMPLING_FRACTION = 0.005  # 写样文至多占训练时间的这么多
WRITING_FRACTION = 0.002  # 写报告也是；最后一次总会写
MAX_SAMPLINGS = 8  # 途中至多写几次样文
TOKEN_SHARE = 1 / 3  # 没有写过时，生成一个 token 按训练时一个样本的前向的三分之一估计；模型越大越宽裕


@dataclass(frozen=True)
class RunStory:
    """报告里因程序而异的部分。"""

    title: str = "训练"
    facts: dict[str, str] = field(default_factory=dict)  # 数据一节，{名字: 值}
    write_samples: Callable[[], list[Sample]] = list  # 用现在的权重写几段；不动训练的随机状态
    sample_tokens: int = 0  # write_samples 大约要生成几个 token


class RunReport:
    """一次训练的报告。observe_step 在每一步之后调用，observe 在每次评估之后，finish 在训练停下时。"""

    def __init__(self, path: Path, trainer: Trainer, budget: Budget, identity: RunIdentity, story: RunStory):
        self.path, self.trainer, self.budget, self.identity, self.story = path, trainer, budget, identity, story
        self.history = RunHistory(commands=[command_line(sys.argv)])
        self._writing_seconds = self._last_writing = 0.0
        self._since = (trainer.tokens, budget.seconds)  # 从这里起只在训练

    def continue_run(self, history: RunHistory) -> None:
        """接着以前的素材记；trainer 和 budget 已经装回。"""
        (command,) = self.history.commands
        self.history = history
        if command not in history.commands[-1:]:
            history.commands.append(command)
        self._since = (self.trainer.tokens, self.budget.seconds)

    def state(self) -> dict:
        """随检查点保存的素材，连同最近一步的梯度：打断在评估之前时，接着训练马上就要用。"""
        self._take_gradients()
        return self.history.state()

    def observe_step(self, loss: float) -> None:
        """刚走完的一步，loss 是它那几批的平均损失。"""
        trainer = self.trainer
        at = {"step": trainer.step, "tokens": trainer.tokens, "seconds": self.budget.seconds}
        self.history.steps.add(**at, loss=loss, learning_rate=trainer.learning_rate)

    def observe(self, records: list[Evaluation]) -> None:
        """records 的最后一个是刚做的评估。"""
        record = records[-1]
        self._take_gradients()
        (tokens, seconds), history = self._since, self.history
        speed = (record.tokens - tokens) / max(1e-9, record.seconds - seconds) if record.tokens > tokens else None
        samples = self._write_samples() if from_main(self._can_afford_samples()) else []
        norms = dict(history.gradient_norms)
        history.observations.append(Observation(record.step, speed, memory_in_use(self.trainer), norms, samples))
        if self._last_writing + self._writing_seconds <= WRITING_FRACTION * self.budget.seconds:
            self._write(records, f"训练到第 {record.step:,} 步")
        self._since = (self.trainer.tokens, self.budget.seconds)

    def finish(self, records: list[Evaluation], status: str, result: dict | None = None) -> None:
        """训练停下了：写出最后的样子。result 是练完之后测得的，见 RunFiles.write_result。"""
        self._write(records, status, result)

    def add_last_samples(self) -> None:
        """训练完了，最后一次评估还没有样文就补上。"""
        last = self.history.observations[-1] if self.history.observations else None
        if last and not last.samples:
            last.samples.extend(self._write_samples())

    def _take_gradients(self) -> None:
        if self.trainer.gradient_norms:
            self.history.gradient_norms = norms_by_part(self.trainer.gradient_norms)

    def _can_afford_samples(self) -> bool:
        """第 0 步先写一次（没有训练过的样子），其余的摊在全程；花完为止。"""
        count, spent = self.history.num_sampled, self.history.sampling_seconds
        progress = self.budget.progress(self.trainer)
        allowance = SAMPLING_FRACTION * self.budget.planned_seconds(self.trainer)
        if not count:
            forward = self.trainer.forward_seconds(self.budget.seconds_per_step)
            return self.story.sample_tokens * forward * TOKEN_SHARE <= allowance * max(progress, 0.5)
        return spent + spent / count <= allowance and progress >= max(spent / allowance, count / MAX_SAMPLINGS)

    def _write_samples(self) -> list[Sample]:
        begin = time.monotonic()
        with self.trainer.parallel.writing_together(self.trainer.model):
            samples = self.story.write_samples()
        self.history.sampling_seconds += time.monotonic() - begin
        return samples

    @on_main
    def _write(self, records: list[Evaluation], status: str, result: dict | None = None) -> None:
        begin = time.monotonic()
        page = PageData(
            title=f"{self.story.title}报告：{self.path.name.removesuffix('.report.html')}",
            status=status,
            records=records,
            result=result or {},
            num_samples=len(self.trainer.validate_sample.dataset),
            history=self.history,
            facts=self.story.facts,
            model={"参数": f"{sum(p.numel() for p in self.trainer.model.parameters()):,} 个", **self.identity.config},
            settings=self.identity.settings,
            environment={**self.identity.environment, "Python": platform.python_version(), "系统": platform.platform()},
            fingerprints={"数据": self.identity.data_digest, "词表": self.identity.tokenizer},
        )
        content = render_page(page)
        write_atomically(self.path, lambda file: file.write(content))
        self._last_writing = time.monotonic() - begin
        self._writing_seconds += self._last_writing


def memory_in_use(trainer: Trainer) -> int:
    """字节；CPU 上是整个进程的，GPU 上是至今的峰值。"""
    if trainer.device.type == "cuda":
        return torch.cuda.max_memory_allocated(trainer.device)
    return psutil.Process().memory_info().rss
