"""下载没有随项目附带的语料和 GPT-2 的权重，核对之后才放到位。权重由 huggingface_hub 下载，能断点续传。

用法：python data/download.py 西游记原著
      python data/download.py gpt2 --size 124M
"""

import hashlib
import http.client
import io
import os
import re
import socket
import ssl
import sys
import urllib.error
import urllib.request
from argparse import ArgumentTypeError, Namespace
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from urllib.parse import quote, urlsplit

# 直接运行本脚本时，Python 只在 data/ 里找模块；加上项目根目录才能用 utils
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from model.config import ModelConfig
from utils.cli import ArgumentParser, file_path, one_of, positive_float
from utils.config_file import CONFIGS_DIR, read_config
from utils.errors import RunError, Terminated, UserError, describe_os_error, run_program
from utils.file_lock import output_lock
from utils.files import check_free_space, check_input_file, check_output_path, keep_backup, write_atomically
from utils.hugging_face_config import recognize_config, with_plain_names
from utils.weights_file import SAFETENSORS_NAME, read_shapes

DATA_DIR = Path(__file__).resolve().parent
DEFAULT_TIMEOUT = 30.0  # 秒
MAX_TIMEOUT = 86400.0  # 秒；再大操作系统可能不接受
HUB_TIMEOUT = 10.0  # 秒；huggingface_hub 等这么久
CHUNK_BYTES = 64 * 1024
MAX_DIGITS = 20  # 更长的数不写出来


@dataclass(frozen=True)
class Dataset:
    """一个可下载的文本，只有几 MB；size 以字节计。"""

    mirror_flag = " --url "  # 用什么换一个镜像
    again = "再运行一次会重新下载"

    file_name: str
    size: int
    sha256: str
    url: str

    def find_fault(self, content: bytes) -> str:
        """content 哪里不对；对的为空。"""
        if len(content) != self.size:
            more = "不止 " if len(content) > self.size else ""
            return f"收到{more or ' '}{min(len(content), self.size):,} 字节，应为 {self.size:,} 字节"
        received = hashlib.sha256(content).hexdigest()
        return "" if received == self.sha256 else f"SHA-256 是 {received}，应为 {self.sha256}"

    def is_in(self, path: Path) -> bool:
        """path 就是它。"""
        return path.stat().st_size == self.size and not self.find_fault(path.read_bytes())


@dataclass(frozen=True)
class Weights:
    """Hugging Face 上一种大小的 GPT-2；已有的文件对不对看结构，不必联网。"""

    mirror_flag = "环境变量 HF_ENDPOINT "
    again = "再运行一次会接着已下载的部分继续"

    file_name: str
    repository: str
    config_name: str  # configs/ 里结构与它相同的配置

    def find_fault(self, path: Path) -> str:
        """path 的结构哪里不对；对的为空。"""
        expected = read_config(CONFIGS_DIR / self.config_name, ModelConfig.from_dict).model
        try:
            actual = ModelConfig.from_dict(recognize_config(path, with_plain_names(read_shapes(path)), settings={}))
        except UserError as error:
            return error.reason
        except ValueError as error:
            return str(error)
        return "" if actual == expected else f"不是 {self.config_name} 的结构"

    def is_in(self, path: Path) -> bool:
        """path 就是它。"""
        return not self.find_fault(path)


HUGGING_FACE = "https://huggingface.co"
WEIGHTS = {
    "124M": Weights("gpt2_124M.safetensors", "openai-community/gpt2", "gpt2_config_124M.json"),
    "355M": Weights("gpt2_355M.safetensors", "openai-community/gpt2-medium", "gpt2_config_355M.json"),
    "774M": Weights("gpt2_774M.safetensors", "openai-community/gpt2-large", "gpt2_config_774M.json"),
    "1558M": Weights("gpt2_1558M.safetensors", "openai-community/gpt2-xl", "gpt2_config_1558M.json"),
}
GPT2, DEFAULT_SIZE = "gpt2", "124M"
POCKET_LLM = "https://raw.githubusercontent.com/mcuking/PocketLLM/e923c6f/data"
DATASETS = {
    "西游记原著": Dataset(
        file_name="西游记原著.txt",
        size=2_158_228,
        sha256="e52b506cffaefb84addacce0ddfefaac564a347050d46daf835c20ece550f780",
        url=f"{POCKET_LLM}/%E8%A5%BF%E6%B8%B8%E8%AE%B0.txt",
    ),
}
Downloadable = Dataset | Weights


def download_text(dataset: Dataset, url: str, target: Path, timeout: float) -> Path | None:
    """从 url 下载 dataset，核对之后写成 target；最多读 dataset.size 再加一个字节，服务器说有多大都不作数。

    原有的 target 改名保留，返回它的新名字（没有则为 None）。网络、磁盘或校验失败抛出 RunError，target 不变。
    """
    with _network_errors(dataset, url, timeout), urllib.request.urlopen(url, timeout=timeout) as response:
        content = response.read(dataset.size + 1)
    if fault := dataset.find_fault(content):
        raise RunError(url, f"下载到的内容不对（{fault}）", _advice(dataset))
    return write_atomically(target, lambda file: file.write(content), keep_old=True)


