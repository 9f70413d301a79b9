"""拿奇怪的输入成千上万次地运行程序：写坏的配置、乱拼的命令行、任意的语料、任意的开头。只用于 POSIX。

每一例只由 (seed, 序号) 决定。遇到第一个不对的就抛出 AssertionError，写明怎样重现，那一例的文件留在 folder/case 里。
"""

import copy
import json
import os
import random
import re
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import islice, takewhile
from pathlib import Path

import torch
from soak_process import SoakResult, run_forked
from torch import nn

from benchmarks.weights import load
from conftest import ROOT, TINY_FILE, last_of_each, listing
from utils.generation import Sampling, generate_tokens, read_text_prompt, stream_text
from utils.text_utils import END_OF_TEXT, Tokenizer, load_gpt2_tokenizer

MAX_PEAK = 500_000_000  # 一次运行最多该多用这么多内存（字节）；程序以为的可用内存是 soak_process.MEMORY
PROMPTS_PER_PROCESS = 40  # 每这么多个开头里，有一个经由命令行

Files = dict[str, bytes]  # {文件名: 内容}


class Soak:
    """一批例子：每例摆好文件，运行程序，检查对任何输入都该成立的事，计数。"""

    def __init__(self, name: str, seed: int, folder: Path):
        self.name, self.seed, self.folder = name, seed, folder / "case"
        self.label, self.codes, self.peak, self.slowest = "", Counter(), 0, 0.0

    def cases(self, count: int) -> Iterator[random.Random]:
        """每例一个随机数发生器。"""
        for index in range(count):
            self.label = f"{self.name}，seed {self.seed}，第 {index} 例"
            yield random.Random(f"{self.name} {self.seed} {index}")

    def run(self, files: Files, program: str, *args: str, stdin: bytes = b"", encoding: str = "utf-8") -> SoakResult:
        """在只有 files 的文件夹里运行一次并检查。"""
        lay_out(self.folder, files)
        before = listing(self.folder)
        started = time.monotonic()
        result = run_forked(program, *args, cwd=self.folder, stdin=stdin, encoding=encoding)
        may_write = program == "pretrain.py" and "--dry_run" not in args and "\n训练：" in result.stdout
        problem = find_problem(result) or find_change(before, listing(self.folder), result.code, may_write)
        assert not problem, (
            f"{self.label}：{problem}\n在 {self.folder} 里运行 {program}，参数 {ascii(list(args))}，"
            f"标准输入 {stdin!r}，终端 {encoding}，退出码 {result.code}\n{result.stdout[-1000:]}{result.stderr[-4000:]}"
        )
        self.codes[result.code] += 1
        self.peak = max(self.peak, result.peak)
        self.slowest = max(self.slowest, time.monotonic() - started)
        return result

    def summary(self) -> str:
        codes = "，".join(f"退出码 {code} 有 {count} 次" for code, count in sorted(self.codes.items()))
        return f"{self.name}：{codes}；最慢 {self.slowest:.1f} 秒，内存最多 {self.peak / 1e6:.0f} MB"


def lay_out(folder: Path, files: Files) -> None:
    """让 folder 里只有 files。"""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)


def find_problem(result: SoakResult) -> str:
    """退出码、输出、时间和内存有什么不对；都对则为空。"""
    errors = [line for line in result.stderr.split("\n") if line.startswith("错误：")]
    if result.hung:
        return "没有在时限内结束"
    if result.code not in (0, 1, 2):
        return "退出码不是 0、1、2"
    if "Traceback" in result.stdout + result.stderr:
        return "有 traceback"
    if len(errors) != (result.code != 0) or not result.stderr.endswith("".join(f"{line}\n" for line in errors)):
        return "失败时 stderr 的最后一行、也只有这一行应以“错误：”开头，成功时没有这样的行"
    if "Warning" in result.stderr:
        return "有库的警告"
    return f"内存多用了 {result.peak / 1e6:.0f} MB" if result.peak > MAX_PEAK else ""


