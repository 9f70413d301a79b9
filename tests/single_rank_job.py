"""一个进程也组成一组：Replicated 和 Sharded 在参数说的设备上各练几步，与 OneProcess 的损失一起打印。只给测试用。

只有一块显卡时，这样能走到 NCCL、DDP 和 FSDP 的代码。
"""

import json
import os
import sys
from functools import partial
from pathlib import Path

import torch

from conftest import tiny_config
from model.language_model import LanguageModel
from utils import process_group, processes
from utils.data_loader import EpochSampler, WindowDataset, create_dataloader
from utils.device import choose_dtype
from utils.fsdp import Sharded
from utils.model_file import save_model
from utils.parallel import OneProcess, Replicated
from utils.settings import TrainingSettings
from utils.training_program import build_trainer


def train(parallel: OneProcess, settings: TrainingSettings, device: torch.device, dtype: torch.dtype) -> list[float]:
    torch.manual_seed(0)
    model = parallel.create(partial(LanguageModel, tiny_config()), device)
    dataset = WindowDataset(torch.arange(161, dtype=torch.int32) % 97, 16, 16)
    loader = create_dataloader(dataset, settings.batch_size, EpochSampler(len(dataset), 1))
    trainer = build_trainer(model, (loader, loader), settings, dtype, parallel)
    groups = trainer._grouped_batches()
    losses = [trainer._train_step(next(groups), progress=0.0) for _ in range(6)]
    with parallel.writing_together(model), torch.no_grad():
        model.eval().next_logits(torch.tensor([[1, 2, 3]], device=device))
    if parallel.mode == "fsdp":
        model.tokenizer_state = {"type": "gpt2"}
        save_model(Path("fsdp.pth"), model)
        assert torch.load("fsdp.pth", weights_only=True).keys() == model.state_dict().keys()
    return losses


def main() -> None:
    device, dtype = torch.device(sys.argv[1]), sys.argv[2]
    if processes.world_size() != 1:
        raise SystemExit("只用一个进程")
    process_group.start(device, patience=60)
    settings = TrainingSettings(batch_size=3, accumulation_steps=2, learning_rate=0.01)
    dtype = choose_dtype(dtype, device)
    kinds = {"one": OneProcess, "ddp": Replicated, "fsdp": partial(Sharded, dtype)}
    print(json.dumps({name: train(make(), settings, device, dtype) for name, make in kinds.items()}), flush=True)
    os._exit(0)


if __name__ == "__main__":
    main()