def download_weights(weights: Weights, target: Path) -> Path | None:
    """从 Hugging Face 或 HF_ENDPOINT 下载，接着上次的 <target>.part；大小和 SHA-256 由它说。其余同 download_text。"""
    endpoint = os.environ.get("HF_ENDPOINT") or HUGGING_FACE
    try:
        endpoint = http_url(endpoint.rstrip("/"))
    except ArgumentTypeError as error:
        raise UserError("HF_ENDPOINT", str(error), f"例如 HF_ENDPOINT={HUGGING_FACE}。") from None
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")  # 不报告用法，也不为此多联一次网
    import httpx2  # huggingface_hub 用它联网
    from huggingface_hub import constants, get_hf_file_metadata, hf_hub_url
    from huggingface_hub.file_download import http_get
    from huggingface_hub.utils import logging

    if constants.HF_HUB_OFFLINE:
        raise UserError("环境变量 HF_HUB_OFFLINE", "设了它就不联网", "去掉它再运行。")
    logging.set_verbosity_error()
    url = hf_hub_url(weights.repository, SAFETENSORS_NAME, endpoint=endpoint)
    errors = partial(_network_errors, weights, url, HUB_TIMEOUT, (httpx2.HTTPError, httpx2.InvalidURL))
    part = target.with_name(f"{target.name}.part")
    with output_lock(target), _disk_errors(part):
        with errors():
            published = get_hf_file_metadata(url, token=False, timeout=HUB_TIMEOUT)
        if published.size is None:
            raise RunError(url, "服务器没有说文件有多大", _advice(weights))
        with (
            BoundedFile(part, published.size) as file,
            errors(),
        ):  # hf_hub_download 停下之后要从头来，所以用它里面的这一步
            options = {"resume_size": file.tell(), "expected_size": published.size}
            headers = {"Accept-Encoding": "identity"}
            http_get(published.location, file, headers=headers, displayed_filename=weights.file_name, **options)
        return _accept(weights, url, published.etag or "", part, target)


class BoundedFile(io.BufferedWriter):
    """接着写 path，它已经超过 limit 字节就从头写；要写得超过 limit 就抛出 ValueError：服务器给的比它说的多。"""

    def __init__(self, path: Path, limit: int):
        start = path.stat().st_size if path.exists() else 0
        check_free_space(path, limit - start)
        super().__init__(io.FileIO(path, "a" if start <= limit else "w"))
        self.path, self.limit = path, limit

    def write(self, data: bytes) -> int:
        if self.tell() + len(data) > self.limit:
            raise ValueError(self.limit)
        with _disk_errors(self.path):  # 不是网络的错
            return super().write(data)


def _accept(weights: Weights, url: str, sha256: str, part: Path, target: Path) -> Path | None:
    """收齐的 part 核对之后改名为 target；sha256 不像 SHA-256（不是 Hugging Face 的服务器）就只看结构。"""
    with part.open("rb+") as file:
        received = hashlib.file_digest(file, "sha256").hexdigest()
        os.fsync(file.fileno())
    is_other = re.fullmatch("[0-9a-f]{64}", sha256) and received != sha256
    if fault := f"SHA-256 是 {received}，应为 {sha256}" if is_other else weights.find_fault(part):
        part.unlink()
        reason = f"下载到的内容不对（{fault}），已删除 {part.name}"
        raise RunError(url, reason, f"再运行一次会从头下载；仍然不对就用{weights.mirror_flag}换一个镜像。")
    backup = keep_backup(target)
    os.replace(part, target)
    return backup


@contextmanager
def _network_errors(
    dataset: Downloadable, url: str, timeout: float, more: tuple[type[Exception], ...] = ()
) -> Iterator[None]:
    """网络上的各种失败变成一行 RunError；more 是别的库自己的错误。"""
    try:
        yield
    except (OSError, http.client.HTTPException, ValueError, *more) as error:  # ValueError：转去一个不合法的地址
        raise RunError(url, _explain(error, timeout), _advice(dataset)) from None


