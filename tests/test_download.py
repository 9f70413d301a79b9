"""data/download.py：对着本机的小服务器运行，不需要网络；用户看得到的从命令行测，其余直接调用 download。"""

import hashlib
import json
import os
import random
import re
import signal
import socket
import subprocess
import sys
import threading
from argparse import ArgumentTypeError
from collections.abc import Callable, Iterator
from dataclasses import asdict
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import safetensors.torch
from gpt2_reference import build_reference

from data import download
from utils.errors import RunError
from utils.file_lock import output_lock
from utils.hugging_face import read_weights_file

ROOT = Path(__file__).resolve().parent.parent
CONTENT = random.Random(7).randbytes(300_000)

# 与 data/download.py 的命令行完全相同，只是数据集换成测试用的“小书”，保存到测试的文件夹
PROGRAM = """
import json, pathlib, signal, sys
from data import download
from utils.errors import run_program
signal.signal(signal.SIGINT, signal.default_int_handler)  # 在后台运行的测试会继承“忽略 Ctrl-C”
download.DATASETS = {"小书": download.Dataset(**json.loads(sys.argv.pop(1)))}
download.DATA_DIR = pathlib.Path(sys.argv.pop(1))
run_program(download.main)
"""
# 同上，但 gpt2 的结构以测试文件夹里的小配置为准
WEIGHTS_PROGRAM = """
import pathlib, sys
from data import download
from utils.errors import run_program
download.DATA_DIR = download.CONFIGS_DIR = pathlib.Path(sys.argv.pop(1))
run_program(download.main)
"""
SMALL_GPT2 = {"vocab_size": 300, "n_positions": 16, "n_embd": 64, "n_layer": 2, "n_head": 1}
ENVIRONMENT = os.environ | {"PYTHONIOENCODING": "utf-8", "no_proxy": "*"}


class Server(ThreadingHTTPServer):
    """每个请求都交给 answer；paths 和 ranges 记下每次请求的路径和 Range。"""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.answer: Callable[[Handler], None] = resumable
        self.content = CONTENT
        self.length: str | None = "right"  # HEAD 说有多大
        self.paths: list[str] = []
        self.ranges: list[str | None] = []
        self.sent = threading.Event()
        self.release = threading.Event()
        self.url = f"http://127.0.0.1:{self.server_port}/book.txt"

    def handle_error(self, request, client_address):
        """客户端提前离开是这里的常事。"""


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_HEAD(self):
        """huggingface_hub 先这样问大小和 SHA-256。"""
        self.server.paths.append(self.path)
        content, length = self.server.content, self.server.length
        if length == "missing":
            return self.reply(404, b"")
        sizes = {} if length is None else {"Content_Length": len(content) if length == "right" else length}
        self.reply(200, b"", ETag=f'"{hashlib.sha256(content).hexdigest()}"', **sizes)

    def do_GET(self):
        self.server.paths.append(self.path)
        self.server.ranges.append(self.headers["Range"])
        self.server.answer(self)

    def reply(self, status: int, body: bytes, **headers: object) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), str(value))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format, *args):
        """不往测试的输出里写访问日志。"""


def resumable(handler: Handler) -> None:
    wanted = re.fullmatch(r"bytes=(\d+)-", handler.headers["Range"] or "")
    if not wanted:
        return whole(handler)
    content = handler.server.content
    start, size = int(wanted[1]), len(content)
    content_range = f"bytes {start}-{size - 1}/{size}"
    handler.reply(206, content[start:], Content_Range=content_range, Content_Length=size - start)


def whole(handler: Handler) -> None:
    handler.reply(200, handler.server.content, Content_Length=len(handler.server.content))


def without_length(handler: Handler) -> None:
    handler.reply(200, handler.server.content)


