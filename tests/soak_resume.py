"""逐位相同的续练：在一次两轮训练里每一个能停的地方停下，接着训练，与不中断的比较。"""

import contextlib
import json
import random
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from builders import CONTEXT, build_trainer, random_ids, windows_loaders

from conftest import timeless_report
from utils.budget import ENDLESS, Budget
from utils.device import autocast
from utils.errors import Terminated
from utils.model_file import read_model_file
from utils.run_identity import RunIdentity
from utils.settings import TrainingSettings
from utils.train_utils import Trainer
from utils.training_run import TrainingRun

CPU = torch.device("cpu")
NUM_WINDOWS = 26  # 每批 4 个：一轮 7 批，最后一批只有 2 个；累积 3 批，一轮 3 步
NUM_EPOCHS = 2


@dataclass(frozen=True)
class Variant:
    """一种训练的做法。"""

    optimizer: str
    dtype: torch.dtype
    keep: str = "best"

    def settings(self, **changes) -> TrainingSettings:
        values = {
            "batch_size": 4,
            "accumulation_steps": 3,
            "eval_freq": 2,
            "learning_rate": 0.003,
            "epochs": NUM_EPOCHS,
        }
        return TrainingSettings(optimizer=self.optimizer, keep=self.keep, **{**values, **changes})


VARIANTS = [Variant(name, dtype) for name in ("adamw", "muon") for dtype in (torch.float32, torch.bfloat16)]
VARIANTS.append(Variant("adamw", torch.float32, keep="last"))


@dataclass(frozen=True)
class Outcome:
    """一次训练的全部结果，浮点数都是十六进制，好逐位比较。"""

    losses: dict[int, str]  # {步: 训练损失}
    log: list[dict]
    curve: bytes
    report: dict
    weights: dict[str, torch.Tensor]  # 最后的
    kept: tuple  # 模型文件里的：第几步、验证损失、权重

    def differences(self, other: "Outcome") -> list[str]:
        """与 other 不同的项。"""
        names = [name for name in ("losses", "log", "curve", "report") if getattr(self, name) != getattr(other, name)]
        pairs = {"weights": (self.weights, other.weights), "kept": (self.kept[2], other.kept[2])}
        names += [name for name, pair in pairs.items() if not _same_tensors(*pair)]
        return names + (["kept"] if self.kept[:2] != other.kept[:2] else [])


def _same_tensors(first: dict, second: dict) -> bool:
    return first.keys() == second.keys() and all(torch.equal(value, second[name]) for name, value in first.items())


def make_trainer(settings: TrainingSettings, dtype: torch.dtype = torch.float32, seed: int = 5) -> Trainer:
    """小模型和固定的数据；seed 管初始的权重和 dropout。"""
    torch.manual_seed(seed)
    token_ids = random_ids(NUM_WINDOWS, torch.Generator().manual_seed(7))
    loaders = windows_loaders(token_ids, token_ids[: CONTEXT * 7 + 1], settings.batch_size, settings.seed)
    return build_trainer(settings, loaders, autocast(CPU, dtype), drop_rate=0.2)


def start_run(
    trainer: Trainer, model_path: Path, dtype: torch.dtype = torch.float32, data: str = "数据"
) -> TrainingRun:
    settings = trainer.settings
    identity = RunIdentity.of(trainer.model, data, settings, dtype, {})
    return TrainingRun(trainer, Budget(settings.epochs, settings.max_steps or ENDLESS), model_path, identity)


@contextlib.contextmanager
def recorded_losses(trainer: Trainer, losses: dict[int, str]) -> Iterator[None]:
    """把每一步的训练损失记进 losses。"""
    train_step = trainer._train_step

    def step(batches: list, progress: float) -> float:
        loss = train_step(batches, progress)
        losses[trainer.step] = loss.hex()
        return loss

    trainer._train_step = step
    yield


def run_and_stop(variant: Variant, model_path: Path, stop_at: int | None, losses: dict[int, str]) -> Trainer:
    """训练（有检查点就接着），第 stop_at 次问要不要停时收到 SIGTERM；返回 trainer。"""
    trainer = make_trainer(variant.settings(), variant.dtype, seed=random.randrange(10**6) if losses else 5)
    run = start_run(trainer, model_path, variant.dtype)
    run.prepare(is_resuming=run.checkpoints.folder.exists())
    asked, check_stop = iter(range(10**9)), trainer.check_stop

    def check() -> None:
        if next(asked) == stop_at:
            signal.raise_signal(signal.SIGTERM)
        check_stop()

    trainer.check_stop = check
    with recorded_losses(trainer, losses):
        run.run()
    trainer.num_asked = next(asked)
    return trainer


def outcome_of(trainer: Trainer, model_path: Path, losses: dict[int, str]) -> Outcome:
    log = [json.loads(line) for line in Path(f"{model_path}.log.jsonl").read_text(encoding="utf-8").splitlines()]
    for record in log:
        del record["seconds"]
    file = read_model_file(model_path)
    weights = {name: parameter.detach().clone() for name, parameter in trainer.model.named_parameters()}
    kept = {name: value.clone() for name, value in file.weights.items()}
    origin = file.origin["step"], file.origin["validate_loss"].hex()
    hexed = [{name: value.hex() if isinstance(value, float) else value for name, value in row.items()} for row in log]
    curve, report = Path(f"{model_path}.loss.png").read_bytes(), timeless_report(model_path)
    return Outcome(dict(losses), hexed, curve, report, weights, (*origin, kept))


def interrupted(variant: Variant, folder: Path, stops: list[int]) -> Outcome:
    """依次在 stops 的各处被打断，每次接着训练，最后跑完。"""
    model_path, losses = folder / "model.pth", {}
    for stop_at in stops:
        with contextlib.suppress(Terminated):
            run_and_stop(variant, model_path, stop_at, losses)
    return outcome_of(run_and_stop(variant, model_path, None, losses), model_path, losses)


def uninterrupted(variant: Variant, folder: Path) -> tuple[Outcome, int]:
    """-> (结果, 一共有几处可以停)"""
    losses = {}
    trainer = run_and_stop(variant, folder / "model.pth", None, losses)
    return outcome_of(trainer, folder / "model.pth", losses), trainer.num_asked


def cut_everywhere(count: int, seed: int, folder: Path) -> str:
    """两轮训练里每一批、每次评估的每一批之前各停一次 (count 小时抽查)，再加几次连着停的；四种做法。"""
    generator, num_cuts = random.Random(seed), 0
    for number, variant in enumerate(VARIANTS):
        (folder / f"whole-{number}").mkdir()
        whole, num_places = uninterrupted(variant, folder / f"whole-{number}")
        places = [[place] for place in range(num_places)]
        places += [[generator.randrange(1, 8) for _ in range(6)] for _ in range(5)]
        for stops in places if count >= len(places) else generator.sample(places, count):
            path = folder / f"cut-{num_cuts}"
            path.mkdir()
            different = whole.differences(interrupted(variant, path, stops))
            assert not different, f"{variant} 在 {stops} 停下再接着训练，{different} 不同"
            num_cuts += 1
    return f"AdamW 和 Muon、float32 和 bfloat16，共停 {num_cuts} 次，损失、日志、曲线、权重逐位相同"


def measures() -> Iterator[tuple[str, int, Callable[[int, int, Path], str]]]:
    """(名字, 个数, 函数)"""
    yield "每一处停下再续", 100, cut_everywhere
