"""挑权重的格式：同一种格式，有的处理器读得飞快，有的反而慢，所以在这台机器上量一次，记下来。"""

import json
import time
from pathlib import Path

import torch
from torch import nn

from utils import files
from utils.compact_weights import FORMATS
from utils.device import processor_name
from utils.errors import RunError

MIN_PARAMETERS = 10_000_000  # 再小的模型，权重本来就放得进处理器的缓存，读它不花多少时间
CANDIDATES = ("float32", "float16", "bfloat16")  # int8 的误差大一些，要用户自己点名
WORTHWHILE = 0.9  # 至少要省一成时间，才值得不用 float32
SLICE_ELEMENTS, NUM_SLICES = 1 << 21, 8  # 轮流读 8 块、共一千六百万个数，缓存里放不下
REPEATS = 5


def fastest_format(model: nn.Module) -> str:
    """CANDIDATES 里最快的一种。量得的结果记在 CACHE_DIR，同一台机器上每次都用同一种，生成的文字才能重现。"""
    if sum(parameter.numel() for parameter in model.parameters()) < MIN_PARAMETERS:
        return "float32"
    path = files.CACHE_DIR / "weight_format.json"
    machine = f"{processor_name()}，{torch.get_num_threads()} 线程，torch {torch.__version__}"
    remembered = _read(path)
    if remembered.get(machine) not in CANDIDATES:
        largest = max((m for m in model.modules() if isinstance(m, nn.Linear)), key=lambda m: m.weight.numel())
        remembered[machine] = choose(measure(largest.weight.detach()))
        _write(path, remembered)
    return remembered[machine]


@torch.inference_mode()
def measure(weight: torch.Tensor) -> dict[str, float]:
    """用 weight (out_features, in_features) 的几块量各种格式算一行的时间。-> {格式: 秒}"""
    rows = max(1, SLICE_ELEMENTS // weight.shape[1])
    linears = [_linear(block) for block in weight.split(rows)[:NUM_SLICES]]
    layers = {name: [FORMATS[name](linear) for linear in linears] for name in CANDIDATES if name in FORMATS}
    layers["float32"] = linears
    x, seconds = torch.ones(1, weight.shape[1]), {}
    for name in CANDIDATES * REPEATS:
        begin = time.perf_counter()
        for layer in layers[name]:
            layer(x)
        seconds[name] = min(seconds.get(name, float("inf")), time.perf_counter() - begin)
    return seconds


def choose(seconds: dict[str, float]) -> str:
    """最快的一种；比 float32 快得不明显就用 float32。"""
    fastest = min(seconds, key=seconds.get)
    return fastest if seconds[fastest] < WORTHWHILE * seconds["float32"] else "float32"


def _linear(weight: torch.Tensor) -> nn.Linear:
    linear = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
    linear.weight = nn.Parameter(weight, requires_grad=False)
    return linear


def _read(path: Path) -> dict:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return values if isinstance(values, dict) else {}


def _write(path: Path, values: dict) -> None:
    """记不下来（如只读的文件夹）也不要紧，下次再量。"""
    text = json.dumps(values, ensure_ascii=False, indent=2)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        files.write_atomically(path, lambda file: file.write(text.encode("utf-8")))
    except (OSError, RunError):
        return
