"""pretrain.py 遇到写错的参数、配置、语料，以及信号和关掉的管道时，用户看到什么、文件变没变。"""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys

import pytest
import torch

from conftest import ROOT, TINY_FILE, assert_error, last_of_each, listing, make_corpus, run, write_config
from utils import cli
from utils.files import check_output_path
from utils.model_file import read_model_file

HUGE = "1" + "0" * 30
LONG_NAME = "长" * 100  # UTF-8 是 300 字节，超过文件名的上限 255


NO_FIFO = pytest.mark.skipif(os.name == "nt", reason="Windows 没有 mkfifo")
NO_UNIX_PATH = pytest.mark.skipif(os.name == "nt", reason="Windows 没有 /dev/null 和 /dev/zero")
NO_SURROGATES = pytest.mark.skipif(os.name == "nt", reason="Windows 的参数和文件名里没有孤立的代理字符")
NO_SIGINT = pytest.mark.skipif(os.name == "nt", reason="Windows 没有 preexec_fn，也不能只给一个进程发 Ctrl-C")


@pytest.fixture(autouse=True)
def _one_thread(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # 小模型多线程反而慢


@pytest.fixture
def folder(tmp_path, corpus_text):
    """有 tiny.json 和 corpus.txt 的文件夹。"""
    (tmp_path / "corpus.txt").write_text(corpus_text, encoding="utf-8")
    write_config(tmp_path)
    return tmp_path


def pretrain(folder, *args, **options):
    # --data_path 可以有几个，所以不放在最后
    arguments = last_of_each("--data_path", "corpus.txt", "--config", "tiny.json", *args)
    return run("pretrain.py", *arguments, cwd=folder, **options)


def assert_refused_and_untouched(folder, result_of, *parts, code=2):
    before = listing(folder)
    assert_error(result_of(), *parts, code=code)
    assert listing(folder) == before


POSITIVE_INTS = ("epochs", "max_steps", "batch_size", "accumulation_steps", "stride", "eval_freq", "eval_iter")
BAD_ARGUMENTS = [
    (["--modle_path", "x"], "--modle_path", "是否想写 --model_path？"),
    (["--EPOCHS=3"], "--EPOCHS", "无法识别的参数"),
    (["extra"], "extra", "无法识别的参数"),
    ([""], '""', "无法识别的参数"),
    (["--", "extra"], "无法识别的参数"),
    (["--epochs"], "--epochs", "缺少取值"),
    (["--learning_rate", "-inf"], "--learning_rate", "缺少取值", "--learning_rate=取值"),
    (["--compile=yes"], "--compile", "'yes'"),
    *(([f"--{name}", "0"], f"--{name}", "≥1", "收到 0") for name in POSITIVE_INTS),
    (["--batch_size", "-3"], "--batch_size", "收到 -3"),
    (["--batch_size", "2.5"], "--batch_size", "收到 2.5"),
    (["--batch_size", ""], "--batch_size", '收到 ""'),
    (["--batch_size", "九"], "--batch_size", "收到 九"),
    (["--batch_size", "-" + "9" * 400], "--batch_size", "≥1"),
    (["--batch_size", "9" * 5000], "--batch_size", "≥1"),
    (["--learning_rate", "0"], "--learning_rate", "收到 0"),
    (["--learning_rate", "nan"], "--learning_rate", "收到 nan"),
    (["--learning_rate", "1e400"], "--learning_rate", "收到 1e400"),
    (["--learning_rate=-1"], "--learning_rate", "收到 -1"),
    (["--muon_learning_rate", "inf"], "--muon_learning_rate", "收到 inf"),
    (["--max_minutes", "0"], "--max_minutes", "收到 0"),
    (["--grad_clip", "0"], "--grad_clip", "收到 0"),
    (["--weight_decay", "-1"], "--weight_decay", "收到 -1"),
    (["--warmup_steps", "-1"], "--warmup_steps", "≥0", "收到 -1"),
    (["--seed", "-1"], "--seed", "收到 -1"),
    (["--seed", HUGE], "--seed", HUGE),
    (["--optimizer", "sgd"], "--optimizer", "adamw | muon", "收到 sgd"),
    (["--keep", ""], "--keep", '收到 ""'),
    (["--device", "gpu"], "--device", "收到 gpu"),
    (["--dtype", "float16"], "--dtype", "收到 float16"),
    (["--sample_prompt", ""], "--sample_prompt", "不能为空"),
    (["--encoding", "utf-99"], "--encoding", "utf-99"),
    (["--encoding", "rot13"], "--encoding", "rot13"),
    (["--encoding", ""], "--encoding", '""'),
    (["--model_path", ""], "--model_path", "空"),
    (["--data_path", ""], "--data_path", "空"),
    (["--seed", "1\n2\r\x1b[31m"], "--seed", r"1\n2\r\x1b[31m"),
    pytest.param((["--seed", "\udcff"], "--seed", r"收到 \udcff"), marks=NO_SURROGATES, id="--seed surrogate"),
]


@pytest.mark.parametrize(
    "case", BAD_ARGUMENTS, ids=lambda case: " ".join(case[0])[:30].encode("unicode_escape").decode()
)
def test_bad_argument_is_named_with_its_value(folder, case):
    args, *parts = case
    assert_refused_and_untouched(folder, lambda: pretrain(folder, *args), *parts)


def test_path_with_a_null_character_is_refused():
    with pytest.raises(cli.argparse.ArgumentTypeError):
        cli.file_path("a\0b")


def test_help_does_not_need_torch_or_a_reader(folder):
    result = run("pretrain.py", "--help", cwd=folder, env={"PYTHONIOENCODING": "ascii"})
    assert result.code == 0 and "--learning_rate" in result.stdout and result.stderr == ""
    read_end, write_end = os.pipe()
    os.close(read_end)
    with os.fdopen(write_end, "wb") as closed_pipe:
        command = [sys.executable, ROOT / "pretrain.py", "--help"]
        done = subprocess.run(command, stdout=closed_pipe, stderr=subprocess.PIPE, check=False)
    assert (done.returncode, done.stderr) == (0, b"")


@pytest.mark.parametrize(("encoding", "language"), [("ascii", "C"), ("gbk", "zh_CN.GBK")])
def test_error_on_a_terminal_that_is_not_utf8_is_one_line(folder, encoding, language):
    terminal = {"PYTHONIOENCODING": encoding, "LC_ALL": language, "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    result = pretrain(folder, "--data_path", "没有的.txt", env=terminal)
    assert result.code == 2 and result.stderr.count("\n") == 1 and "Traceback" not in result.stderr


# ---- 输出路径 ----


def make_fifo(folder, name):
    os.mkfifo(folder / name)
    return name


@pytest.mark.parametrize(
    ("make", "part"),
    [
        (lambda folder: ".", "是一个文件夹"),
        pytest.param(lambda folder: make_fifo(folder, "pipe"), "不是普通文件", marks=NO_FIFO),
        pytest.param(lambda folder: "/dev/null/x", "/dev/null", marks=NO_UNIX_PATH),
        (lambda folder: "corpus.txt/model.pth", "corpus.txt"),
        (lambda folder: LONG_NAME, "名字太长"),
        (lambda folder: LONG_NAME + "/model.pth", "名字太长"),
        (lambda folder: "a" * 240, "名字太长"),  # 自己不长，加上 .log.jsonl 就太长
    ],
    ids=["folder", "fifo", "inside-device", "inside-file", "long", "long-folder", "long-with-suffix"],
)
def test_unusable_output_is_refused_before_training(folder, make, part):
    path = make(folder)
    assert_refused_and_untouched(folder, lambda: pretrain(folder, "--model_path", path), path[:20], part)


@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="没有 /proc，找不到连 root 也写不进去的地方")
def test_unwritable_folder_is_refused_before_training(folder):
    assert_refused_and_untouched(folder, lambda: pretrain(folder, "--model_path", "/proc/x"), "/proc/x", "无法写入")


def test_device_file_as_output_is_never_renamed(tmp_path, monkeypatch):
    moved = []
    monkeypatch.setattr(os, "replace", lambda *args: moved.append(args))
    with pytest.raises(Exception, match="不是普通文件"):
        check_output_path(tmp_path.__class__(os.devnull))
    assert not moved


# ---- 配置 ----


def refuse_config(folder, content, *parts, code=2):
    data = content if isinstance(content, bytes) else content.encode("utf-8")
    (folder / "tiny.json").write_bytes(data)
    assert_refused_and_untouched(folder, lambda: pretrain(folder), "tiny.json", *parts, code=code)


@pytest.mark.parametrize(
    ("content", "parts"),
    [
        (b"", ["不是合法 JSON"]),
        ('{\n "vocab_size": 300,\n "x" 1}', ["第 3 行第 6 列不是合法 JSON"]),
        ("{'vocab_size': 300}", ["第 1 行第 2 列"]),
        ("[1, 2]", ["最外层"]),
        ("null", ["最外层"]),
        ("[" * 100_000, ["嵌套太深"]),
        ('{"training": ' + '{"a":' * 100_000, ["嵌套太深"]),
        ('{"a": NaN}', ["NaN"]),
        ('{"a": -Infinity}', ["-Infinity"]),
        ('{"vocab_size": 1, "vocab_size": 2}', ["vocab_size", "重复"]),
        ('{"training": {"seed": 1, "seed": 2}}', ["seed", "重复"]),
        ('{"vocab_size": ' + "9" * 5000 + "}", ["999", "不是合法的数值"]),
        ("{}".encode("utf-16"), ["第 1 字节不是 UTF-8"]),
        ('{"配置": 1}'.encode("gb18030"), ["字节不是 UTF-8"]),
        (b'{"a": "\x00"}', ["不是合法 JSON"]),
    ],
    ids=lambda value: repr(value)[:25] if not isinstance(value, list) else "",
)
def test_file_that_is_not_a_json_object_is_located(folder, content, parts):
    refuse_config(folder, content, *parts)


BAD_FIELDS = [
    ({"num_heads": ...}, ["缺少字段 num_heads"]),
    ({"n_head": 4}, ["未知字段 n_head", "是否想写 num_heads？"]),
    ({"model": {"emb_dim": 32}}, ["未知字段 model"]),
    ({"emb_dim\n": 32}, [r"未知字段 emb_dim\n"]),
    *(({name: "768"}, [f"{name} 应为正整数", '收到 "768"']) for name in ("vocab_size", "context_length", "emb_dim")),
    ({"emb_dim": True}, ["emb_dim", "收到 true"]),
    ({"emb_dim": None}, ["emb_dim", "收到 null"]),
    ({"emb_dim": 32.0}, ["emb_dim", "收到 32.0"]),
    ({"emb_dim": [32]}, ["emb_dim", "收到 [32]"]),
    ({"num_layers": 0}, ["num_layers 应为正整数", "收到 0"]),
    ({"num_layers": -(10**400)}, ["num_layers 应为正整数"]),
    ({"emb_dim": 4 * 10**30}, ["emb_dim", str(4 * 10**30)]),
    ({"context_length": 10**400}, ["context_length"]),
    ({"qkv_bias": 1}, ["qkv_bias", "收到 1"]),
    ({"qkv_bias": "true"}, ["qkv_bias", '收到 "true"']),
    ({"emb_dim": 30}, ["emb_dim=30", "num_heads=4"]),
    ({"drop_rate": 1}, ["drop_rate", "[0, 1)", "收到 1"]),
    ({"drop_rate": -0.1}, ["drop_rate", "收到 -0.1"]),
    ({"drop_rate": 10**400}, ["drop_rate"]),
    ({"drop_rate": False}, ["drop_rate", "收到 false"]),
    ({"rope_base": 10**400}, ["rope_base"]),
    ({"position": ["rope"]}, ["position", "learned | rope", '["rope"]']),
    ({"norm": "batch"}, ["norm", '收到 "batch"']),
    ({"training": None}, ['"training" 应为一个对象']),
    ({"training": [1]}, ['"training" 应为一个对象']),
    ({"training": {"epoch": 3}}, ["training", "未知字段 epoch"]),
    ({"training": {"training": {}}}, ["training", "未知字段 training"]),
    ({"training": {"batch_size": True}}, ["batch_size", "数字", "收到 true"]),
    ({"training": {"batch_size": "4"}}, ["batch_size", "数字", '收到 "4"']),
    ({"training": {"batch_size": {}}}, ["batch_size", "收到 {}"]),
    ({"training": {"batch_size": None}}, ["batch_size", "收到 "]),
    ({"training": {"optimizer": 3}}, ["optimizer", "文字", "收到 3"]),
    ({"training": {"learning_rate": 0}}, ["learning_rate", "收到 0"]),
    ({"training": {"learning_rate": 10**400}}, ["learning_rate"]),
    ({"tokenizer": "gpt2"}, ['"tokenizer" 应为一个对象', '收到 "gpt2"']),
    ({"tokenizer": None}, ['"tokenizer" 应为一个对象', "收到 null"]),
    ({"tokenizer": {}}, ["type", "gpt2 | bpe", "收到 null"]),
    ({"tokenizer": {"type": ["bpe"]}}, ["type", '收到 ["bpe"]']),
    ({"tokenizer": {"type": "gpt2", "size": 3}}, ["tokenizer", "未知字段 size"]),
    ({"tokenizer": {"type": "bpe"}}, ["vocab_size", "收到 null"]),
    ({"tokenizer": {"type": "bpe", "vocab_size": 256}}, ["vocab_size", "257", "收到 256"]),
    ({"tokenizer": {"type": "bpe", "vocab_size": True}}, ["vocab_size", "收到 true"]),
    ({"tokenizer": {"type": "bpe", "vocab_size": 10**12}}, ["vocab_size", "收到 1000000000000"]),
]


@pytest.mark.parametrize("case", BAD_FIELDS, ids=lambda case: str(case[0])[:40].encode("unicode_escape").decode())
def test_bad_field_is_named_with_its_value(folder, case):
    changes, parts = case
    values = {key: value for key, value in {**TINY_FILE, **changes}.items() if value is not ...}
    refuse_config(folder, json.dumps(values, ensure_ascii=False), *parts)


def test_number_that_overflows_to_infinity_is_refused(folder):
    text = (folder / "tiny.json").read_text(encoding="utf-8")
    refuse_config(folder, text.replace("0.003", "1e400"), "learning_rate", "inf")
    refuse_config(folder, text.replace('"drop_rate": 0.0', '"drop_rate": 1e400'), "drop_rate")


@pytest.mark.parametrize(
    ("path", "parts"),
    [
        ("none.json", ["none.json", "找不到配置文件", "gpt2_config_124M.json"]),
        pytest.param("pipe", ["pipe", "不是普通文件"], marks=NO_FIFO),
        pytest.param("/dev/zero", ["/dev/zero", "不是普通文件"], marks=NO_UNIX_PATH),
        ("corpus.txt/x", ["corpus.txt/x", "打不开配置文件"]),
        (LONG_NAME, ["长长长", "打不开配置文件"]),
    ],
)
def test_config_that_is_not_a_file_is_refused(folder, path, parts):
    if path == "pipe":
        make_fifo(folder, "pipe")
    assert_refused_and_untouched(folder, lambda: pretrain(folder, "--config", path), *parts)


@pytest.mark.parametrize(
    ("changes", "args", "code", "parts"),
    [
        ({"vocab_size": 299}, [], 2, ["tiny.json", "vocab_size=299", "300"]),
        ({"emb_dim": 1_000_000}, [], 1, ["预计需要", "GB", "emb_dim", "num_layers", "batch_size"]),
        ({}, ["--batch_size", HUGE], 1, ["预计需要", "GB", "batch_size"]),
        ({"context_length": 2**31 - 1}, [], 2, ["corpus.txt", "2147483648"]),
    ],
    ids=["vocabulary", "memory-of-model", "memory-of-batch", "context"],
)
def test_config_that_does_not_suit_the_machine_or_the_corpus_is_refused(folder, changes, args, code, parts):
    write_config(folder, **changes)
    assert_refused_and_untouched(folder, lambda: pretrain(folder, *args), *parts, code=code)


@pytest.mark.skipif(torch.backends.mps.is_available(), reason="这台电脑真的有 MPS")
def test_absent_device_is_refused(folder):
    result = pretrain(folder, "--device", "mps")
    assert_error(result, "--device", "未检测到可用的 MPS", "--device cpu", "--device auto")


# ---- 语料 ----


@pytest.mark.parametrize(
    ("path", "parts"),
    [
        ("none.txt", ["none.txt", "找不到数据文件"]),
        pytest.param("pipe", ["pipe", "不是普通文件"], marks=NO_FIFO),
        pytest.param("/dev/zero", ["/dev/zero", "不是普通文件"], marks=NO_UNIX_PATH),
        ("tiny.json/x", ["tiny.json/x"]),
        (LONG_NAME, ["长长长"]),
        pytest.param("\udcff.txt", ["找不到数据文件"], marks=NO_SURROGATES),
        ("model.pth", ["model.pth", "第 ", "字节不是 UTF-8"]),
    ],
)
def test_corpus_that_cannot_be_read_is_refused(folder, path, parts):
    if path == "pipe":
        make_fifo(folder, "pipe")
    torch.save({}, folder / "model.pth")
    (folder / "model.pth").write_bytes((folder / "model.pth").read_bytes() + b"\xff")
    assert_refused_and_untouched(folder, lambda: pretrain(folder, "--data_path", path), *parts)


def test_repeated_flag_is_refused_not_dropped(folder):
    result = run("pretrain.py", "--data_path", "one.txt", "--data_path", "two.txt", cwd=folder)
    assert_error(result, "--data_path：给了两次。几个取值写在一个 --data_path 后面。")


@pytest.mark.parametrize(
    ("fault", "part"),
    [
        ("os.access = lambda *args, **options: False", "没有读取权限"),
        (
            "import tqdm; pathlib.Path.read_bytes = pathlib.Path.open = lambda *args: os.open('/', os.O_WRONLY)",
            "读不出",
        ),
    ],
    ids=["no-permission", "fails-while-reading"],
)
@pytest.mark.parametrize("flag", ["--config", "--data_path"])
def test_unreadable_file_is_refused(folder, fault, part, flag):
    """root 不受权限约束，所以在子进程里换掉系统的回答。"""
    if flag == "--data_path":  # 配置先读，让它读得出
        fault = f"import utils.config_file as c; c.read_input_file = lambda path, *a: open(path, 'rb').read(); {fault}"
    code = f"import os, pathlib, runpy, sys; {fault}; sys.argv.pop(0); runpy.run_path(sys.argv[0], run_name='__main__')"
    command = [sys.executable, "-c", code, ROOT / "pretrain.py", "--config", "tiny.json", "--data_path", "corpus.txt"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONIOENCODING": "utf-8"}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, encoding="utf-8", check=False)
    assert (done.returncode, done.stdout) == (2, "") and done.stderr.count("\n") == 1, done.stderr
    assert done.stderr.startswith("错误：") and part in done.stderr
    assert {"--config": "tiny.json", "--data_path": "corpus.txt"}[flag] in done.stderr


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("", ["没有内容"]),
        ("\ufeff \r\n\u3000\n", ["没有内容"]),
        ("大" * 5, ["训练部分只有", "至少需要 17 个", "context_length"]),
        ("大圣闹天宫。" * 10, ["验证部分只有", "至少需要 17 个", "context_length"]),
    ],
    ids=["empty", "blank", "short-training", "short-validation"],
)
def test_corpus_without_one_window_of_each_part_is_refused(folder, text, parts):
    (folder / "corpus.txt").write_text(text, encoding="utf-8", newline="")
    assert_refused_and_untouched(folder, lambda: pretrain(folder), "corpus.txt", *parts)