def _explain(error: Exception, timeout: float) -> str:
    code = getattr(error, "code", None) or getattr(getattr(error, "response", None), "status_code", None)
    if code:
        return f"服务器回答 {code} {http.client.responses.get(code, '')}".rstrip()
    cause: BaseException = error
    while inner := cause.__cause__ or cause.__context__:  # 各个库都把套接字的错误包了几层
        cause = inner
    # 服务器发来的文字不进消息：其中可能有换行和终端控制符
    known = {
        TimeoutError: f"等待超过 {timeout:g} 秒没有数据",
        socket.gaierror: "找不到这台主机，可能没有联网",
        ssl.SSLCertVerificationError: "无法验证服务器的证书",
        ConnectionRefusedError: "连接被拒绝",
        (ConnectionError, http.client.IncompleteRead): "连接中断",
        (http.client.HTTPException, ValueError): "服务器的回答不合 HTTP 规范",
    }
    for kind, reason in known.items():
        if isinstance(cause, kind):
            return reason
    is_system = getattr(cause, "errno", None) is not None
    return f"网络出错（{describe_os_error(cause)}）" if is_system else "连接中断，或服务器的回答不合 HTTP 规范"


def _advice(dataset: Downloadable) -> str:
    return (
        f"检查网络后{dataset.again}；"
        f"也可用{dataset.mirror_flag}换一个镜像，或自己找到文件放到 {DATA_DIR / dataset.file_name}。"
    )


@contextmanager
def _disk_errors(path: Path) -> Iterator[None]:
    """磁盘上的失败变成一行 RunError；网络的失败到不了这里。"""
    try:
        yield
    except OSError as error:
        reason = f"读写失败（{describe_os_error(error)}）"
        raise RunError(error.filename or path, reason, "检查磁盘空间和权限后再运行一次。") from None


def is_complete(dataset: Downloadable, path: Path) -> bool:
    """path 已经是完整、正确的 dataset。"""
    with _disk_errors(path):
        if not path.exists():
            return False
        check_input_file(path, "数据文件")
        return dataset.is_in(path)


def http_url(text: str) -> str:
    """http 或 https 网址；其中的汉字和空格换成网址里合法的写法。"""
    try:
        parts = urlsplit(text)
        host, _ = parts.netloc.encode("idna").decode("ascii"), parts.port
    except ValueError as error:
        raise ArgumentTypeError(f"不是合法的网址（{error}）") from None
    if parts.scheme not in ("http", "https") or not parts.hostname or "@" in host:
        raise ArgumentTypeError(f"必须以 http:// 或 https:// 开头并有主机名，收到 {text}")
    path, query = quote(parts.path, safe="/%:@!$&'()*+,;=~"), quote(parts.query, safe="/?%:@!$&'()*+,;=~")
    return parts._replace(netloc=host, path=path, query=query, fragment="").geturl()


def parse_args() -> Namespace:
    parser = ArgumentParser("下载没有随项目附带的语料和 GPT-2 的权重，核对之后才放到位。")
    names = (*DATASETS, GPT2)
    parser.add_argument("name", metavar="名称", type=one_of(*names), help="、".join(names))
    sizes = " | ".join(WEIGHTS)
    parser.add_argument("--size", type=one_of(*WEIGHTS), help=f"{GPT2} 的大小：{sizes}（默认 {DEFAULT_SIZE}）")
    parser.add_argument("--url", type=http_url, help=f"改从这个地址下载（默认：原来发布的地址；{GPT2} 用 HF_ENDPOINT）")
    parser.add_argument(
        "--output", type=file_path, help="保存到哪里（默认：data/ 下，西游记原著.txt、gpt2_124M.safetensors 等）"
    )
    parser.add_argument(
        "--timeout",
        type=positive_float,
        default=DEFAULT_TIMEOUT,
        help=f"连续这么多秒收不到数据就放弃（默认：%(default)g；{GPT2} 由 huggingface_hub 决定）",
    )
    args = parser.parse_args()
    if args.size and args.name != GPT2:
        raise UserError("--size", f"只用于 {GPT2}", f"去掉它，或改成 {GPT2}。")
    if args.name == GPT2 and (unused := parser.given & {"url", "timeout"}):
        advice = "换镜像站用环境变量 HF_ENDPOINT。"
        raise UserError(f"--{min(unused)}", f"不用于 {GPT2}，它由 huggingface_hub 下载", advice)
    return args


def main() -> None:
    args = parse_args()
    dataset = WEIGHTS[args.size or DEFAULT_SIZE] if args.name == GPT2 else DATASETS[args.name]
    target = args.output or DATA_DIR / dataset.file_name
    if is_complete(dataset, target):
        print(f"已经有了，无需下载：{target}（{target.stat().st_size:,} 字节）")
        return
    check_output_path(target)
    try:
        if args.name == GPT2:
            backup = download_weights(dataset, target)
        else:
            backup = download_text(dataset, args.url or dataset.url, target, min(args.timeout, MAX_TIMEOUT))
    except (KeyboardInterrupt, Terminated):
        print(f"已中断；{dataset.again}。", file=sys.stderr)
        raise
    if backup:
        print(f"提示：原来的 {target.name} 内容不同，已改名为 {backup.name}", file=sys.stderr)
    print(f"已下载：{target}（{target.stat().st_size:,} 字节）")


if __name__ == "__main__":
    run_program(main)