def find_change(before: dict, after: dict, code: int, may_write: bool) -> str:
    """文件有什么不该有的变化；没有则为空。may_write 表示训练已经开始。"""
    if not may_write:
        return "" if before == after else f"文件变了：{sorted(dict(before.items() ^ after.items()))}"
    if lost := [name for name, content in before.items() if content not in after.values()]:
        return f"原有的文件丢失或改动了：{lost}"
    if code and (changed := [name for name in before if before[name] != after[name]]):
        return f"失败了，却顶替了原有的文件：{changed}"
    leftover = [name for name in after if name.endswith(".tmp")]
    return f"留下了临时文件：{leftover}" if leftover else ""


# ---- 文字 ----

ALPHABETS = (
    "abcdefgXYZ 0123456789.,!?'\"\n",
    "孙悟空大闹天宫，唐三藏西天取经。\n",
    " \t\r\n\v\f\x1c\x85\xa0\u2028\u2029\u3000",
    "".join(map(chr, (*range(1, 32), 127, *range(128, 160)))),
    "\0\x1b\x07",
    ("😀", "👨\u200d👩\u200d👧", "🏳\ufe0f\u200d🌈", "👍🏽", "🇨🇳", "\u200d", "\ufe0f", "𠀀"),
    "שלוםمرحبا\u202e\u202d\u200f\u2066\u061c",
    "e\u0301\u0300\u0489\u20e3ก้็\u1100\u1161\u11a8",
    (END_OF_TEXT, "<|", "|>", "endoftext", "<|endoftext", "|endoftext|>", "<|endof", "text|>", "<", "|"),
    "\ufeff\ufffe\uffff\ufffd\ud800\udbff\udc00\udfff\udcff\U0010ffff",
    "ﬁſİıßΣςǅﷺ½५５⑤Ⅷ",
    "a",
    "大",
    " ",
)


def random_text(rng: random.Random, length: int) -> str:
    """length 个字符，取自一到三种字符；可能有 NUL 和孤立的代理字符。"""
    anything = [chr(rng.randrange(0x110000)) for _ in range(30)]
    pieces = [piece for alphabet in rng.sample((*ALPHABETS, anything), rng.randint(1, 3)) for piece in alphabet]
    return "".join(rng.choices(pieces, k=length))[:length]


def random_argument(rng: random.Random, length: int) -> str:
    """操作系统传得进来的参数：没有 NUL，孤立的代理字符都来自不是 UTF-8 的字节。"""
    return os.fsdecode(random_text(rng, length).encode("utf-8", "surrogatepass").replace(b"\0", b""))


def opening_of_corpus() -> str:
    return (ROOT / "data" / "西游记.txt").read_text(encoding="utf-8")[:1000]


# ---- 配置 ----

CONFIGS = (
    TINY_FILE,
    {
        **TINY_FILE,
        **{"num_kv_heads": 2, "position": "rope", "norm": "rms_norm", "activation": "swiglu", "hidden_dim": 48},
        **{"qk_norm": True, "tie_weights": False, "bias": False, "rope_base": 100.0, "drop_rate": 0.1},
        **{"norm_eps": 1e-6, "out_proj": False},
        "tokenizer": {"type": "bpe", "vocab_size": 300, "split": "han"},
        "training": {
            **{"batch_size": 3, "accumulation_steps": 2, "stride": 5, "max_minutes": 0.5, "eval_iter": 1, "seed": 1},
            **{"optimizer": "muon", "muon_learning_rate": 0.02, "weight_decay": 0.0, "grad_clip": 0.5},
            **{"warmup_steps": 1, "keep": "last", "dtype": "float32", "device": "cpu", "sample_prompt": "悟空"},
        },
    },
    {**TINY_FILE, "vocab_size": 50257, "emb_dim": 8, "tokenizer": {"type": "gpt2"}, "training": {}},
)
NUMBERS = [
    *"0 -0 1 -1 2 3 4 7 8 64 300 4096 65536 2147483647 4294967296 9223372036854775807 -9223372036854775809".split(),
    *"0.0 1.0 0.5 0.1 1E3 1e-320 1e308 1e400 -1e400 NaN Infinity -Infinity".split(),
    *("9" * 400, "-" + "9" * 400, "9" * 5000, "0." + "3" * 5000),
]
JSON_WORDS = [
    *"null true false None [] [1] {} [[],{}] 0x10 01 1_000 .5 +1 ５ 1, 'a'".split(),
    *(f'"{word}"' for word in "bpe gpt2 han rope rms_norm swiglu relu2 cpu cuda bfloat16 last muon 768".split()),
    *('""', '"悟空"', r'"\ud800"', r'"\u0000"', '"\u202e"', '{"type": "bpe"}', ""),
]
JSON_BYTES = b'0123456789{}[]",:.-+eE\\ntfu \n'


