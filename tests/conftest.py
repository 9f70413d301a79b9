"""测试共用的小模型、小语料，以及“像用户那样”运行程序的办法。"""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from checks.building import TINY_MODEL, tiny_config  # noqa: F401  各个测试从这里取
from utils import files
from utils.corpus import Corpus
from utils.text_file import TextFile

ROOT = Path(__file__).resolve().parent.parent

TINY_FILE = {
    **TINY_MODEL,
    "tokenizer": {"type": "bpe", "vocab_size": 300},
    "training": {"epochs": 1, "max_steps": 6, "batch_size": 4, "learning_rate": 0.003, "eval_freq": 3},
}


def pytest_configure() -> None:
    """放到后台运行的 shell 让子进程不理 Ctrl-C；测试要发 SIGINT，所以改回来。"""
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@dataclass(frozen=True)
class Result:
    """一个程序运行完的样子。"""

    code: int
    stdout: str
    stderr: str


def last_of_each(*words: object) -> list:
    """命令行的各个词；同一个参数写了几次的，只留最后一次：测试在共用的参数后面接上自己的，程序却不许给两次。"""
    groups = [[]]
    for word in words:
        is_flag = str(word).startswith("--")
        groups += [[word]] if is_flag else []
        groups[-1] += [] if is_flag else [word]
    last = {str(group[0]).split("=")[0]: index for index, group in enumerate(groups) if group}
    repeatable = ("--vary", "--set")
    kept = [
        group
        for index, group in enumerate(groups)
        if group and (group[0] in repeatable or last[str(group[0]).split("=")[0]] == index)
    ]
    return [word for group in kept for word in group]


def run(program: str, *args: object, cwd: Path, stdin: str | bytes = "", env: dict | None = None) -> Result:
    """在 cwd 里运行项目的程序，像用户那样只看退出码和两路输出。"""
    done = subprocess.run(
        [sys.executable, ROOT / program, *map(str, args)],
        cwd=cwd,
        input=stdin if isinstance(stdin, bytes) else stdin.encode("utf-8"),
        capture_output=True,
        timeout=120,
        # 小模型多线程反而慢，几个测试一起跑时慢好几倍
        env={**os.environ, "PYTHONIOENCODING": "utf-8", "OMP_NUM_THREADS": "1", **(env or {})},
    )
    return Result(done.returncode, done.stdout.decode("utf-8", "replace"), done.stderr.decode("utf-8", "replace"))


def assert_error(result, *parts, code=2):
    """以 code 结束，只有一行“错误：”，里面有 parts；没有 traceback，标准输出是空的。"""
    assert "Traceback" not in result.stderr + result.stdout, result.stderr
    assert (result.code, result.stdout) == (code, ""), result.stderr
    assert result.stderr.startswith("错误：") and result.stderr.count("\n") == 1, result.stderr
    assert not [part for part in parts if part not in result.stderr], result.stderr


def refuse(folder: Path, program: str, args: list, *parts: str) -> None:
    """program 说一行 parts 所在的错误就退出。"""
    assert_error(run(program, *args, cwd=folder), *parts)


def listing(folder: Path) -> dict[str, tuple[int, bytes] | None]:
    """{名字: (修改时间, 内容)}；文件夹和 FIFO 不能读，只记名字。"""
    return {
        str(path.relative_to(folder)): (path.stat().st_mtime_ns, path.read_bytes()) if path.is_file() else None
        for path in folder.rglob("*")
    }