def cut_midway(handler: Handler) -> None:
    content = handler.server.content
    handler.reply(200, content[: len(content) // 2], Content_Length=len(content))


def stall_midway(handler: Handler) -> None:
    cut_midway(handler)
    handler.server.release.wait()


def stall_at_once(handler: Handler) -> None:
    handler.server.release.wait()


def corrupted(handler: Handler) -> None:
    handler.reply(200, bytes(len(CONTENT)), Content_Length=len(CONTENT))


def endless(handler: Handler, **headers: str) -> None:
    handler.reply(200, b"", **headers)
    while True:
        handler.wfile.write(bytes(100_000))


def login_page(handler: Handler) -> None:
    handler.reply(200, b"<html>", Content_Length=6)


def missing(handler: Handler) -> None:
    handler.reply(404, b"")


def broken(handler: Handler) -> None:
    handler.reply(500, b"")


def not_http(handler: Handler) -> None:
    handler.wfile.write(b"SSH-2.0-\x1b[31mhello\r\n")


def to_local_file(handler: Handler) -> None:
    handler.reply(302, b"", Location="file:///etc/hosts")


@pytest.fixture(autouse=True)
def without_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "*")


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.release.set()
        server.shutdown()
        thread.join()


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "小书.txt"


def dataset_at(url: str, content: bytes = CONTENT) -> download.Dataset:
    return download.Dataset("小书.txt", len(content), hashlib.sha256(content).hexdigest(), url)


def command(folder: Path, dataset: download.Dataset, *flags: str) -> list[str]:
    return [sys.executable, "-c", PROGRAM, json.dumps(asdict(dataset)), str(folder), "小书", *flags]


def execute(arguments: list[str], folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        arguments, cwd=folder, env=ENVIRONMENT | environment, capture_output=True, encoding="utf-8", timeout=30
    )


def get(folder: Path, url: str, *flags: str) -> subprocess.CompletedProcess[str]:
    """运行“download.py 小书”，它发布在 url。"""
    return execute(command(folder, dataset_at(url), *flags), folder, PYTHONPATH=str(ROOT))


def run_script(folder: Path, *flags: str) -> subprocess.CompletedProcess[str]:
    """原样运行 data/download.py；当前文件夹不是项目根目录，也没有 PYTHONPATH 帮忙。"""
    return execute([sys.executable, str(ROOT / "data" / "download.py"), *flags], folder, PYTHONPATH="")


def fetch(url: str, target: Path, timeout: float = 30) -> Path | None:
    return download.download_text(dataset_at(url), url, target, timeout)


def assert_failed(result: subprocess.CompletedProcess[str], code: int, *words: str) -> None:
    """标准错误上只有一行“错误：…”，含有这些词；标准输出上什么也没有。"""
    assert (result.returncode, result.stdout) == (code, ""), result.stderr
    assert re.fullmatch(r"错误：[^\n]+\n", result.stderr), result.stderr
    for word in words:
        assert any(choice in result.stderr for choice in word.split("|")), result.stderr


def test_download_saves_the_verified_file_and_says_where(server, tmp_path, target):
    result = get(tmp_path, server.url)
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout == f"已下载：{target}（300,000 字节）\n"
    assert target.read_bytes() == CONTENT
    assert list(tmp_path.iterdir()) == [target]


def test_server_may_leave_out_the_length(server, target):
    server.answer = without_length
    assert fetch(server.url, target) is None
    assert target.read_bytes() == CONTENT


def test_output_flag_chooses_the_path_and_creates_its_folder(server, tmp_path):
    chosen = tmp_path / "新文件夹" / "书.txt"
    assert get(tmp_path, server.url, "--output", str(chosen)).returncode == 0
    assert chosen.read_bytes() == CONTENT


def test_url_flag_replaces_the_published_address(server, tmp_path, target):
    mirror = server.url.replace("book", "西游 记")
    assert get(tmp_path, "http://127.0.0.1:1/", "--url", mirror).returncode == 0
    assert target.read_bytes() == CONTENT


def test_wrong_content_is_refused_and_the_existing_file_stays(server, tmp_path, target):
    target.write_bytes(b"mine")
    server.answer = corrupted
    assert_failed(get(tmp_path, server.url), 1, "SHA-256", "--url", str(target))
    assert list(tmp_path.iterdir()) == [target]
    assert target.read_bytes() == b"mine"


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (broken, "500"),
        (cut_midway, "收到 150,000 字节，应为 300,000 字节"),
        (login_page, "收到 6 字节，应为 300,000 字节"),
        (endless, "收到不止 300,000 字节，应为 300,000 字节"),
        (partial(endless, Content_Length="9" * 5000), "收到不止 300,000 字节"),
        (partial(endless, Content_Range="bytes 1000-1999/500"), "收到不止 300,000 字节"),
        (partial(endless, Content_Range="bytes 0-9/" + "9" * 5000), "收到不止 300,000 字节"),
        (not_http, "不合 HTTP 规范"),
        (to_local_file, "302"),
    ],
)
def test_unusable_answer_is_explained_and_nothing_is_written(server, tmp_path, target, answer, reason):
    server.answer = answer
    with pytest.raises(RunError, match=f"{reason}.*--url.*{target.name}"):
        fetch(server.url, target)
    assert list(tmp_path.iterdir()) == []