class Json(str):
    """现成的 JSON 片段，不一定合法。"""


def write_json(value: object) -> str:
    """同 json.dumps，但 Json 照原样写出。"""
    if isinstance(value, dict):
        return "{" + ",\n".join(f"{write_json(key)}: {write_json(item)}" for key, item in value.items()) + "}"
    return value if isinstance(value, Json) else json.dumps(value)


def valid_value(rng: random.Random, key: str) -> object:
    """key 在某份合法的配置里的值。"""
    sections = [section for config in CONFIGS for section in (config, config["tokenizer"], config["training"])]
    return copy.deepcopy(rng.choice([section[key] for section in sections if key in section] or [1]))


def strange_value(rng: random.Random) -> Json:
    """一个奇怪的值，有时嵌套很深，多在解释器肯不肯读的界线上下。"""
    depth = rng.choice((3, 100_000, rng.randint(920, 1000), rng.randint(920, 1000)))
    opening, closing = rng.choice((("[", "]"), ('{"a":', "}")))
    deep = opening * depth + "1" + closing * rng.choice((0, depth, depth))
    text = json.dumps(random_text(rng, rng.randint(0, 20)), ensure_ascii=rng.random() < 0.5)
    return Json(rng.choice((*rng.choices(NUMBERS, k=2), *rng.choices(JSON_WORDS, k=2), deep, text)))


def change_value(rng: random.Random, values: dict) -> None:
    """换掉、删去、改名、重复或添加一个字段；不会把 values 删空。"""
    sections = [item for item in (values, *values.values()) if isinstance(item, dict)]
    section, key = rng.choice([(section, key) for section in sections for key in section])
    new = rng.choice((strange_value(rng), Json(rng.choice(NUMBERS)), valid_value(rng, key), valid_value(rng, key)))
    name = rng.choice((key + "s", key[:-1], key.upper(), random_text(rng, rng.randint(0, 20)), *valid_names()))
    action = rng.choice(("replace", "replace", "replace", "replace", "delete", "rename", "repeat", "add"))
    old = section.pop(key) if action in ("delete", "rename") else section[key]
    if action == "repeat":
        new = Json(f"{write_json(old)}, {write_json(key)}: {write_json(new)}")
    if action in ("replace", "repeat"):
        section[key] = new
    elif action in ("rename", "add"):
        section[name] = old if action == "rename" else new


def valid_names() -> list[str]:
    return [name for config in CONFIGS for section in (config, config["training"]) for name in section]


def damage(rng: random.Random, data: bytes) -> bytes:
    """翻转、插入、删去、重复一两处，有时截断。"""
    data = bytearray(data)
    for _ in range(rng.randint(1, 2)):
        start, length = rng.randrange(len(data) + 1), rng.choice((1, 1, 1, 2, 8, 100))
        action = rng.choice(("flip", "insert", "insert", "insert", "delete", "repeat", "truncate"))
        if action == "flip":
            data[start : start + 1] = bytes(byte ^ 1 << rng.randrange(8) for byte in data[start : start + 1])
        elif action == "insert":
            data[start:start] = bytes(rng.choices(rng.choice((*[JSON_BYTES] * 6, range(256))), k=length))
        elif action == "delete":
            del data[start : start + length]
        elif action == "repeat":
            data[start:start] = data[start : start + length]
        elif rng.random() < 0.3:
            del data[start:]
    return bytes(data)