def write_config(folder: Path, **changes) -> Path:
    """把小模型的配置写成文件；changes 改其中的字段，值为 ... 表示删去。"""
    values = {key: value for key, value in {**TINY_FILE, **changes}.items() if value is not ...}
    path = folder / "tiny.json"
    path.write_text(json.dumps(values, ensure_ascii=False), encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def corpus_text() -> str:
    """默认语料的前三千字。"""
    return (ROOT / "data" / "西游记.txt").read_text(encoding="utf-8")[:3000]


@pytest.fixture(scope="session")
def trained(tmp_path_factory, corpus_text) -> Path:
    """用命令行训练出的小模型所在的文件夹：tiny.json、corpus.txt、model.pth 等。"""
    folder = tmp_path_factory.mktemp("trained")
    (folder / "corpus.txt").write_text(corpus_text, encoding="utf-8")
    config = write_config(folder)
    result = run("pretrain.py", "--config", config, "--data_path", "corpus.txt", cwd=folder)
    assert result.code == 0, result.stderr
    (folder / "stdout.txt").write_text(result.stdout, encoding="utf-8")
    (folder / "stderr.txt").write_text(result.stderr, encoding="utf-8")
    return folder


def report_data(model_path: Path) -> dict:
    """model_path 的训练报告里画图的数据。"""
    page = Path(f"{model_path}.report.html").read_text(encoding="utf-8")
    return json.loads(re.search(r'<script id="data" type="application/json">(.*?)</script>', page)[1])


def timeless_report(model_path: Path) -> dict:
    """同上，去掉每次都不同的用时、速度和内存；必须是完整的网页。"""
    assert Path(f"{model_path}.report.html").read_text(encoding="utf-8").endswith("</html>\n")
    data = report_data(model_path)
    del data["axes"]["时间"], data["steps"]["时间"]
    data["charts"] = [chart for chart in data["charts"] if chart["title"] not in ("速度", "内存")]
    return data


def make_corpus(text: str, tokenizer_spec: dict, path: Path) -> Corpus:
    """把 text 写进 path，再作为语料读入。"""
    path.write_text(text, encoding="utf-8", newline="")
    return Corpus.from_file(TextFile.scan(path), tokenizer_spec)


def free_port() -> int:
    """现在没有人用的端口。"""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return taken.getsockname()[1]


def rank_environment(rank: int, world_size: int, port: int) -> dict[str, str]:
    """不用 torchrun、自己启动一个进程时的环境变量。"""
    numbers = {"RANK": rank, "WORLD_SIZE": world_size, "LOCAL_RANK": rank, "LOCAL_WORLD_SIZE": world_size}
    own = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, **numbers}
    shared = {"OMP_NUM_THREADS": "1", "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}", "PYTHONIOENCODING": "utf-8"}
    return {**os.environ, **shared, **{name: str(value) for name, value in own.items()}}


@pytest.fixture(scope="module")
def tab():
    """系统上装的 Chromium 里的一个标签页，没有窗口，断了网；没有装，或打不开，就跳过并说明。"""
    from playwright.sync_api import Error, sync_playwright  # 导入要半秒，只有看网页的测试用

    names = ("chromium", "chromium-browser", "google-chrome")
    path = next(filter(None, map(shutil.which, names)), None)
    if not path:
        pytest.skip("没有装 Chromium：网页在浏览器里的样子没有测，其余照常")
    with sync_playwright() as playwright:
        try:  # root 不能用沙盒
            browser = playwright.chromium.launch(executable_path=path, chromium_sandbox=False, args=["--disable-gpu"])
        except Error as error:  # 如 Ubuntu 的 chromium-browser 只是一句“请装 snap”
            pytest.skip(f"{path} 打不开（{str(error).splitlines()[0]}）：网页在浏览器里的样子没有测，其余照常")
        yield browser.new_page(offline=True)
        browser.close()


@pytest.fixture
def page(tab):
    """标签页，宽 1280，浅色；测试之后，没有过脚本的错误、控制台里的错误和警告，也没有要过别的文件。"""
    errors, requests = [], []
    listeners = {
        "console": lambda message: message.type in ("error", "warning", "assert") and errors.append(message.text),
        "pageerror": lambda error: errors.append(str(error)),
        "request": lambda request: requests.append(request.url),
    }
    tab.set_viewport_size({"width": 1280, "height": 900})
    tab.emulate_media(color_scheme="light")
    for event, listener in listeners.items():
        tab.on(event, listener)
    yield tab
    tab.evaluate("0")  # 事件和回答走同一条路：回答到了，之前的事件也都到了
    for event, listener in listeners.items():
        tab.remove_listener(event, listener)
    assert errors == []
    assert requests == [tab.url]


@pytest.fixture
def one_thread():
    """小模型多线程反而慢，机器忙时慢上百倍。"""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def _fixed_seed():
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def cache_dir(tmp_path_factory, monkeypatch) -> Path:
    """每个测试用自己的缓存；命令行运行的程序除外，它们用项目的 .cache/。"""
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setattr(files, "CACHE_DIR", folder)
    return folder
