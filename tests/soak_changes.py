"""两次运行之间改了什么：随机抽出改动，核对一共用了几个样本、几轮，最后的学习率，文件里是哪一步的权重，最后一行怎么说。

核对的办法是另写一个最朴素的训练循环从头重算一遍。只用于 POSIX。
"""

import json
import math
import os
import random
import re
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from soak_process import SoakResult, run_forked
from torch import Tensor
from torch.nn import functional as F
from torch.optim.optimizer import register_optimizer_step_post_hook

from checks.building import tiny_config
from conftest import ROOT, write_config
from model.language_model import LanguageModel
from utils.data_loader import EpochSampler, split_point
from utils.model_file import read_model_file
from utils.text_utils import Tokenizer

CONTEXT, EVAL_FREQ, EVAL_BATCH, SEED, LEARNING_RATE, WARMUP = 16, 9, 16, 123, 0.003, 5
FIRST_STEPS = 40  # 第一次运行至少有这么多步；还没有分词器，算不出一共几步
REHEARSED = 4  # 每次运行在训练之前试跑的步数
CORPORA = {"原来的.txt": 1500, "长的.txt": 2300, "短的.txt": 900}  # {文件: 字数}
WHOLE_LINE = re.compile(r"(Best|Last|Kept) validate loss (\S+) \(Step (\d+)\), (\S+) nats/char")


@dataclass(frozen=True)
class Leg:
    """一次运行。"""

    batch_size: int = 8
    accumulation_steps: int = 1
    epochs: int = 2
    max_steps: int | None = None
    eval_iter: int | None = None
    keep: str = "best"
    corpus: str = "原来的.txt"
    stops_after: float | None = None  # 走完余下步数的这一部分时收到 SIGTERM；None 是做完
    loses_model: bool = False  # 运行之前 model.pth 不见了

    def flags(self) -> list:
        names = ("batch_size", "accumulation_steps", "epochs", "max_steps", "eval_iter", "keep")
        given = {name: getattr(self, name) for name in names if getattr(self, name) is not None}
        return [part for name, value in given.items() for part in (f"--{name}", value)]


CHANGES = {
    "batch_size": [2, 3, 5, 16],
    "accumulation_steps": [2, 3],
    "epochs": [1, 3, 4],
    "max_steps": [40, 70],
    "eval_iter": [1, 2, 3],
    "keep": ["last", "best"],
    "corpus": list(CORPORA),
    "loses_model": [True],
}


def draw_legs(generator: random.Random) -> list[Leg]:
    """两三次运行，每次比上一次改一两样；前面的有时也做完。"""
    legs = [Leg(keep=generator.choice(("best", "last")), eval_iter=generator.choice((None, 1)))]
    for _ in range(generator.choice((1, 1, 2))):
        names = generator.sample(list(CHANGES), generator.choice((1, 1, 2)))
        changes = {name: generator.choice(CHANGES[name]) for name in names}
        legs.append(replace(legs[-1], **{"loses_model": False, **changes}))
    stops = [generator.choice((None, *[generator.uniform(0.1, 0.95) for _ in range(4)])) for _ in legs[:-1]]
    return [replace(leg, stops_after=stop) for leg, stop in zip(legs, [*stops, None], strict=True)]


