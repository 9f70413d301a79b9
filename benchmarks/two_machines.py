"""两台机器一起训练，中途断网，接上再练完：用两个网络命名空间代替两台机器，中间一根虚拟网线 (veth)。

sudo python benchmarks/two_machines.py                # DDP 和 FSDP 各做一遍
sudo python benchmarks/two_machines.py --modes ddp    # 只做一种

要 root 和 iproute2 (Linux)。做的事：两边各启动一个 torchrun，先不打断地练完一次，作比较；再从头练，走到一半拔掉网线，
看两边各说什么、多久停下；插回去，两边照原样启动、加 --resume，练完之后与没有断过的逐位比较。
"""

import argparse
import contextlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
MACHINES = {"pocket_a": "10.77.0.1", "pocket_b": "10.77.0.2"}  # {命名空间: 地址}
PORT, PATIENCE, CUT_STEP = 29400, 10, 10
STEPS, REHEARSED = 30, 4  # 正式走几步，开始前试跑几步
TRAINING = (
    "--max_steps",
    str(STEPS),
    "--eval_freq",
    "5",
    "--eval_iter",
    "2",
    "--save_every",
    "4",
    "--dtype",
    "float32",
)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="两个网络命名空间之间训练，中途断网，再接上。")
    parser.add_argument("--modes", nargs="+", choices=("ddp", "fsdp"), default=("ddp", "fsdp"), help="做哪几种")
    parser.add_argument("--processes", type=int, default=1, help="每台机器几个进程（默认 1）")
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    if os.name != "posix" or os.geteuid() != 0 or not shutil.which("ip"):
        sys.exit("错误：要 root 和 ip 命令（Debian 上 apt-get install iproute2），只用于 Linux。")
    with wired():
        for mode in args.modes:
            with tempfile.TemporaryDirectory() as folder:
                demonstrate(mode, args.processes, Path(folder))


def demonstrate(mode: str, num_processes: int, folder: Path) -> None:
    print(f"## {mode}，两台机器，每台 {num_processes} 个进程", flush=True)
    before = bytes_sent()
    whole = start(mode, num_processes, folder, "whole.pth")
    assert [finish(machine) for machine in whole] == [0, 0], read(folder, "whole.pth")
    each = (bytes_sent() - before) / (STEPS + REHEARSED)
    print(f"不打断的一次：每台机器每步发出 {each / 1e6:.1f} MB（连同评估和保存）", flush=True)
    cut = start(mode, num_processes, folder, "cut.pth")
    wait_for(folder, "cut.pth", f"Step {CUT_STEP:06d}")
    plug("down")
    began = time.monotonic()
    print(f"第 {CUT_STEP} 步之后拔掉网线", flush=True)
    codes = [finish(machine) for machine in cut]
    print(f"两边都停下了，用了 {time.monotonic() - began:.0f} 秒，退出码 {codes}")
    for name in MACHINES:
        lines = (folder / f"cut.pth.{name}.txt").read_text(encoding="utf-8", errors="replace").splitlines()
        print(f"{name}：", *[line for line in lines if line.startswith("错误：")] or ["（没有说什么）"])
    plug("up")
    rest = start(mode, num_processes, folder, "cut.pth", "--resume")
    assert [finish(machine) for machine in rest] == [0, 0], read(folder, "cut.pth")
    print(*re.findall("从第 .* 步继续", read(folder, "cut.pth")))
    same = same_weights(folder / "whole.pth", folder / "cut.pth")
    print(f"练完之后，权重与没有断过的{'逐位相同' if same else '不同'}", flush=True)
    assert same


@contextlib.contextmanager
def wired() -> Iterator[None]:
    """两个命名空间和一根网线；离开时拆掉。"""
    for name in MACHINES:
        ip("netns", "add", name)
    try:
        first, second = MACHINES
        ip("link", "add", "wire", "netns", first, "type", "veth", "peer", "name", "wire", "netns", second)
        for name, address in MACHINES.items():
            ip("-n", name, "addr", "add", f"{address}/24", "dev", "wire")
            ip("-n", name, "link", "set", "lo", "up")
            # torchrun 读 TCPStore 没有时限，断了网要等系统放弃重传（默认约 15 分钟）才退出；这里只重传 4 次
            ip("netns", "exec", name, "sysctl", "-qw", "net.ipv4.tcp_retries2=4")
        plug("up")
        yield
    finally:
        for name in MACHINES:
            ip("netns", "del", name)


def plug(state: str) -> None:
    """up 插上网线，down 拔掉。"""
    for name in MACHINES:
        ip("-n", name, "link", "set", "wire", state)


def bytes_sent() -> int:
    """第一台机器从网线发出多少字节。"""
    first = next(iter(MACHINES))
    counter = ["ip", "netns", "exec", first, "cat", "/sys/class/net/wire/statistics/tx_bytes"]
    return int(subprocess.run(counter, check=True, capture_output=True).stdout)


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True)


def start(mode: str, num_processes: int, folder: Path, model: str, *flags: str) -> list[subprocess.Popen]:
    """两边各启动一个 torchrun，输出写进 <model>.<命名空间>.txt。"""
    first = next(iter(MACHINES.values()))
    machines = []
    for number, (name, address) in enumerate(MACHINES.items()):
        torchrun = ["-m", "torch.distributed.run", "--nnodes", 2, "--node_rank", number, "--nproc_per_node"]
        torchrun += [num_processes, "--rdzv_backend", "c10d", "--rdzv_endpoint", f"{first}:{PORT}"]
        # 命名空间里主机名解析不到自己的地址，谁当主机要明说
        torchrun += ["--rdzv_conf", f"is_host={int(number == 0)}", "--local_addr", address]
        torchrun += ["--rdzv_id", "pocket"]
        program = [ROOT / "pretrain.py", "--config", ROOT / "configs/pocket_config_3M.json"]
        program += ["--data_path", ROOT / "data/西游记.txt", "--model_path", folder / model]
        program += ["--parallel", mode, "--patience", PATIENCE, *TRAINING, *flags]
        command = ["ip", "netns", "exec", name, sys.executable, *torchrun, *program]
        output = (folder / f"{model}.{name}.txt").open("ab")
        env = {**os.environ, "GLOO_SOCKET_IFNAME": "wire", "OMP_NUM_THREADS": "1"}
        machines.append(subprocess.Popen(list(map(str, command)), env=env, stdout=output, stderr=subprocess.STDOUT))
    return machines


def finish(machine: subprocess.Popen) -> int:
    return machine.wait(timeout=300)


def read(folder: Path, model: str) -> str:
    """两边的输出。"""
    paths = sorted(folder.glob(f"{model}.*.txt"))
    return "\n".join(path.read_text(encoding="utf-8", errors="replace") for path in paths)


def wait_for(folder: Path, model: str, text: str) -> None:
    """等到有一边打印了 text。"""
    end = time.monotonic() + 200
    while text not in read(folder, model):
        assert time.monotonic() < end, read(folder, model)
        time.sleep(0.2)


def same_weights(first: Path, second: Path) -> bool:
    import torch

    one, other = (torch.load(path, weights_only=True) for path in (first, second))
    return all(torch.equal(one[name], other[name]) for name in one.keys() - {"_extra_state"})


if __name__ == "__main__":
    main()