def test_missing_page_is_one_clear_line(server, tmp_path, target):
    server.answer = missing
    assert_failed(get(tmp_path, server.url), 1, server.url, "404", "--url", str(target))


@pytest.mark.parametrize("answer", [stall_midway, stall_at_once])
def test_stalled_download_times_out(server, target, answer):
    server.answer = answer
    with pytest.raises(RunError, match="0.2 秒没有数据.*再运行一次"):
        fetch(server.url, target, timeout=0.2)


def test_refused_connection_says_what_to_do(tmp_path, target):
    with socket.socket() as unused:  # 占住端口但不监听，连接必被拒绝
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}/"
        assert_failed(get(tmp_path, url), 1, url, "连接被拒绝", "--url", str(target))


def test_unknown_host_says_the_network_may_be_absent(monkeypatch, target):
    def no_network(*args, **kwargs):
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", no_network)
    with pytest.raises(RunError, match="没有联网.*--url"):
        fetch("http://host.invalid/", target)


@pytest.mark.skipif(os.name == "nt", reason="Windows 没有能发给单个进程的 Ctrl-C")
def test_ctrl_c_leaves_nothing_behind(server, tmp_path):
    def send_half_then_wait(handler: Handler) -> None:
        cut_midway(handler)
        server.sent.set()
        server.release.wait()

    server.answer = send_half_then_wait
    arguments = command(tmp_path, dataset_at(server.url))
    environment = ENVIRONMENT | {"PYTHONPATH": str(ROOT)}
    with subprocess.Popen(
        arguments, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, encoding="utf-8"
    ) as process:
        assert server.sent.wait(timeout=30)
        process.send_signal(signal.SIGINT)
        stdout, stderr = process.communicate(timeout=30)
    assert (process.returncode, stdout, stderr) == (130, "", "已中断；再运行一次会重新下载。\n")
    assert list(tmp_path.iterdir()) == []


def test_file_already_present_needs_no_network(tmp_path, target):
    target.write_bytes(CONTENT)
    result = get(tmp_path, "http://127.0.0.1:1/")
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout == f"已经有了，无需下载：{target}（300,000 字节）\n"
    assert list(tmp_path.iterdir()) == [target]


def test_different_file_of_that_name_is_kept_as_backup(server, tmp_path, target):
    existing = bytes(len(CONTENT))
    target.write_bytes(existing)
    result = get(tmp_path, server.url)
    assert result.returncode == 0
    assert "小书.txt.bak" in result.stderr
    assert target.with_name("小书.txt.bak").read_bytes() == existing
    assert target.read_bytes() == CONTENT


def test_truncated_file_is_not_taken_for_complete(target):
    target.write_bytes(CONTENT[:-1])
    assert not download.is_complete(dataset_at("http://127.0.0.1:1/"), target)


