"""显卡上的路径；没有显卡时跳过，其余测试照常。"""

import pytest
import torch

from conftest import run, tiny_config, write_config
from model.language_model import LanguageModel
from utils.data_loader import WindowDataset, create_dataloader
from utils.optimizers import build_optimizers
from utils.settings import TrainingSettings
from utils.train_utils import copy_to

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


def test_adamw_is_fused():
    optimizers = build_optimizers(LanguageModel(tiny_config()).to(CUDA), TrainingSettings())
    assert optimizers[0].defaults["fused"]