@pytest.mark.parametrize(
    ("data", "encoding", "parts"),
    [
        (b"a" * 1023 + "悟空大圣".encode("gb18030"), "utf-8", ["第 1024 字节不是 UTF-8", "--encoding gb18030"]),
        ("悟空".encode("utf-16"), "utf-8", ["第 1 字节", "--encoding utf-16"]),
        ("悟空".encode(), "ascii", ["第 1 字节不是 ASCII", "--encoding utf-8"]),
        (b"\xff\xff\xff", "gb18030", ["第 1 字节不是 GB18030"]),
        (rb"\ud800" * 9, "unicode_escape", ["UNICODE", "--encoding"]),
    ],
    ids=["gb18030", "utf-16", "ascii", "nothing", "surrogates"],
)
def test_corpus_in_another_encoding_names_the_byte(folder, data, encoding, parts):
    (folder / "corpus.txt").write_bytes(data)
    assert_refused_and_untouched(folder, lambda: pretrain(folder, "--encoding", encoding), "corpus.txt", *parts)


@NO_SURROGATES
def test_strange_characters_train_and_output_folder_is_created(folder, corpus_text):
    """字节顺序标记、Windows 换行、控制字符、BMP 以外的字、文本结束符；终端只认 ASCII；数值大得出奇。"""
    strange = "\ufeff" + (corpus_text + "\0\x1b[31m\x7f\u2028𠀀😀👨‍👩‍👧<|endoftext|>").replace("\n", "\r\n") * 2
    (folder / "corpus.txt").write_text(strange, encoding="utf-8", newline="")
    config = (folder / "tiny.json").read_text(encoding="utf-8")
    (folder / "tiny.json").write_text("\ufeff" + config, encoding="utf-8")
    numbers = ("epochs", "accumulation_steps", "stride", "eval_freq", "eval_iter", "warmup_steps")
    flags = [item for name in numbers for item in (f"--{name}", "9" * 400)]
    flags += ["--max_steps", "２", "--max_minutes", "1e308", "--model_path", "new/模型 \udcff/model.pth"]
    terminal = {"PYTHONIOENCODING": "ascii", "LC_ALL": "C"}
    result = pretrain(folder, *flags, "--sample_prompt", "\udcff<|endoftext|>", env=terminal)
    assert result.code == 0, result.stderr
    assert [line.split()[0].lstrip("?") for line in result.stderr.splitlines()] == ["--stride", "--warmup_steps"]
    file = read_model_file(folder / "new" / "模型 \udcff" / "model.pth")
    assert set(file.tokenizer) == {"type", "split", "ranks"}
    assert not [path for path in folder.rglob("*") if path.suffix in (".tmp", ".bak")]


