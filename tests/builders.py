"""测试共用的小训练和小数据：几个测试文件要的同一样东西，只在这里造。"""

import random

import torch
from torch import Tensor

from conftest import tiny_config
from model.language_model import LanguageModel
from utils.budget import Budget
from utils.data_loader import EpochSampler, WindowDataset, create_dataloader
from utils.optimizers import build_optimizers
from utils.run_identity import RunIdentity
from utils.settings import TrainingSettings
from utils.step_history import StepHistory
from utils.train_utils import Evaluation, Trainer
from utils.training_run import TrainingRun

CONTEXT = 16
SETTINGS = TrainingSettings(batch_size=4, learning_rate=0.003, eval_freq=5, warmup_steps=2)
RECORD = Evaluation(1, 7, 448, 1.5, 0.001, 9.3754, 9.4326)
GOOD, BAD = ("回家吃饭", "明天开会", "孩子放学", "谢谢你", "晚上见"), ("免费领取", "点击链接", "中奖", "加微信", "贷款")
WORDS = ("悟空", "八戒", "沙僧", "唐僧", "白马", "龙王", "妖怪", "菩萨", "猴王", "大圣")


def random_ids(num_windows: int, generator: torch.Generator | None = None) -> Tensor:
    """随机的文字，正好切成 num_windows 个窗口。"""
    return torch.randint(0, 300, (num_windows * CONTEXT + 1,), generator=generator)


def windows_loaders(train_ids: Tensor, validate_ids: Tensor, batch_size: int = 4, seed: int = 123) -> tuple:
    """-> (训练, 验证)；seed 管训练的次序。"""
    train, validate = (WindowDataset(token_ids, CONTEXT, CONTEXT) for token_ids in (train_ids, validate_ids))
    return create_dataloader(train, batch_size, EpochSampler(len(train), seed)), create_dataloader(validate, batch_size)


def build_trainer(settings: TrainingSettings, loaders: tuple, *autocast, **changes) -> Trainer:
    """在 loaders 上训练一个小模型；changes 改模型的配置。"""
    model = LanguageModel(tiny_config(**changes))
    return Trainer(model, build_optimizers(model, settings), *loaders, settings, *autocast)


def make_loaders(batch_size: int = 4) -> tuple:
    """训练三十个窗口，验证其中的前七个；每次都一样。"""
    token_ids = random_ids(30, torch.Generator().manual_seed(7))
    return windows_loaders(token_ids, token_ids[: CONTEXT * 7 + 1], batch_size)


def make_trainer(settings: TrainingSettings = SETTINGS, **changes) -> Trainer:
    """每次造出的都一样，初始的权重也一样；一轮三十个窗口。"""
    torch.manual_seed(0)
    return build_trainer(settings, make_loaders(settings.batch_size), **changes)


def make_short_trainer(**settings) -> Trainer:
    """权重和文字由当时的随机状态定；一轮五步，每步四个窗口。"""
    token_ids = random_ids(20)
    loaders = windows_loaders(token_ids, token_ids[: CONTEXT * 4 + 1], seed=1)
    return build_trainer(TrainingSettings(**{"batch_size": 4, "eval_freq": 2, **settings}), loaders)


def record_losses(trainer: Trainer) -> list[float]:
    losses = []
    trainer.on_step = lambda loss, progress: losses.append(loss)
    return losses


def run_steps(trainer: Trainer, total_steps: int):
    torch.manual_seed(1)
    losses = record_losses(trainer)
    records = list(trainer.run(Budget(max_steps=total_steps)))
    return losses, records


def after_step(trainer: Trainer, step: int, act) -> None:
    """第 step 次更新参数之后做 act()。"""
    calls = iter(range(1, 10**6))
    trainer.optimizers[0].register_step_post_hook(lambda *_: act() if next(calls) == step else None)


def before_step(trainer: Trainer, step: int, act) -> None:
    """第 step 次更新参数之前做 act()。"""
    calls = iter(range(1, 10**6))
    trainer.optimizers[0].register_step_pre_hook(lambda *_: act() if next(calls) == step else None)


def start(trainer: Trainer, model_path, budget: Budget) -> TrainingRun:
    return TrainingRun(
        trainer, budget, model_path, RunIdentity.of(trainer.model, "数据", trainer.settings, torch.float32, {})
    )


def filled(num_steps: int, history: StepHistory | None = None, start: int = 1) -> StepHistory:
    history = history or StepHistory()
    for step in range(start, num_steps + 1):
        history.add(step=step, tokens=64 * step, seconds=0.5 * step, loss=1000 / step, learning_rate=1e-3 * (step % 7))
    return history


def make_texts(count: int) -> list[tuple[str, str]]:
    """两类各有自己的词，一看就分得出。"""
    generator = random.Random(0)
    words = {"正常": GOOD, "垃圾": BAD}
    labels = [("正常", "垃圾", "正常")[i % 3] for i in range(count)]
    return [(label, "，".join(generator.sample(words[label], 3)) + f"{i}") for i, label in enumerate(labels)]


def make_records() -> list[dict]:
    """照抄第一个字；留出的问话不在训练里。"""
    words = [first + second for first in WORDS for second in WORDS]
    return [
        {"instruction": "第一个字", "input": word, "output": word[0], "task": "首字", "split": split}
        for index, word in enumerate(words)
        for split in (["held_out"] if index % 10 == 3 else ["train"])
    ]
