"""坏掉的和恶意的文件：翻转一位、截断、随机字节、装着代码或谎报大小的 pickle，一律以一行话拒绝。"""

import copy
import functools
import io
import pickle
import random
import struct
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from soak_resume import make_trainer, start_run

from benchmarks.machine import peak_bytes
from conftest import tiny_config
from model.language_model import LanguageModel
from utils.checkpoint import read_checkpoint
from utils.checkpoint_files import checkpoint_folder, list_checkpoints
from utils.errors import UserError
from utils.model_file import load_weights, read_model_file, save_state
from utils.settings import TrainingSettings

MEMORY_SLACK = 40_000_000  # 读取器本身和 Python 的碎片
EVIDENCE = "hacked"  # 恶意的代码一旦运行，当前文件夹里就有它


def write_good_files(folder: Path) -> dict[Path, Callable[[Path], object]]:
    """{完好的模型文件或检查点: 读它的函数}"""
    run = start_run(make_trainer(TrainingSettings(batch_size=4, epochs=1, eval_freq=100)), folder / "model.pth")
    run.run()
    (checkpoint,) = list_checkpoints(checkpoint_folder(folder / "model.pth"))
    return {folder / "model.pth": load_model, checkpoint: read_checkpoint}


def load_model(path: Path) -> None:
    """像 generate.py 那样读模型文件并装进模型。"""
    load_weights(LanguageModel(tiny_config(drop_rate=0.2)), read_model_file(path), "配置")


def refuses(read: Callable[[Path], object], path: Path, description: str) -> bool:
    """是否以 UserError 拒绝；别的错误、多于一行的消息都是我们的毛病。"""
    try:
        read(path)
    except UserError as error:
        assert str(error).isprintable() and str(error).startswith("错误："), description
        return True
    except Exception as error:
        raise AssertionError(f"{description}：{type(error).__name__}: {error}") from error
    return False


