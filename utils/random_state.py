"""随机数发生器的状态：取出来、装回去，dropout 便接着原来的序列抽下去。"""

import torch
from torch import Tensor

from utils.processes import is_main, rank


def get_random_state(device: torch.device) -> dict[str, Tensor]:
    """{设备类型: 发生器的状态}，CPU 的和 device 的。"""
    state = {"cpu": torch.get_rng_state()}
    if device.type != "cpu":
        state[device.type] = torch.get_device_module(device).get_rng_state(device)
    return state


def seed_process(seed: int, step: int = 0) -> None:
    """进程 0 以外的进程各换一个种子，dropout 丢弃的才各不相同；权重都已建立好。step 是从第几步起。"""
    if not is_main():
        torch.manual_seed((seed + 0x9E3779B97F4A7C15 * rank() + 0xBF58476D1CE4E5B9 * step) % 2**63)


def set_random_state(device: torch.device, state: dict[str, Tensor]) -> None:
    """恢复 get_random_state 的结果；在别的设备上取得的只恢复 CPU 的部分。"""
    torch.set_rng_state(state["cpu"])
    if device.type in state and device.type != "cpu":
        torch.get_device_module(device).set_rng_state(state[device.type], device)
