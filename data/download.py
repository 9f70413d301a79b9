"""下载没有随项目附带的语料：能断点续传，核对 SHA-256 之后才放到位。

用法：python data/download.py 西游记原著
"""

import os
import sys
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

# 直接运行本脚本时，Python 只在 data/ 里找模块；加上项目根目录才能用 utils
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from utils.errors import RunError
from utils.files import keep_backup

DATA_DIR = Path(__file__).resolve().parent
DEFAULT_TIMEOUT = 30.0  # 秒
MAX_TIMEOUT = 86400.0  # 秒；再大操作系统可能不接受
CHUNK_BYTES = 64 * 1024


@dataclass(frozen=True)
class Dataset:
    """一个可下载的文件；size 以字节计。"""

    file_name: str
    size: int
    sha256: str
    url: str


POCKET_LLM = "https://raw.githubusercontent.com/mcuking/PocketLLM/e923c6f/data"
DATASETS = {
    "西游记原著": Dataset(
        file_name="西游记原著.txt",
        size=2_158_228,
        sha256="e52b506cffaefb84addacce0ddfefaac564a347050d46daf835c20ece550f780",
        url=f"{POCKET_LLM}/%E8%A5%BF%E6%B8%B8%E8%AE%B0.txt",
    ),
}


def download(dataset: Dataset, url: str, target: Path, timeout: float) -> Path | None:
    """从 url 下载成 target，接着上次的 <target>.part 继续。

    原有的 target 改名保留，返回它的新名字（没有则为 None）。网络、磁盘或校验失败抛出 RunError，target 不变。
    """
    part = target.with_name(f"{target.name}.part")
    with _disk_errors(part):
        start = part.stat().st_size if part.exists() else 0
        if start != dataset.size:
            _fetch(dataset, url, part, start if start < dataset.size else 0, timeout)
        if (received := sha256_of(part)) != dataset.sha256:
            part.unlink()
            reason = f"下载到的内容不对（SHA-256 是 {received}，应为 {dataset.sha256}），已删除 {part.name}"
            raise RunError(url, reason, "再运行一次会从头下载；仍然不对就用 --url 换一个镜像。")
        backup = keep_backup(target)
        os.replace(part, target)
    return backup


def _fetch(dataset: Dataset, url: str, part: Path, start: int, timeout: float) -> None:
    """从第 start 字节起把 part 补到 dataset.size 字节；多出来的一概不读。中途失败时，收到的都留在 part 里。"""
    with _network_errors(dataset, url, timeout):
        response, start = _open(url, start, timeout)
    with response:
        _check_remote_size(dataset, url, response)
        with part.open("ab" if start else "wb") as file, _progress_bar(dataset, start) as bar:
            while bar.n < dataset.size:
                with _network_errors(dataset, url, timeout):
                    # read1 有多少给多少；read 会等到攒满，超时便丢掉已经收到的
                    chunk = response.read1(min(CHUNK_BYTES, dataset.size - bar.n))
                    if not chunk:
                        raise ConnectionAbortedError
                file.write(chunk)
                bar.update(len(chunk))
            file.flush()
            os.fsync(file.fileno())


def _progress_bar(dataset: Dataset, start: int) -> tqdm:
    """标准错误不是终端时（disable=None）什么也不显示。"""
    return tqdm(total=dataset.size, initial=start, desc=dataset.file_name, unit="B", unit_scale=True, disable=None)