def test_folder_as_output_is_refused(server, tmp_path):
    assert_failed(get(tmp_path, server.url, "--output", str(tmp_path)), 2, str(tmp_path))
    assert server.ranges == []


def test_script_runs_from_any_folder_and_checks_the_real_dataset(server, tmp_path):
    result = run_script(tmp_path, "西游记原著", "--url", server.url, "--output", "book.txt")
    assert_failed(result, 1, server.url, "收到 300,000 字节，应为 2,158,228 字节")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["红楼梦"], ["西游记原著", "红楼梦"]),
        ([], ["名称"]),
        (["西游记原著", "--url", "ftp://127.0.0.1/book.txt"], ["--url", "http://"]),
        (["西游记原著", "--timeout", "0"], ["--timeout", "0"]),
        (["西游记原著", "--time", "1"], ["--timeout"]),
        (["西游记原著", "--size", "124M"], ["--size", "gpt2"]),
        (["gpt2", "--size", "1.5B"], ["--size", "124M | 355M | 774M | 1558M", "1.5B"]),
        (["gpt2", "--url", "http://127.0.0.1/"], ["--url", "HF_ENDPOINT"]),
        (["gpt2", "--timeout", "5"], ["--timeout", "huggingface_hub"]),
    ],
)
def test_bad_argument_is_explained(tmp_path, flags, words):
    assert_failed(run_script(tmp_path, *flags), 2, *words)


@pytest.mark.parametrize(
    "text", ["book.txt", "file:///etc/hosts", "http://", "http://host:port/", "http://[1/", "http://me:key@host/"]
)
def test_only_http_addresses_are_accepted(text):
    with pytest.raises(ArgumentTypeError):
        download.http_url(text)


def test_chinese_address_is_encoded():
    assert download.http_url("https://例.cn/西 游?a=b%20c") == "https://xn--fsq.cn/%E8%A5%BF%20%E6%B8%B8?a=b%20c"


def test_help_lists_datasets_and_flags(tmp_path):
    result = run_script(tmp_path, "--help")
    assert (result.returncode, result.stderr) == (0, "")
    for word in ("西游记原著", "gpt2", "--size", "124M", "HF_ENDPOINT", "--url", "--output", "--timeout", "30"):
        assert word in result.stdout


@pytest.mark.parametrize("dataset", download.DATASETS.values(), ids=download.DATASETS)
def test_dataset_table_is_well_formed(dataset):
    assert download.http_url(dataset.url) == dataset.url
    assert re.fullmatch("[0-9a-f]{64}", dataset.sha256)
    assert dataset.size > 0
    assert Path(dataset.file_name).name == dataset.file_name


@pytest.fixture(scope="module")
def gpt2() -> bytes:
    """发布的样子：没有前缀，也没有与嵌入共用的 lm_head。"""
    state = build_reference(**SMALL_GPT2).state_dict()
    del state["lm_head.weight"]
    return safetensors.torch.save({name.removeprefix("transformer."): tensor for name, tensor in state.items()})


@pytest.fixture
def hub(server: Server, tmp_path: Path, gpt2: bytes) -> Server:
    """镜像站；tmp_path 里是与 gpt2 同样结构的配置。"""
    server.content = gpt2
    config = {"vocab_size": 300, "context_length": 16, "emb_dim": 64, "num_heads": 1, "num_layers": 2}
    text = json.dumps({**config, "drop_rate": 0.1, "qkv_bias": True})
    (tmp_path / "gpt2_config_124M.json").write_text(text, encoding="utf-8")
    return server