class Text:
    """一份语料的训练和验证部分，切成窗口。"""

    def __init__(self, path: Path, tokenizer: Tokenizer):
        text = path.read_text(encoding="utf-8")
        boundary = split_point(len(text))
        self.train, validate = (torch.tensor(tokenizer.encode(part)) for part in (text[:boundary], text[boundary:]))
        starts = range(0, len(validate) - CONTEXT, CONTEXT)
        self.validate = torch.stack([validate[start : start + CONTEXT + 1] for start in starts])
        self.num_starts = len(self.train) - CONTEXT
        self.epoch_size = self.num_starts // CONTEXT
        characters, _ = tokenizer.count_text(self.validate[:, 1:].flatten())
        self.tokens_per_character = self.validate[:, 1:].numel() / characters

    def order(self, epoch: int) -> list[int]:
        sampler = EpochSampler(self.num_starts, SEED, CONTEXT)
        sampler.epoch = epoch
        return list(sampler)

    def windows(self, starts: list[int]) -> Tensor:
        return torch.stack([self.train[start : start + CONTEXT + 1] for start in starts])

    def measured(self, eval_iter: int | None) -> Tensor:
        """每次评估看的窗口。"""
        total = len(self.validate)
        count = min(total, eval_iter * EVAL_BATCH if eval_iter else total)
        return self.validate[[number * total // count for number in range(count)]]


@dataclass
class Weights:
    """某一步的权重。"""

    step: int
    state: dict[str, Tensor]
    loss: float | None = None  # 在现在的样本上


@dataclass
class Replay:
    """最朴素的训练循环，把几次运行重算一遍。"""

    texts: dict[str, Text]
    step: int = 0
    epoch: int = 1
    done: int = 0
    samples: int = 0
    learning_rate: float = 0.0
    kept: Weights | None = None
    leg: Leg | None = None
    is_finished: bool = False
    losses: dict[tuple, dict[int, float]] = field(default_factory=dict)  # {量的样本: {步: 验证损失}}

    def __post_init__(self):
        torch.manual_seed(SEED)
        self.model = LanguageModel(tiny_config())
        groups = [[p for p in self.model.parameters() if (p.dim() > 1) is is_matrix] for is_matrix in (True, False)]
        decays = [{"params": group, "weight_decay": decay} for group, decay in zip(groups, (0.1, 0.0), strict=True)]
        self.optimizer = torch.optim.AdamW(decays, betas=(0.9, 0.95))

    @property
    def text(self) -> Text:
        return self.texts[self.leg.corpus]

    def begin(self, leg: Leg) -> None:
        """开始一次运行。"""
        old, self.leg = self.leg, leg
        if leg.loses_model:
            self.kept = None
        if old:
            share = self.done, self.texts[old.corpus].epoch_size
            self.done = share[0] * self.text.epoch_size // share[1]
            same_limits = (old.epochs, old.max_steps) == (leg.epochs, leg.max_steps)
            self.is_finished = self.is_finished and same_limits
        if leg.keep == "best" and self.kept and self.kept.loss is not None:
            self.kept.loss = self.measure(self.kept.state)

    def updates_left(self) -> int:
        """一次一次地数到最后一轮结束。"""
        leg, count, epoch, done = self.leg, 0, self.epoch, self.done
        while epoch < leg.epochs or epoch == leg.epochs and done < self.text.epoch_size:
            if done >= self.text.epoch_size:
                epoch, done = epoch + 1, 0
            done += leg.batch_size * leg.accumulation_steps
            count += 1
        return count

    def steps_left(self) -> int:
        if self.is_finished:
            return 0
        return max(0, min(self.updates_left(), (self.leg.max_steps or 10**9) - self.step))

    def run(self, steps: int, is_stopped: bool) -> None:
        """走 steps 步，之后被打断，或做完。"""
        for _ in range(steps):
            self.evaluate_when_due()
            self.update()
        self.evaluate_when_due(not is_stopped)
        wants_last = self.leg.keep == "last" and (self.kept is None or self.kept.step != self.step)
        if self.kept is None or wants_last:
            self.kept = Weights(self.step, self.snapshot(), None if is_stopped else self.measured_losses[self.step])
        self.is_finished = not is_stopped

    @property
    def measured_losses(self) -> dict[int, float]:
        key = tuple(self.text.measured(self.leg.eval_iter).flatten().tolist())
        return self.losses.setdefault(key, {})

    def evaluate_when_due(self, is_last: bool = False) -> None:
        """刚在这些样本上评估过这一步就不再评估；换过样本，这一步要再评估。"""
        if (self.step % EVAL_FREQ and not is_last) or self.evaluated == (self.step, id(self.measured_losses)):
            return
        self.evaluated = self.step, id(self.measured_losses)
        loss = self.measured_losses[self.step] = self.measure(self.model.state_dict())
        is_better = self.kept is None or self.kept.loss is None or loss < self.kept.loss
        if self.step and (is_better or self.leg.keep == "last"):
            self.kept = Weights(self.step, self.snapshot(), loss)

    evaluated: tuple = (-1, 0)

    def snapshot(self) -> dict[str, Tensor]:
        return {name: tensor.clone() for name, tensor in self.model.named_parameters()}

    def measure(self, state: dict[str, Tensor], windows: Tensor | None = None) -> float:
        windows = self.text.measured(self.leg.eval_iter) if windows is None else windows
        before = self.snapshot()
        self.model.load_state_dict(state, strict=False)
        with torch.no_grad():
            loss = F.cross_entropy(self.model(windows[:, :-1]).flatten(0, 1), windows[:, 1:].flatten()).item()
        self.model.load_state_dict(before, strict=False)
        return loss

    def update(self) -> None:
        """一步：余下的样本里取一次更新的。"""
        leg, size = self.leg, self.text.epoch_size
        total = leg.epochs * math.ceil(size / (leg.batch_size * leg.accumulation_steps))
        progress = max((total - self.updates_left()) / total, self.step / (leg.max_steps or math.inf))
        if self.done >= size:
            self.epoch, self.done = self.epoch + 1, 0
        starts = self.text.order(self.epoch)[self.done :][: leg.batch_size * leg.accumulation_steps]
        for first in range(0, len(starts), leg.batch_size):
            part = starts[first : first + leg.batch_size]
            windows = self.text.windows(part)
            loss = F.cross_entropy(self.model(windows[:, :-1]).flatten(0, 1), windows[:, 1:].flatten())
            (loss * len(part) / len(starts)).backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.learning_rate = LEARNING_RATE * min(1.0, (self.step + 1) / (WARMUP + 1)) * (1 - progress)
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.step, self.done, self.samples = self.step + 1, self.done + len(starts), self.samples + len(starts)


def stop_after(steps: int) -> Callable[[], None]:
    """子进程里，训练了 steps 步之后收到 SIGTERM。"""

    def arm() -> None:
        calls = iter(range(1 - REHEARSED, 10**6))
        stop = lambda *_: os.kill(os.getpid(), signal.SIGTERM) if next(calls) == steps else None  # noqa: E731
        register_optimizer_step_post_hook(stop)

    return arm


def run_leg(folder: Path, leg: Leg, is_first: bool, steps: int | None) -> SoakResult:
    """运行程序；steps 是走几步之后停下。"""
    if leg.loses_model:
        (folder / "model.pth").unlink(missing_ok=True)
    flags = ["--config", "tiny.json", "--data_path", leg.corpus, *leg.flags(), "--dtype", "float32"]
    flags += [] if is_first else ["--resume", "--allow_data_change"]
    in_child = stop_after(steps) if steps is not None else lambda: None
    result = run_forked("pretrain.py", *flags, cwd=folder, timeout=300, in_child=in_child)
    expected = 0 if steps is None else 128 + signal.SIGTERM
    assert result.code == expected and "Traceback" not in result.stderr, (result.code, result.stderr)
    return result


def prepare(folder: Path) -> dict[str, Text]:
    """写好配置和几份语料。分词器是在第一份上训练的。"""
    folder.mkdir()
    training = {"learning_rate": LEARNING_RATE, "eval_freq": EVAL_FREQ, "warmup_steps": WARMUP}
    write_config(folder, training=training)
    text = (ROOT / "data" / "西游记.txt").read_text(encoding="utf-8")
    for name, length in CORPORA.items():
        (folder / name).write_text(
            text[:length] if name != "短的.txt" else text[5000 : 5000 + length], encoding="utf-8"
        )


def check_end(folder: Path, replay: Replay, result: SoakResult) -> None:
    """做完之后：日志、文件里的权重、最后一行，都与重算的相同。"""
    log = [json.loads(line) for line in (folder / "model.pth.log.jsonl").read_text(encoding="utf-8").splitlines()]
    last, leg, kept = log[-1], replay.leg, replay.kept
    assert (last["step"], last["epoch"], last["tokens"]) == (replay.step, replay.epoch, replay.samples * CONTEXT)
    assert math.isclose(last["learning_rate"], replay.learning_rate, rel_tol=1e-9), last
    assert f"共 {replay.step:,} 步" in result.stdout, result.stdout
    file = read_model_file(folder / "model.pth")
    assert file.origin["step"] == kept.step, (file.origin, kept.step)
    distance = sum((file.weights[name] - value).square().sum().item() for name, value in kept.state.items())
    length = sum(value.square().sum().item() for value in kept.state.values())
    assert math.sqrt(distance / length) < 1e-3, f"权重差 {math.sqrt(distance / length):.2g}"
    name, loss, step, per_character = WHOLE_LINE.search(result.stdout).groups()
    lowest = min((loss for step, loss in replay.measured_losses.items() if step), default=kept.loss)
    is_best = kept.loss <= lowest
    assert name == ("Last" if leg.keep == "last" else "Best" if is_best else "Kept"), (name, kept.loss, lowest)
    whole = replay.measure(kept.state, replay.text.validate)
    assert int(step) == kept.step and math.isclose(float(loss), whole, abs_tol=2e-3), (loss, whole)
    assert math.isclose(float(per_character), whole * replay.text.tokens_per_character, abs_tol=5e-3)


def change_between_runs(count: int, seed: int, folder: Path) -> str:
    """每例抽两三次运行，从命令行做一遍，再重算一遍。"""
    torch.set_num_threads(1)
    num_runs = 0
    for index in range(count):
        legs, case = draw_legs(random.Random(f"{seed} {index}")), folder / f"changes-{index}"
        prepare(case)
        try:
            check_case(case, legs)
        except AssertionError as error:
            raise AssertionError(f"第 {index} 例：{legs}：{error}") from error
        num_runs += len(legs)
    return f"{count:,} 例共 {num_runs:,} 次运行，样本数、轮数、学习率、权重和最后一行都与重算的相同"


def check_case(folder: Path, legs: list[Leg]) -> None:
    replay = None
    for number, leg in enumerate(legs):
        if replay:
            replay.begin(leg)
        steps = replay.steps_left() if replay else FIRST_STEPS
        stop = None if leg.stops_after is None or steps < 2 else max(1, int(leg.stops_after * steps))
        result = run_leg(folder, leg, number == 0, stop)
        if replay is None:
            tokenizer = Tokenizer.from_state(read_model_file(folder / "model.pth").tokenizer)
            replay = Replay({name: Text(folder / name, tokenizer) for name in CORPORA})
            replay.begin(leg)
            steps = replay.steps_left()
        replay.run(steps if stop is None else stop, stop is not None)
    check_end(folder, replay, result)


def measures() -> Iterator[tuple[str, int, Callable[[int, int, Path], str]]]:
    """(名字, 个数, 函数)"""
    yield "改了再接着训练", 300, change_between_runs
