"""错误：用户能改正的事只用一个异常类，在每个程序的 main 外面统一变成一行消息和退出码。"""

import contextlib
import errno
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable

from utils import processes

EXIT_FAILED = 1  # 运行中失败：磁盘、内存、设备、数值
EXIT_USER_INPUT = 2  # 用户的输入有误：参数、配置、数据、模型文件
TURN_SECONDS = 3.0  # 先走的一走，torchrun 就给其余的发信号
EXIT_SIGNAL = 128  # 再加上信号的编号：130 是 SIGINT，143 是 SIGTERM，129 是 SIGHUP


class UserError(Exception):
    """用户能改正的错误：什么东西、为什么不行、怎么办；reason 里已经说了怎么办的，advice 是空的。"""

    exit_code = EXIT_USER_INPUT

    def __init__(self, subject: object, reason: str, advice: str):
        self.reason = reason
        text = f"错误：{subject}：{reason}。{advice}"
        super().__init__(_visible(text.replace("。。", "。").replace("？。", "？")))


def _visible(text: str) -> str:
    """换行、控制字符、孤立的代理字符写成 \\n、\\x1b 的样子：消息总是一行，也改不动终端。"""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


class RunError(UserError):
    """输入没错，但运行中失败：磁盘、内存、设备、数值。"""

    exit_code = EXIT_FAILED


# 系统的错误自己说的是英文
SYSTEM_REASONS = {
    errno.ENOENT: "不存在",
    errno.EACCES: "没有权限",
    errno.EPERM: "系统不允许",
    errno.EEXIST: "已经有了",
    errno.EISDIR: "是一个文件夹",
    errno.ENOTDIR: "路径里有一段是文件，不是文件夹",
    errno.ENAMETOOLONG: "名字太长",
    errno.ELOOP: "符号链接绕成了圈",
    errno.ENOSPC: "磁盘满了",
    errno.EDQUOT: "超出了磁盘配额",
    errno.EFBIG: "超出了文件大小的限制",
    errno.EROFS: "磁盘是只读的",
    errno.EIO: "磁盘读写出错",
    errno.EBUSY: "正被占用",
    errno.EMFILE: "打开的文件太多",
    errno.ENFILE: "打开的文件太多",
    errno.ENOMEM: "内存不够",
    errno.ENETUNREACH: "没有联网",
    errno.EHOSTUNREACH: "到不了那台主机",
}


def describe_os_error(error: Exception) -> str:
    """读写文件的失败为什么发生，用中文；不常见的照系统说的。"""
    return SYSTEM_REASONS.get(getattr(error, "errno", None)) or getattr(error, "strerror", None) or str(error)


class Terminated(BaseException):
    """收到结束的信号；像 KeyboardInterrupt 一样不会被普通的 except 拦下。"""

    def __init__(self, signum: int = signal.SIGTERM):
        self.signum = signum


def leave_by_signal(signum: int, frame: object = None) -> None:
    """以信号约定的退出码离开。"""
    raise KeyboardInterrupt if signum == signal.SIGINT else Terminated(signum)


def stop_signals() -> list[int]:
    """要求程序停下的信号：Ctrl-C、kill、终端关闭（Windows 上是 SIGBREAK）；已被忽略的（如 nohup）不算。"""
    numbers = [getattr(signal, name, None) for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGBREAK")]
    return [number for number in numbers if number and signal.getsignal(number) != signal.SIG_IGN]


def ignore_stop_signals() -> None:
    """正要离开：有一个进程先走，torchrun 就会给其余的发信号，不能再被它打断。"""
    for signum in stop_signals():
        signal.signal(signum, signal.SIG_IGN)


_leaving: list[Callable[[BaseException | None, int, str], None]] = []


def on_leaving(callback: Callable[[BaseException | None, int, str], None]) -> None:
    """登记：run_program 结束之前调用 callback(错误, 退出码, 要说的话)。它可以自己说、自己结束，不返回。"""
    _leaving.append(callback)


def run_program(main: Callable[[], None]) -> None:
    """运行 main 并以约定的退出码结束：0 完成，1 运行失败，2 输入有误，129/130/143 信号。"""
    for signum in stop_signals():
        if signum != signal.SIGINT:  # 它本来就变成 KeyboardInterrupt
            signal.signal(signum, leave_by_signal)
    # 终端不是 UTF-8 时，打不出的字换成问号，而不是崩溃
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")
    error = _failure_of(main)
    code, text = _describe(error)
    try:
        _flush_stdout()
    except OSError:
        discard_stdout()
    for callback in _leaving:
        callback(error, code, text)
    if code == EXIT_USER_INPUT and processes.local_rank():
        # 还没有连成一组时，一台机器上的各个进程做同样的事，错误也相同：由第一个来说，别的等它说完才走
        ignore_stop_signals()
        time.sleep(TURN_SECONDS)
    elif text:
        print(text, file=sys.stderr)
    sys.exit(code)


def _failure_of(main: Callable[[], None]) -> BaseException | None:
    try:
        with contextlib.suppress(SystemExit):  # --help 打印完就这样结束
            main()
        _flush_stdout()
    except BrokenPipeError:
        discard_stdout()
    except (Exception, KeyboardInterrupt, Terminated) as error:
        return error
    return None


def _describe(error: BaseException | None) -> tuple[int, str]:
    """-> (退出码, 要说的话)；没有料到的错误是完整的 traceback。"""
    if error is None:
        return 0, ""
    if isinstance(error, KeyboardInterrupt):
        return EXIT_SIGNAL + signal.SIGINT, ""
    if isinstance(error, Terminated):
        return EXIT_SIGNAL + error.signum, ""
    if isinstance(error, OSError):
        advice = "已有的文件没有改动；检查路径、磁盘和权限。"
        error = RunError(error.filename or "磁盘", describe_os_error(error), advice)
    elif isinstance(error, (MemoryError, RuntimeError)) and is_out_of_memory(error):
        error = RunError("内存", "不够用", OUT_OF_MEMORY_ADVICE)
    if isinstance(error, UserError):
        return error.exit_code, str(error)
    return EXIT_FAILED, "".join(traceback.format_exception(error)).rstrip()


OUT_OF_MEMORY_ADVICE = "减小 --batch_size（可同时增大 --accumulation_steps），或换更小的配置。"


def is_out_of_memory(error: Exception) -> bool:
    """torch 没有统一的类型：显存不足是 OutOfMemoryError，主机内存不足是带特定文字的 RuntimeError。"""
    marks = ("out of memory", "can't allocate memory", "not enough memory")
    return isinstance(error, MemoryError) or any(mark in str(error).lower() for mark in marks)


def _flush_stdout() -> None:
    if sys.stdout is not None:  # 以 >&- 启动时没有标准输出
        sys.stdout.flush()


def discard_stdout() -> None:
    """读的一方（如 head -1）已经离开；换成空设备，解释器退出时才不会再报错。"""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