def get_gpt2(folder: Path, endpoint: str, *flags: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """运行“download.py gpt2”，HF_ENDPOINT 指向 endpoint。"""
    arguments = [sys.executable, "-c", WEIGHTS_PROGRAM, str(folder), "gpt2", *flags]
    return execute(arguments, folder, PYTHONPATH=str(ROOT), HF_ENDPOINT=endpoint, **environment)


def endpoint_of(server: Server) -> str:
    return f"http://127.0.0.1:{server.server_port}"


def saved_gpt2(folder: Path) -> dict[str, bytes]:
    """下载留下的文件。"""
    return {path.name: path.read_bytes() for path in folder.glob("gpt2_124M.*")}


def test_gpt2_is_fetched_from_the_mirror_and_can_be_read(hub, tmp_path, gpt2):
    result = get_gpt2(tmp_path, f"{endpoint_of(hub)}/")
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout == f"已下载：{tmp_path / 'gpt2_124M.safetensors'}（{len(gpt2):,} 字节）\n"
    assert set(hub.paths) == {"/openai-community/gpt2/resolve/main/model.safetensors"}
    assert saved_gpt2(tmp_path) == {"gpt2_124M.safetensors": gpt2}
    assert read_weights_file(tmp_path / "gpt2_124M.safetensors").config["num_layers"] == 2


def test_gpt2_goes_on_after_a_cut(hub, tmp_path, gpt2):
    """断了一次，库自己再连。"""

    def cut_once(handler: Handler) -> None:
        (resumable if handler.server.ranges[1:] else cut_midway)(handler)

    hub.answer = cut_once
    result = get_gpt2(tmp_path, endpoint_of(hub))
    assert (result.returncode, result.stderr) == (0, "")
    assert len(hub.ranges) == 2
    assert saved_gpt2(tmp_path) == {"gpt2_124M.safetensors": gpt2}


@pytest.mark.parametrize("suffix", ["", ".part"])
def test_complete_gpt2_is_not_fetched_again(hub, tmp_path, gpt2, suffix):
    (tmp_path / f"gpt2_124M.safetensors{suffix}").write_bytes(gpt2)
    assert get_gpt2(tmp_path, endpoint_of(hub)).returncode == 0
    assert hub.ranges == []
    assert saved_gpt2(tmp_path) == {"gpt2_124M.safetensors": gpt2}


def test_gpt2_is_resumed_by_the_next_run(hub, tmp_path, gpt2):
    (tmp_path / "gpt2_124M.safetensors.part").write_bytes(gpt2[:1000])
    assert get_gpt2(tmp_path, endpoint_of(hub)).returncode == 0
    assert hub.ranges == ["bytes=1000-"]
    assert saved_gpt2(tmp_path) == {"gpt2_124M.safetensors": gpt2}


def test_leftover_of_another_version_is_discarded(hub, tmp_path, gpt2):
    """.part 根本不是它的一部分：SHA-256 对不上，删掉，下次从头来；比它还长的不用。"""
    (tmp_path / "gpt2_124M.safetensors.part").write_bytes(b"?" * 100)
    assert_failed(get_gpt2(tmp_path, endpoint_of(hub)), 1, "SHA-256", "已删除", "从头下载", "HF_ENDPOINT")
    assert saved_gpt2(tmp_path) == {}
    (tmp_path / "gpt2_124M.safetensors.part").write_bytes(b"?" * (len(gpt2) + 1))
    assert get_gpt2(tmp_path, endpoint_of(hub)).returncode == 0
    assert saved_gpt2(tmp_path) == {"gpt2_124M.safetensors": gpt2}


@pytest.mark.parametrize(
    ("content", "words"),
    [(b"<html>" * 100, "已损坏或不是模型文件"), (safetensors.torch.save({}), "不是 GPT-2 的结构")],
)
def test_what_is_not_gpt2_is_deleted_and_the_existing_file_stays(hub, tmp_path, content, words):
    (tmp_path / "gpt2_124M.safetensors").write_bytes(b"mine")
    hub.content = content
    assert_failed(get_gpt2(tmp_path, endpoint_of(hub)), 1, words, "已删除", "HF_ENDPOINT")
    assert saved_gpt2(tmp_path) == {"gpt2_124M.safetensors": b"mine"}


def test_file_that_was_there_is_kept_as_backup(hub, tmp_path, gpt2):
    (tmp_path / "gpt2_124M.safetensors").write_bytes(b"mine")
    result = get_gpt2(tmp_path, endpoint_of(hub))
    assert result.returncode == 0 and "gpt2_124M.safetensors.bak" in result.stderr
    assert saved_gpt2(tmp_path) == {"gpt2_124M.safetensors": gpt2, "gpt2_124M.safetensors.bak": b"mine"}


@pytest.mark.parametrize(("length", "words"), [(None, "没有说文件有多大"), ("9" * 5000, "不合 HTTP 规范")])
def test_server_must_say_how_large_the_weights_are(hub, tmp_path, length, words):
    hub.length = length
    assert_failed(get_gpt2(tmp_path, endpoint_of(hub)), 1, words)
    assert saved_gpt2(tmp_path) == {} and hub.ranges == []


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Content_Length": "9" * 5000},
        {"Content_Range": f"bytes 1000-1999/{'9' * 5000}"},
        {"Content_Range": "bytes 1000-1999/500"},
    ],
    ids=["none", "long_length", "long_range", "impossible_range"],
)
def test_weights_never_grow_past_their_size(hub, tmp_path, gpt2, headers):
    """服务器一直给下去，也不会一直写下去。"""
    hub.answer = partial(endless, **headers)
    assert_failed(get_gpt2(tmp_path, endpoint_of(hub)), 1, "不合 HTTP 规范|连接中断", "HF_ENDPOINT")
    assert sum(map(len, saved_gpt2(tmp_path).values())) <= len(gpt2)