def flip_bits(count: int, seed: int, folder: Path) -> str:
    """随机翻转一位，模型文件和检查点各 count 次，每一次都要看出来。"""
    generator = random.Random(seed)
    for path, read in write_good_files(folder).items():
        whole, damaged = path.read_bytes(), folder / "damaged"
        for _ in range(count):
            data, bit = bytearray(whole), generator.randrange(8 * len(whole))
            data[bit // 8] ^= 1 << bit % 8
            damaged.write_bytes(data)
            assert refuses(read, damaged, f"{path.name} 第 {bit} 位"), f"{path.name} 第 {bit} 位翻转没有看出来"
    return f"模型文件和检查点各 {count:,} 次，全部看出来"


def truncate(count: int, seed: int, folder: Path) -> str:
    """截去末尾任意多，或在末尾添上些什么。"""
    generator = random.Random(seed)
    for path, read in write_good_files(folder).items():
        whole, damaged = path.read_bytes(), folder / "damaged"
        for index in range(count // 2):
            length = generator.choice((index % 400, generator.randrange(len(whole))))
            is_longer = generator.random() < 0.1
            damaged.write_bytes(
                whole + generator.randbytes(1 + length) if is_longer else whole[: len(whole) - 1 - length]
            )
            assert refuses(read, damaged, f"{path.name} 少 {length} 字节"), f"{path.name} 变了 {length} 字节没有看出来"
    return f"{count:,} 次，全部拒绝"


def random_files(count: int, seed: int, folder: Path) -> str:
    """随机字节，有的套着 zip 或模型文件的头尾。"""
    generator = random.Random(seed)
    whole = next(iter(write_good_files(folder))).read_bytes()
    path = folder / "random"
    for index in range(count):
        noise = generator.randbytes(generator.randrange(20_000))
        cut = generator.randrange(len(whole))
        shapes = (noise, whole[:cut] + noise, noise + whole[cut:], whole[:2000] + noise + whole[-2000:], noise[:5])
        path.write_bytes(shapes[index % len(shapes)])
        for read in (load_model, read_checkpoint):
            assert refuses(read, path, f"随机文件 {index}"), f"随机文件 {index} 被当作模型"
    return f"{count:,} 个，全部拒绝"


def hostile_pickles(count: int, seed: int, folder: Path, evidence: Path = Path(EVIDENCE)) -> str:
    """装着代码、谎报大小、自我引用或胡乱拼凑的 pickle；不执行，内存不超过文件的三倍。"""
    generator = random.Random(seed)
    path, largest, before, num_refused = folder / "hostile.pth", 0, peak_bytes(), 0
    for index in range(count):
        write_archive(path, generator.choice(ATTACKS)(generator), generator)
        largest = max(largest, path.stat().st_size)
        num_refused += all([refuses(read, path, f"恶意 pickle {index}") for read in (load_model, read_checkpoint)])
        assert not evidence.exists(), f"恶意 pickle {index} 运行了代码"
    grown = peak_bytes() - before
    assert grown <= 3 * largest + MEMORY_SLACK, f"内存涨了 {grown / 1e6:.0f} MB，最大的文件 {largest / 1e6:.1f} MB"
    assert num_refused == count
    return f"{count:,} 个，全部拒绝，内存峰值涨了 {grown / 1e6:.0f} MB（最大的文件 {largest / 1e6:.1f} MB）"


def write_archive(path: Path, program: bytes, generator: random.Random) -> None:
    """照 torch.save 的布局把 pickle 程序写成文件；张量的数据只有几个字节。"""
    buffer = io.BytesIO()
    torch.save({"w": torch.ones(generator.randrange(1, 9))}, buffer)
    is_disguised = generator.random() < 0.3
    with zipfile.ZipFile(buffer) as source, zipfile.ZipFile(path, "w") as target:
        for entry in source.infolist():
            is_program = entry.filename.endswith("data.pkl")
            if is_program and is_disguised:  # torch 找名字不分大小写
                name = generator.choice(("archive/DATA.PKL", "archive/Data.pkl", "other/data.pkl", "archive/data.pkl2"))
                target.writestr(name, program)
            target.writestr(entry.filename, program if is_program and not is_disguised else source.read(entry))
    if generator.random() < 0.1:  # 前面垫一份好的：两处目录，Python 与 torch 各认一处
        path.write_bytes(buffer.getvalue() + path.read_bytes())


def text(value: str) -> bytes:
    data = value.encode("utf-8", "surrogatepass")
    return b"X" + struct.pack("<I", len(data)) + data


def name_of(module: str, name: str) -> bytes:
    return f"c{module}\n{name}\n".encode()


def number(value: int) -> bytes:
    return b"J" + struct.pack("<i", value) if -(2**31) <= value < 2**31 else b"\x8a\x08" + value.to_bytes(8, "little")


def call(module: str, name: str, *arguments: bytes) -> bytes:
    return name_of(module, name) + b"(" + b"".join(arguments) + b"tR"


def storage(numel: int, kind: str = "FloatStorage") -> bytes:
    return b"(" + text("storage") + name_of("torch", kind) + text("0") + text("cpu") + number(numel) + b"tQ"


def tensor(numel: int, offset: int, size: list[int], stride: list[int]) -> bytes:
    shape, steps = (b"(" + b"".join(map(number, items)) + b"t" for items in (size, stride))
    empty = call("collections", "OrderedDict")
    return call("torch._utils", "_rebuild_tensor_v2", storage(numel), number(offset), shape, steps, b"\x89", empty)


def state_of(value: bytes, key: bytes = text("tok_emb.weight")) -> bytes:
    return b"\x80\x02}(" + key + value + b"u."


RUN_CODE = [
    ("builtins", "exec", [text(f"open({EVIDENCE!r}, 'w')")]),
    ("builtins", "eval", [text(f"open({EVIDENCE!r}, 'w')")]),
    ("builtins", "open", [text(EVIDENCE), text("w")]),
    ("os", "system", [text(f"touch {EVIDENCE}")]),
    ("posix", "system", [text(f"touch {EVIDENCE}")]),
    ("subprocess", "getoutput", [text(f"touch {EVIDENCE}")]),
    ("pathlib", "Path.touch", [text(EVIDENCE)]),
    ("torch", "load", [text("model.pth")]),
    ("torch._utils", "_rebuild_wrapper_subclass", [text("x")]),
    ("torch.serialization", "_get_layout", [text("torch.strided")]),
]
TAKE_MEMORY = [
    ("builtins", "bytearray", [number(10**10)]),
    ("torch", "Tensor", [number(10**5), number(10**5)]),
    ("torch", "FloatTensor", [number(10**9)]),
    ("torch", "FloatStorage", [number(10**10)]),
    ("torch.storage", "UntypedStorage", [number(10**10)]),
    ("_codecs", "encode", [text("a" * 200_000), text("idna")]),
    ("torch._utils", "_rebuild_meta_tensor_no_storage", [number(1)]),
    ("collections", "Counter", [text("悟" * 100_000)]),
]


def attack_with_code(generator: random.Random) -> bytes:
    module, name, arguments = generator.choice(RUN_CODE)
    return state_of(call(module, name, *arguments))


def attack_with_size(generator: random.Random) -> bytes:
    module, name, arguments = generator.choice(TAKE_MEMORY)
    return state_of(call(module, name, *arguments))


def attack_with_shape(generator: random.Random) -> bytes:
    """大小、偏移、步长与数据不符的张量。"""
    pool = [-1, 0, 1, 3, 2**20, 2**31 - 1, 2**40, 2**62]
    dimensions = generator.randrange(4)
    size, stride = ([generator.choice(pool) for _ in range(dimensions)] for _ in range(2))
    return state_of(tensor(generator.choice(pool), generator.choice(pool), size, stride))


def attack_with_structure(generator: random.Random) -> bytes:
    """极深的嵌套、自己包含自己、巨大的编号、谎报的长度。"""
    depth = generator.choice((10, 2000, 100_000))
    programs = (
        b"]" * depth + b"a" * (depth - 1),
        b"}" + text("k") + b"}" * depth + b"s" * 3,
        b"]q\x00h\x00a",
        b"]r\xff\xff\xff\x7f",
        b"X\xff\xff\xff\x7fshort",
        b"\x8a\xff" + bytes(255),
        b"N" * depth + b"t",
        b"(" * depth + b"t" * depth,
        b"]q\x00" + b"(h\x00h\x00e" * 3000,
        b"]" * 3_000_000,
    )
    return state_of(generator.choice(programs))


def attack_with_noise(generator: random.Random) -> bytes:
    """合法的开头，之后是随机的操作码。"""
    opcodes = b"()]}eastuRQ0NNN\x85\x86\x87\x88\x89h\x00q\x00K\x01M\x01\x01X\x01\x00\x00\x00w"
    noise = bytes(generator.choice(opcodes) for _ in range(generator.randrange(400)))
    return b"\x80\x02" + generator.choice((b"", tensor(1, 0, [1], [1]))) + noise + b"."


def attack_with_real_pickle(generator: random.Random) -> bytes:
    """Python 自己写出的各种协议的 pickle。"""
    values = ({"w": 1}, [1, 2], {"w": {1, 2}}, b"x" * 100, 10**50, {"w": complex(1, 2)}, slice(1), range(3), print)
    return pickle.dumps(generator.choice(values), protocol=generator.randrange(6))


ATTACKS = [
    attack_with_code,
    attack_with_size,
    attack_with_shape,
    attack_with_structure,
    attack_with_noise,
    attack_with_real_pickle,
]


def leaves_of(value: object, path: tuple = ()) -> Iterator[tuple]:
    """嵌套的字典和列表里每一个值所在的路径。"""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield (*path, key)
        yield from leaves_of(item, (*path, key))


STRANGE = [None, -1, 0, 7.5, 2**70, float("nan"), float("inf"), "", "x", "\ud800", [], {}, [1], {"a": 1}, True, b"x"]
STRANGE += [torch.tensor(1.0), torch.zeros(0), torch.full((3,), torch.nan), torch.zeros(2, 2, dtype=torch.int64)]


def changed_checkpoints(count: int, seed: int, folder: Path) -> str:
    """完好的检查点里随便一处换成别的值、删去或添一项；要么拒绝，要么接得下去，没有别的结局。"""
    generator, num_refused = random.Random(seed), 0
    _, checkpoint = write_good_files(folder)
    good = torch.load(checkpoint, weights_only=True)
    paths = list(leaves_of(good))
    for _ in range(count):
        state = copy.deepcopy(good)
        *parents, key = path = generator.choice(paths)
        place = functools.reduce(lambda value, name: value[name], parents, state)
        action = generator.choice(("change", "change", "remove", "add"))
        if action == "remove":
            del place[key]
        elif action == "add" and isinstance(place, dict):
            place["多出来的"] = generator.choice(STRANGE)
        else:
            place[key] = generator.choice(STRANGE)
        save_state(checkpoint, state)
        num_refused += refuses(lambda _: resume_one_step(folder / "model.pth"), checkpoint, f"{action} {path}")
    return f"{count:,} 次，拒绝 {num_refused:,} 次，其余接得下去"


def resume_one_step(model_path: Path) -> None:
    trainer = make_trainer(TrainingSettings(batch_size=4, epochs=1, eval_freq=100))
    run = start_run(trainer, model_path)
    run.prepare(is_resuming=True)
    trainer._train_step(next(trainer._grouped_batches()), 0.5)


def measures() -> Iterator[tuple[str, int, Callable[[int, int, Path], str]]]:
    """(名字, 个数, 函数)"""
    yield "翻转一位", 10_000, flip_bits
    yield "截断", 5_000, truncate
    yield "随机文件", 1_000, random_files
    yield "恶意 pickle", 1_000, hostile_pickles
    yield "改动的检查点", 1_000, changed_checkpoints