def test_end_of_text_inside_a_corpus_is_ordinary_text(folder, corpus_text):
    text = corpus_text + "<|endoftext|>" * 50
    corpus = make_corpus(text, {"type": "bpe", "vocab_size": 300}, folder / "corpus.txt")
    ids = torch.cat((corpus.train_ids, corpus.validate_ids))
    assert not (ids == corpus.tokenizer.end_of_text_id).any()
    assert corpus.tokenizer.decode(ids.tolist()) == text


def test_blank_validation_part_does_not_break_the_sample(folder, corpus_text):
    (folder / "corpus.txt").write_text(corpus_text + "\u3000\n" * 200, encoding="utf-8")
    result = pretrain(folder, "--max_steps", "1")
    assert result.code == 0, result.stderr


def test_existing_files_are_kept_as_backups(trained, tmp_path, corpus_text):
    """语料是 GB18030，顺便看 --encoding 管用。"""
    shutil.copytree(trained, tmp_path, dirs_exist_ok=True)
    (tmp_path / "corpus.txt").write_bytes(corpus_text.encode("gb18030"))
    before = listing(tmp_path)
    result = pretrain(tmp_path, "--max_steps", "1", "--encoding", "gb18030")
    assert result.code == 0, result.stderr
    after = listing(tmp_path)
    for name in ("model.pth", "model.pth.log.jsonl", "model.pth.loss.png"):
        assert after[f"{name}.bak"] == before[name] != after[name]
        assert f"{name}.bak" in result.stderr
    name = "step-00000006.ckpt"
    assert after[f"model.pth.ckpt.bak/{name}"] == before[f"model.pth.ckpt/{name}"]
    assert f"要接着 model.pth.ckpt/{name} 训练，请加 --resume" in result.stderr
    assert {name: after[name] for name in ("corpus.txt", "tiny.json")} == {
        name: before[name] for name in ("corpus.txt", "tiny.json")
    }