def random_config(rng: random.Random) -> bytes:
    """由一份合法的配置变来；有时改过之后还是合法的。"""
    values = copy.deepcopy(rng.choice(CONFIGS))
    changes, is_damaged = rng.choice(((1, False), (1, False), (3, False), (0, True), (1, True)))
    for _ in range(changes):
        change_value(rng, values)
    encoding = rng.choice((*["utf-8"] * 20, "utf-8-sig", "utf-16", "gb18030"))
    data = write_json(values).encode(encoding, "ignore")
    return damage(rng, data) if is_damaged else data


def fuzz_configs(count: int, seed: int, folder: Path) -> str:
    """写坏的配置：多数只算不练，少数真的练一步。"""
    soak = Soak("配置", seed, folder)
    corpus = opening_of_corpus().encode()
    for rng in soak.cases(count):
        args = ["--config", "config.json", "--data_path", "corpus.txt", "--max_steps", "1"]
        args += ["--dry_run"] * (rng.random() < 0.8)
        soak.run({"config.json": random_config(rng), "corpus.txt": corpus}, "pretrain.py", *args)
    return soak.summary()


# ---- 命令行 ----

PATHS = [
    *"tiny.json corpus.txt ./corpus.txt ../case/tiny.json model.pth broken.pth empty.txt missing new/model.pth".split(),
    *"- ~ . .. / corpus.txt/x ../folder ../pipe /dev/null /dev/zero /dev/full /dev/stdin /dev/null/x".split(),
    *("/proc/self/mem", "/proc/x/model.pth", "长" * 100, "a" * 240),
]
WORDS = [
    *"auto cpu cuda mps float32 bfloat16 float16 int8 adamw muon best last nan inf -inf 1e5 1_000 ２ 0x10 True".split(),
    *"utf-8 gb18030 big5 utf-16 utf-7 rot13 hex idna punycode undefined unicode_escape --seed --help {} %s".split(),
    *("", " ", "悟空", "1\n2", "\x1b[31m", "\u202e", "\udcff", END_OF_TEXT, "a" * 100_000),
]


def make_targets(folder: Path) -> None:
    """case 旁边的一个文件夹和一个管道文件。"""
    (folder / "folder").mkdir(exist_ok=True)
    if not (folder / "pipe").exists():
        os.mkfifo(folder / "pipe")


def train_tiny_model(folder: Path) -> Files:
    """训练出的小模型和它的配置、语料。"""
    files = {"tiny.json": json.dumps(TINY_FILE).encode(), "corpus.txt": opening_of_corpus().encode()}
    soak = Soak("小模型", 0, folder)
    soak.run(files, "pretrain.py", "--config", "tiny.json", "--data_path", "corpus.txt")
    return {**files, "model.pth": (soak.folder / "model.pth").read_bytes()}


def real_flags(program: str, folder: Path) -> list[str]:
    """程序的帮助里列出的参数；编译要几十秒，不在其中。"""
    return sorted(set(re.findall(r"--\w+", run_forked(program, "--help", cwd=folder).stdout)) - {"--compile"})


def random_flag(rng: random.Random, flags: list[str]) -> list[str]:
    """一个参数和它的值；名字有时写错，值有时缺少。"""
    flag = rng.choice(flags)
    if rng.random() < 0.1:
        typo = flag.replace(rng.choice(flag[2:]), "", 1)
        invented = ("--", "-x", "--compile=1", random_argument(rng, 8))
        flag = rng.choice((typo, flag + "s", flag[1:], flag.upper(), *invented))
    text = random_argument(rng, rng.choice((1, 5, 50))).replace("/", "")  # 不写到文件夹外面去
    value = rng.choice((*rng.choices(PATHS, k=2), *rng.choices(WORDS, k=2), *rng.choices(NUMBERS, k=4), text))
    return rng.choice((*[[flag, value]] * 6, [f"{flag}={value}"], [flag]))


