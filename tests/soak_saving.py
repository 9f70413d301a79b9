"""保存占训练多少时间：每种配置真的存几次检查点，与默认的间隔相比。"""

import dataclasses
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from soak_resume import make_trainer, start_run

from conftest import ROOT
from model.config import ModelConfig, count_parameters
from model.language_model import LanguageModel
from utils.config_file import read_config
from utils.optimizers import build_optimizers
from utils.settings import TrainingSettings
from utils.training_run import SAVE_SECONDS

CONFIGS = ("pocket_config_3M", "pocket_config_12M", "gpt2_config_124M")


def saving_share(count: int, seed: int, folder: Path) -> str:
    """存一次检查点几秒，占默认间隔的百分之几；占得多的，程序会把间隔拉长到占 2 %。"""
    parts = []
    for name in CONFIGS[: max(1, count)]:
        seconds, num_bytes = time_of_saving(name, folder / name)
        share = f"{seconds / SAVE_SECONDS:.2%}"
        parts.append(f"{name}（{num_bytes / 1e6:,.0f} MB）{seconds:.2f} 秒，{share}")
    return "；".join(parts)


def time_of_saving(name: str, folder: Path) -> tuple[float, int]:
    """-> (存一次的中位秒数, 检查点的字节数)"""
    cfg = read_config(ROOT / "configs" / f"{name}.json", ModelConfig.from_dict).model
    cfg = dataclasses.replace(cfg, context_length=16)  # 与存多少无关，只为跑得快
    assert sum(count_parameters(cfg).values()) > 10**6
    trainer = make_trainer(TrainingSettings(batch_size=4))
    trainer.model = LanguageModel(cfg)
    trainer.parallel.wrap(trainer.model)
    trainer.optimizers = build_optimizers(trainer.model, trainer.settings)
    folder.mkdir()
    run = start_run(trainer, folder / "model.pth")
    trainer._train_step(next(trainer._grouped_batches()), 0.0)  # 优化器有了状态
    run.files.add_record(trainer.evaluate(run.budget))
    seconds = []
    for _ in range(3):
        trainer.step += 1
        begin = time.perf_counter()
        run._save_checkpoint()
        seconds.append(time.perf_counter() - begin)
    return statistics.median(seconds), next(run.checkpoints.folder.iterdir()).stat().st_size


def measures() -> Iterator[tuple[str, int, Callable[[int, int, Path], str]]]:
    """(名字, 个数, 函数)"""
    torch.set_num_threads(1)
    yield "保存占的时间", 3, saving_share
