"""generate.py 遇到写错的参数、损坏的模型文件、奇怪的提示语和终端时，用户看到什么、文件变没变。"""

import contextlib
import io
import json
import os
import pickle
import random
import shlex
import signal
import struct
import subprocess
import sys
import tarfile
import zipfile
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from conftest import ROOT, TINY_MODEL, assert_error, listing, run, tiny_config, write_config
from model.language_model import LanguageModel
from utils.errors import UserError
from utils.generation import Sampling, generate_text
from utils.model_file import read_model_file, save_model, tokenizer_of

LONG_NAME = "长" * 100  # UTF-8 是 300 字节，超过文件名的上限 255


NO_FIFO = pytest.mark.skipif(os.name == "nt", reason="Windows 没有 mkfifo")
NO_BASH = pytest.mark.skipif(os.name == "nt", reason="Windows 没有 bash 的重定向和 /dev/full")
NO_SURROGATES = pytest.mark.skipif(os.name == "nt", reason="Windows 的参数里没有孤立的代理字符")
NO_SIGINT = pytest.mark.skipif(os.name == "nt", reason="Windows 没有 preexec_fn，也不能只给一个进程发 Ctrl-C")


@pytest.fixture(autouse=True)
def _one_thread(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # 小模型多线程反而慢


def assert_refused(folder, args, *parts, **options):
    """generate.py 报错退出，而且文件都没变。"""
    before = listing(folder)
    assert_error(run("generate.py", *args, cwd=folder, **options), *parts)
    assert listing(folder) == before


# ---- 参数 ----

BAD_ARGUMENTS = [
    (["--modle_path", "x"], "--modle_path", "是否想写 --model_path？"),
    (["你好"], "你好", "无法识别的参数"),
    ([""], '""', "无法识别的参数"),
    pytest.param((["\udcff"], r"\udcff", "无法识别的参数"), marks=NO_SURROGATES, id="surrogate"),
    (["--help=3"], "--help", "'3'"),
    (["--temperature=-1"], "--temperature", "≥0 的有限数", "收到 -1"),
    (["--temperature", "nan"], "--temperature", "收到 nan"),
    (["--temperature", "inf"], "--temperature", "收到 inf"),
    (["--temperature", "1e400"], "--temperature", "收到 1e400"),
    (["--temperature", "-1e5"], "--temperature", "--temperature=取值"),
    (["--temperature", ""], "--temperature", '收到 ""'),
    (["--temperature", "热"], "--temperature", "收到 热"),
    pytest.param(
        (["--temperature", "\udcff"], "--temperature", r"收到 \udcff"),
        marks=NO_SURROGATES,
        id="--temperature surrogate",
    ),
    (["--temperature", "1\n2"], "--temperature", r"收到 1\n2"),
    (["--top_k", "0"], "--top_k", "≥1", "收到 0"),
    (["--top_k", "-5"], "--top_k", "≥1", "收到 -5"),
    (["--top_k", "５.０"], "--top_k", "收到 ５.０"),
    (["--top_k", "9" * 5000], "--top_k", "≥1"),
    (["--top_p", "0"], "--top_p", "(0, 1]", "收到 0"),
    (["--top_p", "1.1"], "--top_p", "(0, 1]", "收到 1.1"),
    (["--top_p", "nan"], "--top_p", "收到 nan"),
    (["--max_new_tokens", "0"], "--max_new_tokens", "≥1", "收到 0"),
    (["--max_new_tokens", "-" + "9" * 400], "--max_new_tokens", "≥1"),
    (["--num_samples", "0"], "--num_samples", "收到 0"),
    (["--repetition_penalty", "0"], "--repetition_penalty", "收到 0"),
    (["--seed", "1.5"], "--seed", "收到 1.5"),
    (["--seed", str(2**63)], "--seed", str(2**63)),
    (["--prompt", ""], "--prompt", "不能为空"),
    (["--prompt", "-你好"], "--prompt", "--prompt=取值"),
    (["--prompt"], "--prompt", "缺少取值"),
    (["--device", "gpu"], "--device", "收到 gpu"),
    (["--dtype", ""], "--dtype", '收到 ""'),
    (["--quantize", "int4"], "--quantize", "int4"),
    (["--quantize", "int8", "--dtype", "float32"], "--quantize", "--dtype"),
    (["--model_path", ""], "--model_path", "空"),
    (["--config", ""], "--config", "空"),
]


@pytest.mark.parametrize(
    "case", BAD_ARGUMENTS, ids=lambda case: " ".join(case[0])[:30].encode("unicode_escape").decode()
)
def test_bad_argument_is_named_with_its_value(tmp_path, case):
    args, *parts = case
    assert_refused(tmp_path, args, *parts)


def test_quantizing_is_refused_on_a_gpu(tmp_path, monkeypatch):
    """假装有显卡：只看是否拒绝，没有真的用到它。"""
    code = (
        "import runpy, sys, torch; sys.argv.pop(0); torch.cuda.is_available = lambda: True;"
        "runpy.run_path(sys.argv[0], run_name='__main__')"
    )
    command = [sys.executable, "-c", code, ROOT / "generate.py", "--device", "cuda", "--quantize", "int8"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONIOENCODING": "utf-8"}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, encoding="utf-8", check=False)
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr == "错误：--quantize：只用在 CPU 上，这里会用 CUDA。加 --device cpu，或去掉它。\n"


def test_absent_device_is_refused(tmp_path):
    parts = ("--device", "未检测到可用的 CUDA", "--device cpu", "--device auto")
    assert_refused(tmp_path, ["--device", "cuda"], *parts, env={"CUDA_VISIBLE_DEVICES": ""})


# ---- 模型文件 ----


def save_changed(change):
    """改动好模型的 state_dict 再存成 model.pth。"""

    def make(good, path):
        state = torch.load(good, weights_only=True)
        change(state)
        torch.save(state, path)

    return make


def write_bytes(change):
    return lambda good, path: path.write_bytes(change(good.read_bytes()))


def flip_bit_in_a_tensor(good, path):
    data = bytearray(good.read_bytes())
    pattern = torch.load(good, weights_only=True)["tok_emb.weight"].numpy().tobytes()[:64]
    data[data.index(pattern) + 10] ^= 4
    path.write_bytes(data)


class RunsCode:
    """unpickle 时会在当前文件夹里建 hacked。"""

    def __reduce__(self):
        return exec, ("open('hacked', 'w')",)


def write_tar(good, path):
    with tarfile.open(path, "w") as archive:
        archive.add(good, "storages")


def write_zip_bomb(good, path):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        archive.writestr("archive/data.pkl", pickle.dumps({}))
        with archive.open("archive/data/0", "w", force_zip64=True) as entry:
            for _ in range(100):
                entry.write(bytes(10**7))


def write_unfitting_shape(good, path):
    """文件里不记配置的权重，emb_dim 是 64；配置文件说 32。"""
    state = LanguageModel(tiny_config(emb_dim=64)).state_dict()
    del state["_extra_state"]
    torch.save(state, path)


def set_recorded(**changes):
    return save_changed(lambda state: state["_extra_state"]["config"].update(changes))


def set_weight(name, value):
    return save_changed(lambda state: state[name].view(-1)[3:4].fill_(value))


DAMAGED = "已损坏或不是模型文件"
BAD_MODELS = {
    "missing": (lambda good, path: None, ["找不到模型文件", "请先运行 pretrain.py"]),
    "folder": (lambda good, path: path.mkdir(), ["文件夹里没有 model.safetensors"]),
    "fifo": (lambda good, path: os.mkfifo(path), ["不是普通文件"]),
    "empty": (write_bytes(lambda data: b""), [DAMAGED]),
    "truncated": (write_bytes(lambda data: data[: len(data) // 2]), [DAMAGED]),
    "html": (write_bytes(lambda data: b"<!DOCTYPE html><html>404</html>"), [DAMAGED]),
    "random": (write_bytes(lambda data: random.Random(1).randbytes(9999)), [DAMAGED]),
    "flipped bit": (flip_bit_in_a_tensor, ["校验失败"]),
    "code": (lambda good, path: torch.save({"w": RunsCode()}, path), [DAMAGED, "拒绝"]),
    "legacy pickle": (lambda good, path: path.write_bytes(pickle.dumps(RunsCode())), [DAMAGED]),
    "legacy torch": (
        lambda good, path: torch.save({"w": torch.ones(2)}, path, _use_new_zipfile_serialization=False),
        [DAMAGED],
    ),
    "tar": (write_tar, [DAMAGED]),
    "not a state": (lambda good, path: torch.save([1], path), [DAMAGED]),
    "no weights": (lambda good, path: torch.save({}, path), [DAMAGED]),
    "giant stride-0 tensor": (save_changed(lambda state: state.update(x=torch.ones(1).expand(10**12))), [DAMAGED]),
    "sparse": (save_changed(lambda state: state.update(x=torch.ones(2, 2).to_sparse())), [DAMAGED]),
    "complex": (save_changed(lambda state: state.update(x=torch.ones(2, dtype=torch.complex64))), [DAMAGED]),
    "nan": (set_weight("tok_emb.weight", float("nan")), ["权重 tok_emb.weight", "NaN"]),
    "infinity": (set_weight("final_norm.weight", float("inf")), ["权重 final_norm.weight", "无穷大"]),
    "recorded config": (set_recorded(emb_dim="x"), ["记录的配置", "emb_dim"]),
    "recorded layers": (set_recorded(num_layers=2**31 - 1), ["num_layers", "2147483647"]),
    "recorded size": (set_recorded(hidden_dim=2**30), ["预计需要", "GB"]),
}


@pytest.fixture(scope="module")
def bad_model_runs(trained, tmp_path_factory):
    """{名字: 运行的结果、前后的文件}；每个进程要花两秒载入 torch，所以两个一起跑。"""

    def run_one(item):
        name, (make, _) = item
        folder = tmp_path_factory.mktemp("bad")
        make(trained / "model.pth", folder / "model.pth")
        before = listing(folder)
        return name, (run("generate.py", "--prompt", "悟空", cwd=folder), before, listing(folder))

    models = {name: case for name, case in BAD_MODELS.items() if name != "fifo" or hasattr(os, "mkfifo")}
    with ThreadPoolExecutor(2) as pool:
        return dict(pool.map(run_one, models.items()))


@pytest.mark.parametrize("name", [pytest.param(name, marks=NO_FIFO) if name == "fifo" else name for name in BAD_MODELS])
def test_bad_model_file_is_refused(bad_model_runs, name):
    result, before, after = bad_model_runs[name]
    parts = BAD_MODELS[name][1]
    assert_error(result, *parts, code=1 if "GB" in parts else 2)
    assert "GB" in parts or "model.pth" in result.stderr
    assert after == before


def test_weights_that_do_not_fit_the_given_config_name_the_field(trained, tmp_path):
    write_unfitting_shape(trained / "model.pth", tmp_path / "model.pth")
    config = write_config(tmp_path, vocab_size=300, tokenizer={"type": "gpt2"})
    config.write_text(json.dumps({**TINY_MODEL, "vocab_size": 50257}), encoding="utf-8")
    parts = ["model.pth", "tiny.json", "vocab_size 权重为 300，配置为 50257"]
    assert_refused(tmp_path, ["--prompt", "悟空", "--config", "tiny.json"], *parts)


def test_config_that_contradicts_the_model_names_the_field(trained, tmp_path):
    config = write_config(tmp_path, num_heads=8)
    args = ["--prompt", "悟空", "--model_path", trained / "model.pth", "--config", config]
    assert_refused(tmp_path, args, "--config", "num_heads 是 8", "训练时是 4")


def test_zip_bomb_is_refused_without_being_unpacked(trained, tmp_path):
    write_zip_bomb(None, tmp_path / "model.pth")
    code = (
        "import atexit, runpy, sys; from benchmarks.machine import peak_bytes; sys.argv.pop(0);"
        "peak = lambda: open('peak', 'w').write(str(peak_bytes()));"
        "atexit.register(peak); runpy.run_path(sys.argv[0], run_name='__main__')"
    )
    command = [sys.executable, "-c", code, ROOT / "generate.py", "--prompt", "悟空"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONIOENCODING": "utf-8"}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, encoding="utf-8", check=False)
    assert done.returncode == 2 and DAMAGED in done.stderr and done.stderr.count("\n") == 1, done.stderr
    assert int((tmp_path / "peak").read_text(encoding="utf-8")) < 700_000_000  # 解开有 1 GB


def test_any_flipped_bit_is_noticed_or_harmless(trained, tmp_path):
    """整个文件随机翻一位，试 300 次：要么拒绝，要么读到的与原来一模一样。"""
    good = read_model_file(trained / "model.pth")
    data = (trained / "model.pth").read_bytes()
    rng = random.Random(0)
    for _ in range(300):
        damaged = bytearray(data)
        damaged[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        (tmp_path / "model.pth").write_bytes(damaged)
        with contextlib.suppress(UserError):
            file = read_model_file(tmp_path / "model.pth")
            assert (file.config, file.tokenizer) == (good.config, good.tokenizer)
            assert all(torch.equal(file.weights[key], value) for key, value in good.weights.items())


def test_damage_to_the_directory_of_the_archive_is_a_user_error(trained, tmp_path):
    """zip 的目录在文件末尾，逐位翻转最后两百字节。"""
    data = (trained / "model.pth").read_bytes()
    for bit in range(0, 200 * 8, 3):
        damaged = bytearray(data)
        damaged[-1 - bit // 8] ^= 1 << bit % 8
        (tmp_path / "model.pth").write_bytes(damaged)
        with contextlib.suppress(UserError):
            read_model_file(tmp_path / "model.pth")


def test_model_saved_on_cuda_is_read_on_cpu(trained, tmp_path):
    """没有显卡也能造出这样的文件：把存储位置 cpu 改写成 cuda:0。"""

    def text(value):
        return b"X" + struct.pack("<I", len(value)) + value

    buffer = io.BytesIO()
    with zipfile.ZipFile(trained / "model.pth") as source, zipfile.ZipFile(buffer, "w") as target:
        for name in source.namelist():
            data = source.read(name)
            if name.endswith("data.pkl"):
                assert text(b"cpu") in data
                data = data.replace(text(b"cpu"), text(b"cuda:0"))
            target.writestr(name, data)
    (tmp_path / "model.pth").write_bytes(buffer.getvalue())
    places = set()
    torch.load(tmp_path / "model.pth", weights_only=True, map_location=lambda data, place: places.add(place) or data)
    assert places == {"cuda:0"}
    result = run("generate.py", "--prompt", "悟空", cwd=tmp_path)
    assert (result.code, result.stderr) == (0, ""), result.stderr


@pytest.mark.parametrize(
    ("args", "parts"),
    [
        (["--config", "none.json"], ["none.json", "找不到配置文件", "gpt2_config_124M.json"]),
        (["--config", "tiny.json"], ["tiny.json", "未知字段 n_head", "num_heads"]),
        (["--model_path", LONG_NAME], ["长长长", "打不开模型文件"]),
    ],
    ids=["missing-config", "bad-config", "long-name"],
)
def test_bad_file_argument_is_named(tmp_path, args, parts):
    write_config(tmp_path, n_head=4)
    assert_refused(tmp_path, args, *parts)


# ---- 提示语和输出 ----


def test_dialogue_answers_every_kind_of_line(trained):
    lines = [
        b"",
        b"   \t",
        "悟空".encode(),
        b"<|endoftext|>",
        b"\xed\xa0\x80 lone surrogate",
        b"\xff\xfe not utf-8",
        b"\x00\x1b[31m\x07\x7f control",
        "👨‍👩‍👧‍👦🏳️‍🌈 e\u0301 \u202e\u2028 𠀀".encode(),
        "大圣".encode() * 40,
        b"exit",
        b"never read",
    ]
    result = run("generate.py", "--max_new_tokens", "3", "--temperature=1", cwd=trained, stdin=b"\n".join(lines))
    assert result.code == 0, result.stderr
    assert result.stdout.count("模型: ") == 7 and "模型: <|endoftext|>" in result.stdout
    assert "never read" not in result.stdout
    assert set(result.stderr.splitlines()) == {"提示：开头超过上下文长度，只使用最后 16 个 token"}


def test_megabytes_of_one_character_are_answered(trained):
    lines = ("悟" * 350_000, "a" * 1_000_000, "x" + " " * 1_000_000 + "x", " " * 1_000_000, "-" * 1_000_000)
    result = run("generate.py", "--max_new_tokens", "1", cwd=trained, stdin="\n".join(lines))  # 输入结束也就结束
    assert result.code == 0 and "Traceback" not in result.stderr
    assert result.stdout.count("模型: ") == 4 and result.stderr.count("提示：") == 4


@NO_SURROGATES
def test_too_large_top_k_is_lowered_and_the_stream_equals_the_whole_text(trained):
    """顺便看：全角数字算数字，孤立代理字符的提示语照样回答。"""
    prompt = "悟空" * 20 + "\udcff"
    flags = ["--top_k", "1" + "0" * 30, "--max_new_tokens", "４０", "--seed", "7"]
    result = run("generate.py", "--prompt", prompt, "--temperature", "1.5", *flags, cwd=trained)
    assert result.code == 0, result.stderr
    assert "提示：--top_k 已降为词表大小 300" in result.stderr and "只使用最后 16 个 token" in result.stderr
    file = read_model_file(trained / "model.pth")
    model, tokenizer = LanguageModel(tiny_config()).eval(), tokenizer_of(file, None)
    model.load_state_dict(torch.load(trained / "model.pth", weights_only=True))
    sampling, generator = Sampling(1.5, 300), torch.Generator().manual_seed(7)
    assert result.stdout == generate_text(model, tokenizer, prompt, 40, sampling, generator) + "\n"


def test_sampling_that_does_nothing_at_temperature_zero_is_told(trained):
    result = run("generate.py", "--prompt", "悟空", "--top_k", 5, "--max_new_tokens", 2, cwd=trained)
    assert result.code == 0
    assert result.stderr == "提示：--temperature 是 0，每次取最可能的，--top_k 和 --top_p 不起作用\n"


def test_padded_vocabulary_ids_are_never_sampled(trained, tmp_path):
    """补齐的 id 分数最高，也抽不到。"""
    model = LanguageModel(tiny_config(vocab_size=320, tie_weights=False))
    model.tokenizer_state = read_model_file(trained / "model.pth").tokenizer
    with torch.no_grad():
        model.final_norm.bias.fill_(10)
        model.out_head.weight[300:].fill_(1)
    assert model.eval()(torch.tensor([[65]])).argmax() >= 300
    save_model(tmp_path / "model.pth", model)
    flags = ["--prompt", "悟空", "--max_new_tokens", "60", "--top_k", "320"]
    result = run("generate.py", *flags, "--temperature", "1", cwd=tmp_path)
    assert result.code == 0 and result.stderr == "提示：--top_k 已降为词表大小 300\n"


@pytest.mark.parametrize("terminal", [{"PYTHONIOENCODING": "ascii"}, {"PYTHONIOENCODING": "", "LC_ALL": "C"}])
def test_terminal_that_is_not_utf8_gets_replacements(trained, terminal):
    environment = {**terminal, "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    result = run("generate.py", "--max_new_tokens", "3", cwd=trained, stdin="悟空\n", env=environment)
    assert result.code == 0 and "?" in result.stdout and "Traceback" not in result.stderr, result.stderr


@NO_BASH
@pytest.mark.parametrize(
    ("redirection", "code", "error_lines"),
    [("<&-", 0, 0), (">&- --prompt 悟空", 0, 0), (">/dev/full --prompt 悟空", 1, 1), ("2>&- --top_k 0", 2, 0)],
    ids=["no-stdin", "no-stdout", "full-disk", "no-stderr"],
)
def test_missing_or_full_stream_is_no_traceback(trained, redirection, code, error_lines):
    command = f"{shlex.join([sys.executable, str(ROOT / 'generate.py')])} --max_new_tokens 3 {redirection}"
    environment = {**os.environ, "PYTHONIOENCODING": "utf-8"}
    done = subprocess.run(["bash", "-c", command], cwd=trained, env=environment, capture_output=True, check=False)
    stderr = done.stderr.decode("utf-8")
    assert (done.returncode, stderr.count("\n")) == (code, error_lines), stderr
    assert "Traceback" not in stderr + done.stdout.decode("utf-8")


@contextlib.contextmanager
def dialogue(folder, *args):
    """已经打印出“用户: ”的进程。"""
    process = subprocess.Popen(
        [sys.executable, ROOT / "generate.py", *args],
        cwd=folder,
        env={**os.environ, "PYTHONIOENCODING": "utf-8"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        # 后台任务会让子进程忽略 SIGINT，恢复成前台的样子
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    try:
        assert process.stdout.read(len("用户: ".encode())).decode("utf-8") == "用户: ", process.stderr.read()
        yield process
    finally:
        process.kill()
        process.communicate()


@NO_SIGINT
@pytest.mark.parametrize("while_answering", [False, True])
def test_ctrl_c_ends_the_dialogue_cleanly(trained, while_answering):
    with dialogue(trained, "--max_new_tokens", "1000000000") as process:
        if while_answering:
            process.stdin.write("悟空\n".encode())
            process.stdin.flush()
            process.stdout.read(200)
        process.send_signal(signal.SIGINT)
        _, stderr = process.communicate(timeout=60)
    assert (process.returncode, stderr) == (0, b"")


@NO_SIGINT
def test_sigterm_ends_the_dialogue_silently(trained):
    with dialogue(trained) as process:
        process.terminate()
        _, stderr = process.communicate(timeout=60)
    assert (process.returncode, stderr) == (128 + signal.SIGTERM, b"")


@NO_SIGINT
def test_reader_that_leaves_ends_the_dialogue_cleanly(trained):
    """generate.py | head -1"""
    with dialogue(trained, "--max_new_tokens", "1000000000") as process:
        process.stdin.write("悟空\n".encode())
        process.stdin.flush()
        process.stdout.readline()
        process.stdout.close()
        process.stdout = None
        _, stderr = process.communicate(timeout=60)
    assert (process.returncode, stderr) == (0, b"")