def fuzz_command_lines(count: int, seed: int, folder: Path) -> str:
    """随意拼起来的参数；最后几个参数让真的运行起来的那些很快结束。"""
    make_targets(folder)
    files = train_tiny_model(folder)
    files |= {"broken.pth": files["model.pth"][:5000], "empty.txt": b""}
    openings = {"pretrain.py": ["--config", "tiny.json", "--data_path", "corpus.txt"], "generate.py": []}
    extras = {
        "pretrain.py": [["--dry_run"], ["--model_path", "new/model.pth"]],
        "generate.py": [["--prompt", "悟空"], ["--config", "tiny.json"], ["--quantize", "int8"]],
    }
    endings = {"pretrain.py": ["--max_steps", "1"], "generate.py": ["--max_new_tokens", "2", "--num_samples", "1"]}
    flags = {program: real_flags(program, folder) for program in openings}
    soak = Soak("命令行", seed, folder)
    for rng in soak.cases(count):
        program = rng.choice(list(openings))
        chosen = [extra for extra in extras[program] if rng.random() < 0.4]
        chosen += [random_flag(rng, flags[program]) for _ in range(rng.choice((0, 1, 1, 2, 3)))]
        args = [*openings[program], *(item for items in chosen for item in items), *endings[program]]
        args = args if rng.random() < 0.1 else last_of_each(*args)
        soak.run(files, program, *args, stdin=rng.randbytes(rng.choice((0, 100))))
    return soak.summary()


# ---- 语料 ----

ENCODINGS = "utf-8 utf-8-sig utf-16 utf-16-le utf-16-be utf-32 gb18030 gbk big5 shift_jis euc_kr iso2022_jp hz".split()
ENCODINGS += "latin-1 cp1252 cp037 ascii utf-7 unicode_escape raw_unicode_escape idna punycode undefined".split()
MARKS = (b"\xef\xbb\xbf", b"\xff\xfe", b"\xfe\xff", b"\xff\xfe\0\0", b"\0", b"\r", b"\xc3", b"\xed\xa0\x80")


def random_corpus(rng: random.Random) -> tuple[bytes, str]:
    """-> (内容, 说是哪种编码)；多半说得对。"""
    size = rng.randrange(rng.choice((100, 1000, 3000, 3000, 10_000, 50_000)))
    encoding = rng.choice(("utf-8", "utf-8", rng.choice(ENCODINGS)))
    text = random_text(rng, size)
    if rng.random() < 0.3:
        text = text.replace("\n", "").replace("\r", "")
    if encoding in ("idna", "punycode", "undefined"):  # 这几种只宜用来解码
        data = text[:300].encode("ascii", "ignore")
    else:
        data = text.encode(encoding, "ignore")
    data = rng.choice((data, data, data, rng.randbytes(size), damage(rng, data), rng.choice(MARKS) + data))
    return data, encoding if rng.random() < 0.8 else rng.choice(ENCODINGS)


def fuzz_corpora(count: int, seed: int, folder: Path) -> str:
    """任意的字节当作语料，训练一步。"""
    soak = Soak("语料", seed, folder)
    configs = [json.dumps(config | {"training": {"batch_size": 4, "eval_iter": 2}}).encode() for config in CONFIGS]
    for rng in soak.cases(count):
        data, encoding = random_corpus(rng)
        files = {"config.json": rng.choice(configs), "corpus.txt": data}
        args = ["--config", "config.json", "--data_path", "corpus.txt", "--encoding", encoding, "--max_steps", "1"]
        soak.run(files, "pretrain.py", *args)
    return soak.summary()


# ---- 开头 ----