def test_real_structure_is_required(hub, tmp_path):
    arguments = [sys.executable, str(ROOT / "data" / "download.py"), "gpt2", "--size", "355M", "--output", "x"]
    result = execute(arguments, tmp_path, PYTHONPATH="", HF_ENDPOINT=endpoint_of(hub))
    assert_failed(result, 1, "不是 gpt2_config_355M.json 的结构")
    assert set(hub.paths) == {"/openai-community/gpt2-medium/resolve/main/model.safetensors"}


def test_missing_weights_and_refused_connection_are_one_line(hub, tmp_path):
    hub.length = "missing"
    assert_failed(get_gpt2(tmp_path, endpoint_of(hub)), 1, "服务器回答 404", "HF_ENDPOINT")
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        endpoint = f"http://127.0.0.1:{unused.getsockname()[1]}"
        assert_failed(get_gpt2(tmp_path, endpoint), 1, "连接被拒绝", "HF_ENDPOINT")
    assert_failed(get_gpt2(tmp_path, endpoint, HF_HUB_OFFLINE="1"), 2, "HF_HUB_OFFLINE")


@pytest.mark.parametrize("endpoint", ["hf-mirror.com", "ftp://hf-mirror.com", "http://host:port"])
def test_bad_endpoint_is_explained(tmp_path, endpoint):
    assert_failed(get_gpt2(tmp_path, endpoint, "--output", "x"), 2, "HF_ENDPOINT", "https://huggingface.co")


@pytest.mark.parametrize(
    ("size", "repository"), [("124M", "gpt2"), ("355M", "gpt2-medium"), ("774M", "gpt2-large"), ("1558M", "gpt2-xl")]
)
def test_every_size_has_its_repository_and_configuration(size, repository):
    weights = download.WEIGHTS[size]
    assert weights.repository == f"openai-community/{repository}"
    assert (ROOT / "configs" / weights.config_name).exists() and weights.file_name == f"gpt2_{size}.safetensors"


def test_disk_failure_is_one_line(hub, tmp_path):
    (tmp_path / "gpt2_124M.safetensors.part").mkdir()
    assert_failed(get_gpt2(tmp_path, endpoint_of(hub)), 1, "gpt2_124M.safetensors.part", "读写失败（是一个文件夹）")


def test_another_process_downloading_the_same_file_is_named(hub, tmp_path):
    with output_lock(tmp_path / "gpt2_124M.safetensors"):
        assert_failed(get_gpt2(tmp_path, endpoint_of(hub)), 2, "另一个进程", str(os.getpid()))
