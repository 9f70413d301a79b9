"""utils/device.py：设备和精度的选择。"""

import pytest
import torch

from utils.device import autocast, check_memory, choose_device, choose_dtype
from utils.errors import RunError, UserError

CPU = torch.device("cpu")


def test_auto_prefers_an_accelerator(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    assert choose_device("auto").type == "cpu"
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert choose_device("auto").type == "mps"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert choose_device("auto").type == "cuda"


@pytest.mark.parametrize("name", ["cuda", "mps"])
def test_absent_device_is_an_error(name, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with pytest.raises(UserError, match=f"未检测到可用的 {name.upper()}"):
        choose_device(name)


def test_dtype_is_what_was_asked_or_what_the_processor_has(monkeypatch):
    assert choose_dtype("float32", CPU) == torch.float32
    assert choose_dtype("bfloat16", CPU) == torch.bfloat16
    for has, expected in ((True, torch.bfloat16), (False, torch.float32)):
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda has=has: has)
        assert choose_dtype("auto", CPU) == expected


def test_autocast_multiplies_in_bfloat16_and_keeps_float32_weights():
    layer, x = torch.nn.Linear(4, 4), torch.randn(2, 4)
    with autocast(CPU, torch.bfloat16):
        assert layer(x).dtype == torch.bfloat16
    with autocast(CPU, torch.float32):
        assert layer(x).dtype == torch.float32
    assert layer.weight.dtype == torch.float32


def test_a_model_that_cannot_fit_is_refused_with_numbers():
    check_memory(1, CPU, "")
    with pytest.raises(RunError, match=r"预计需要 94000000.0 GB，可用 .* GB。减小 emb_dim"):
        check_memory(94 * 10**15, CPU, "减小 emb_dim。")