SAMPLINGS = (
    Sampling(),
    Sampling(temperature=0.8, top_k=50),
    Sampling(temperature=1e-300, top_p=1e-9),
    Sampling(temperature=1e300, repetition_penalty=1e-300),
    Sampling(temperature=2.0, top_k=1, top_p=0.5, repetition_penalty=1e300),
)


def check_prompt(text: str, model: nn.Module, tokenizers: list[Tokenizer], sampling: Sampling, seed: int) -> str:
    """分词从不产生文本结束符，解码得回原文，逐段交出的文字等于整体解码；返回续写的全文。"""
    for tokenizer in tokenizers:
        token_ids = tokenizer.encode(text)
        assert tokenizer.end_of_text_id not in token_ids
        assert tokenizer.decode(token_ids) == text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    tokenizer = tokenizers[0]
    prompt = read_text_prompt(model, tokenizer, text)
    streamed = "".join(stream_text(model, tokenizer, prompt, 6, sampling, torch.Generator().manual_seed(seed)))
    tokens = generate_tokens(model, prompt, tokenizer.vocab_size, sampling, torch.Generator().manual_seed(seed))
    new_ids = takewhile(lambda token_id: token_id != tokenizer.end_of_text_id, (token.item() for token in tokens))
    assert streamed == tokenizer.decode([*prompt.token_ids[0].tolist(), *islice(new_ids, 6)])
    return streamed


def check_in_terminal(soak: Soak, rng: random.Random, files: Files, text: str, expected: str) -> None:
    """--prompt 打印的正是 expected；同样的文字从标准输入进来也有回答。"""
    encoding = rng.choice(("utf-8", "utf-8", "ascii", "gb18030", "latin-1"))
    common = ["--max_new_tokens", "6"]
    result = soak.run(files, "generate.py", *common, f"--prompt={text}", encoding=encoding)
    seen = (expected + "\n").encode(encoding, "replace").decode(encoding, "replace")
    assert (result.code, result.stdout) == (0, seen), f"{soak.label}：打印的与续写的不同：{text!a}，终端 {encoding}"
    lines = (text + "\n").encode("utf-8", "surrogateescape") + rng.randbytes(rng.choice((0, 100)))
    result = soak.run(files, "generate.py", *common, stdin=lines, encoding=encoding)
    assert result.code == 0, f"{soak.label}：对话没有正常结束：{lines!r}"


def fuzz_prompts(count: int, seed: int, folder: Path) -> str:
    """任意的 Unicode 当作开头：多数在本进程里续写，少数从命令行和标准输入。"""
    files = train_tiny_model(folder)
    soak = Soak("开头", seed, folder)
    model, tokenizer = load(soak.folder / "model.pth")
    model.eval()
    tokenizers = [tokenizer, load_gpt2_tokenizer()]
    for index, rng in enumerate(soak.cases(count)):
        length = rng.choice((1, 2, 5, 20, 20, 100, 1000)) if rng.random() < 0.999 else 100_000
        to_terminal = index % PROMPTS_PER_PROCESS == 0
        text = (random_argument if to_terminal else random_text)(rng, length) or "悟"
        sampling = SAMPLINGS[0] if to_terminal else rng.choice(SAMPLINGS)
        try:
            expected = check_prompt(text, model, tokenizers, sampling, seed)
        except Exception as error:
            raise AssertionError(f"{soak.label}：{text!a}，{sampling}") from error
        if to_terminal:
            check_in_terminal(soak, rng, {"model.pth": files["model.pth"]}, text, expected)
    return f"{soak.summary()}；在本进程里 {count} 个"


def measures() -> Iterator[tuple[str, int, Callable[[int, int, Path], str]]]:
    """(名字, 个数, 函数)"""
    torch.set_num_threads(1)
    yield "写坏的配置", 5_000, fuzz_configs
    yield "乱拼的命令行", 1_000, fuzz_command_lines
    yield "任意的语料", 1_000, fuzz_corpora
    yield "任意的开头", 10_000, fuzz_prompts
