"""显卡上的路径；没有显卡时跳过，其余测试照常。"""

import pytest
import torch
from torch.nn import functional as F

from conftest import run, tiny_config, write_config
from model.language_model import LanguageModel
from utils.cross_entropy import IGNORE_INDEX, cross_entropy
from utils.data_loader import EpochSampler, WindowDataset, create_dataloader
from utils.device import choose_device
from utils.optimizers import build_optimizers
from utils.settings import TrainingSettings
from utils.train_utils import Trainer, copy_to

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="没有 CUDA 显卡")
CUDA = torch.device("cuda")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_pretrain_and_generate_on_the_gpu(tmp_path, corpus_text, dtype):
    (tmp_path / "corpus.txt").write_text(corpus_text, encoding="utf-8")
    arguments = ("--config", write_config(tmp_path), "--data_path", "corpus.txt", "--device", "cuda", "--dtype", dtype)
    result = run("pretrain.py", *arguments, "--max_steps", 20, cwd=tmp_path)
    assert result.code == 0, result.stderr
    result = run("generate.py", "--prompt", "悟空", "--device", "cuda", "--dtype", dtype, cwd=tmp_path)
    assert result.code == 0 and result.stdout.startswith("悟空"), result.stderr


def test_logits_equal_the_cpu():
    model, token_ids = LanguageModel(tiny_config()).eval(), torch.randint(0, 300, (2, 16))
    with torch.inference_mode():
        expected = model(token_ids)
        result = model.to(CUDA)(token_ids.to(CUDA)).cpu()
    torch.testing.assert_close(result, expected, atol=1e-3, rtol=1e-3)


def test_batches_are_pinned_and_copied_asynchronously():
    loader = create_dataloader(WindowDataset(torch.arange(100, dtype=torch.int32), 8, 8), batch_size=4)
    batch = next(iter(loader))
    assert all(tensor.is_pinned() for tensor in batch)
    assert all(tensor.device.type == "cuda" for tensor in copy_to(CUDA, batch))


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
@pytest.mark.parametrize("compiled", [False, True])
def test_one_training_step_follows_the_cpu(optimizer, compiled):
    losses = {}
    for device in (torch.device("cpu"), CUDA):
        torch.manual_seed(0)
        settings = TrainingSettings(batch_size=4, optimizer=optimizer, learning_rate=0.01)
        model = LanguageModel(tiny_config()).to(device)
        if compiled and device == CUDA:
            model.compile()
        loader = create_dataloader(WindowDataset(torch.arange(65, dtype=torch.int32), 16, 16), 4, EpochSampler(4, 1))
        trainer = Trainer(model, build_optimizers(model, settings), loader, loader, settings)
        losses[device.type] = [trainer._train_step(list(loader), progress=0.0) for _ in range(5)]
    assert losses["cuda"] == pytest.approx(losses["cpu"], abs=0.02)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_cross_entropy_equals_the_reference(dtype):
    logits, targets = torch.randn(6, 300, device=CUDA, dtype=dtype), torch.randint(300, (6,), device=CUDA)
    targets[2] = IGNORE_INDEX
    expected = F.cross_entropy(logits.float(), targets, ignore_index=IGNORE_INDEX)
    torch.testing.assert_close(cross_entropy(logits, targets), expected)


def test_float32_may_use_tf32():
    choose_device("cuda")
    assert torch.get_float32_matmul_precision() == "high"


def test_adamw_is_fused():
    optimizers = build_optimizers(LanguageModel(tiny_config()).to(CUDA), TrainingSettings())
    assert optimizers[0].defaults["fused"]