@pytest.mark.parametrize("flag", ["--data_path", "--config"])
def test_output_that_is_also_an_input_is_refused(folder, flag):
    path = {"--data_path": "corpus.txt", "--config": "tiny.json"}[flag]
    assert_refused_and_untouched(folder, lambda: pretrain(folder, "--model_path", path), path)


def test_weights_that_became_nan_are_never_saved(folder):
    result = pretrain(folder, "--max_steps", "1", "--learning_rate", "1e30", "--dtype", "float32")
    assert result.code == 1 and "Traceback" not in result.stderr, result.stderr
    assert result.stderr.startswith("错误：") and result.stderr.count("\n") == 1
    assert not (folder / "model.pth").exists()


# ---- 信号和管道 ----


@contextlib.contextmanager
def training(folder, *args, program=(ROOT / "pretrain.py",)):
    """正在运行的 pretrain.py。"""
    process = subprocess.Popen(
        [sys.executable, *program, *last_of_each("--config", "tiny.json", "--data_path", "corpus.txt", *args)],
        cwd=folder,
        env={**os.environ, "PYTHONIOENCODING": "utf-8", "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        encoding="utf-8",
        # 后台任务会让子进程忽略 SIGINT，恢复成前台的样子
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def read_until(process, text):
    for line in process.stdout:
        if text in line:
            return
    raise AssertionError(process.stderr.read())


@NO_SIGINT
@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_signal_stops_training_and_leaves_a_whole_model(folder, signum):
    flags = ("--epochs", "1000000", "--max_steps", "1000000", "--eval_freq", "3")
    with training(folder, *flags) as process:
        read_until(process, "(Step 000003)")
        process.send_signal(signum)
        _, stderr = process.communicate(timeout=60)
    assert process.returncode == 128 + signum
    assert stderr.count("\n") == 1 and "已在第" in stderr and "model.pth" in stderr
    assert read_model_file(folder / "model.pth").weights
    assert not [path.name for path in folder.iterdir() if path.suffix in (".tmp", ".bak")]


SLOW_TOKENIZER = f"""
import pathlib, runpy, time
from utils import files, text_utils

def encode_slowly(tokenizer, text, encode=text_utils.Tokenizer.encode_to_numpy):
    print("分词", flush=True)
    time.sleep(0.2)
    return encode(tokenizer, text)

files.CACHE_DIR = pathlib.Path("cache")
text_utils.CHUNK_CHARACTERS = 1
text_utils.Tokenizer.encode_to_numpy = encode_slowly
runpy.run_path({str(ROOT / "pretrain.py")!r}, run_name="__main__")
"""


@NO_SIGINT
@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_signal_while_tokenizing_leaves_at_once_and_nothing_behind(folder, signum):
    with training(folder, program=("-c", SLOW_TOKENIZER)) as process:
        for _ in range(3):
            read_until(process, "分词")
        process.send_signal(signum)
        _, stderr = process.communicate(timeout=30)
    assert (process.returncode, stderr) == (128 + signum, "")
    assert list((folder / "cache").iterdir()) == []


@NO_SIGINT
def test_closed_pipe_does_not_lose_the_model(folder):
    """pretrain.py | head -1：看的人走了，训练照样做完。"""
    with training(folder) as process:
        process.stdout.readline()
        process.stdout.close()
        process.stdout = None
        _, stderr = process.communicate(timeout=60)
    assert "Traceback" not in stderr and stderr == ""
    assert process.returncode == 0 and read_model_file(folder / "model.pth").weights
