"""像用户那样从命令行运行我们的程序，每次只要几十毫秒：在已载入 torch 的进程里 fork，子进程扮演新的解释器。

只用于 POSIX。
"""

import faulthandler
import gc
import importlib
import os
import runpy
import signal
import sys
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import BinaryIO, NoReturn

import psutil
import torch

from conftest import ROOT, Result
from utils import files

# 程序用到时才载入的几个，都不在载入时开线程；优化器要用 torch._dynamo，载入它就要一秒
PRELOADED = [
    *("matplotlib.backends.backend_agg", "matplotlib.figure", "tokenizers", "torch._dynamo"),
    *("utils.corpus", "utils.dry_run", "utils.optimizers", "utils.report", "utils.training_run"),
]
REHEARSED = 4  # 每次运行在训练之前试跑的步数
MEMORY = 300_000_000  # 程序以为机器上只有这么多内存：变异出的大模型一开始就被拒绝，不会真的练上几分钟
MAXRSS_UNIT = 1 if sys.platform == "darwin" else 1024  # ru_maxrss 在 macOS 上是字节，在 Linux 上是 KiB


@dataclass(frozen=True)
class SoakResult(Result):
    """一个程序运行完的样子；被信号结束的，退出码是负数。"""

    hung: bool  # 超过时限，被闹钟结束；停在哪里写在 stderr 里
    peak: int  # 内存的峰值比 fork 时多多少字节；与父进程共享的页有些不算，所以可能为负


def run_forked(
    program: str,
    *args: object,
    cwd: Path,
    stdin: bytes = b"",
    encoding: str = "utf-8",
    timeout: int = 60,
    in_child: Callable[[], object] = lambda: None,
    meanwhile: Callable[[int], object] = lambda child: None,
) -> SoakResult:
    """同 conftest.run，但子进程由 fork 而来。encoding 是终端的编码，timeout 是时限（秒）。

    in_child 在子进程里、程序开始之前调用；meanwhile 在父进程里调用，收到子进程的编号，好给它发信号。
    """
    _preload()
    argv = [os.fsdecode(os.fsencode(item)) for item in (ROOT / program, *map(str, args))]
    with ExitStack() as stack:
        cache_dir = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        streams = [stack.enter_context(tempfile.TemporaryFile()) for _ in range(3)]
        streams[0].write(stdin)
        streams[0].seek(0)
        resident = psutil.Process().memory_info().rss
        if not (child := os.fork()):
            _interpret(argv, lambda: (_enter(cwd, streams, encoding, cache_dir, timeout), in_child()))
        meanwhile(child)
        _, status, usage = os.wait4(child, 0)
        stdout, stderr = (_read_all(stream).decode(encoding, "replace") for stream in streams[1:])
    code = os.waitstatus_to_exitcode(status)
    return SoakResult(code, stdout, stderr, code == -signal.SIGALRM, usage.ru_maxrss * MAXRSS_UNIT - resident)


def at_step(number: int, act: Callable[[], object]) -> Callable[[], None]:
    """子进程里，训练到第 number 步，反向传播之前做 act。"""

    def inject() -> None:
        backward, calls = torch.Tensor.backward, iter(range(1 - REHEARSED, 10**6))

        def wrapped(*args, **options):
            if next(calls) == number:
                act()
            return backward(*args, **options)

        torch.Tensor.backward = wrapped

    return inject


def signal_self(signum: int) -> Callable[[], None]:
    return lambda: os.kill(os.getpid(), signum)


@cache
def _preload() -> None:
    """子进程都要用的模块只载入一次。"""
    for name in PRELOADED:
        importlib.import_module(name)


def _read_all(stream: BinaryIO) -> bytes:
    stream.seek(0)
    return stream.read()


def _interpret(argv: list[str], enter: Callable[[], None]) -> NoReturn:
    """像解释器那样运行 argv，以同样的退出码结束；无论如何不回到父进程的代码里。"""
    code = 1
    try:
        enter()
        sys.argv = argv
        runpy.run_path(argv[0], run_name="__main__")
        code = 0
    except SystemExit as leaving:
        code = leaving.code
    except BaseException:
        sys.__excepthook__(*sys.exc_info())
    finally:
        if isinstance(code, str):  # sys.exit("为什么")
            print(code, file=sys.stderr)
            code = 1
        sys.stdout.flush()
        os._exit((code or 0) & 0xFF)


def _enter(cwd: Path, streams: list[BinaryIO], encoding: str, cache_dir: Path, timeout: int) -> None:
    """把刚 fork 出来的子进程变成用户刚启动程序时的样子。"""
    for descriptor, stream in enumerate(streams):
        os.dup2(stream.fileno(), descriptor)
    sys.stdin = open(0, encoding=encoding, closefd=False)
    sys.stdout = open(1, "w", encoding=encoding, closefd=False)
    sys.stderr = open(2, "w", encoding=encoding, errors="backslashreplace", buffering=1, closefd=False)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # 测试本身可能是用 nohup 启动的
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    faulthandler.register(signal.SIGALRM, file=2, chain=True)  # 先写下停在哪里，再照默认的动作结束
    signal.alarm(timeout)
    os.chdir(cwd)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # 否则 tokenizers 会警告说 fork 之后不再用多个线程
    gc.freeze()  # 回收器不碰父进程留下的对象，共享的页就不必逐个复制
    torch.set_num_threads(1)  # 父进程若用过多个线程，那些线程在这里已不存在
    files.CACHE_DIR = cache_dir
    psutil.virtual_memory = lambda: SimpleNamespace(available=MEMORY)
