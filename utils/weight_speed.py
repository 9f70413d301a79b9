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

MIN_PARAMETERS = 10_000_000  # 再小的模型，算一个 token 本来就快，省下的时间不值得多一点误差
CANDIDATES = ("float32", "float16", "bfloat16")  # int8 的误差大一些，要用户自己点名
WORTHWHILE = 0.9  # 至少要省一成时间，才值得不用 float32
MEASURED_WEIGHTS = 64_000_000  # 拿模型自己的这么多个权重来量，缓存里多半放不下
REPEATS = 5


def fastest_format(model: nn.Module) -> str:
    """CANDIDATES 里最快的一种。结果按机器和模型大小记在 CACHE_DIR：每次都用同一种，同一个种子才写出同样的文字。"""
    num_parameters = sum(parameter.numel() for parameter in model.parameters())
    if num_parameters < MIN_PARAMETERS:
        return "float32"
    path = files.CACHE_DIR / "weight_format.json"
    threads = f"{torch.get_num_threads()} 线程"
    key = f"{processor_name()}，{threads}，torch {torch.__version__}，{num_parameters:,} 个参数"
    remembered = _read(path)
    if remembered.get(key) not in CANDIDATES:
        remembered[key] = choose(measure(model))
        _write(path, remembered)
    return remembered[key]


@torch.inference_mode()
def measure(model: nn.Module) -> dict[str, float]:
    """从输出层往回取够权重，量各种格式各算一行的时间。-> {格式: 秒}"""
    linears, num_weights = [], 0
    for linear in (module for module in reversed(list(model.modules())) if isinstance(module, nn.Linear)):
        linears.append(linear)
        num_weights += linear.weight.numel()
        if num_weights >= MEASURED_WEIGHTS:
            break
    layers = {name: [FORMATS[name](linear) for linear in linears] for name in CANDIDATES if name in FORMATS}
    layers["float32"] = linears
    inputs = {width: torch.ones(1, width) for width in {linear.in_features for linear in linears}}
    seconds = {}
    for name in CANDIDATES * REPEATS:
        begin = time.perf_counter()
        for linear, layer in zip(linears, layers[name], strict=True):
            layer(inputs[linear.in_features])
        seconds[name] = min(seconds.get(name, float("inf")), time.perf_counter() - begin)
    return seconds


def choose(seconds: dict[str, float]) -> str:
    """最快的一种；比 float32 快得不明显就用 float32。"""
    fastest = min(seconds, key=seconds.get)
    return fastest if seconds[fastest] < WORTHWHILE * seconds["float32"] else "float32"


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
