"""utils/book_weights.py：《从零构建大模型》的 GPTModel 和早期版本的权重读进来，算出的数与它们自己的相同。"""

import json
import random

import pytest
import safetensors.torch
import torch
from book_reference import BOOK, EARLIEST, EARLY, ReferenceModel, continue_by_recomputing
from gpt2_reference import CONTINUATION, TOLERANCE, continue_greedily
from transformers import AutoModelForCausalLM

from conftest import run
from model.config import ModelConfig
from model.language_model import LanguageModel
from utils.book_weights import BOOK as BOOK_PROJECT
from utils.book_weights import EARLY as EARLY_PROJECT
from utils.book_weights import complete_config
from utils.config_file import ConfigFile, read_config
from utils.errors import UserError
from utils.hugging_face import read_weights_file
from utils.model_file import build_model, read_model_file

SHAPE = {"vocab_size": 300, "context_length": 64, "emb_dim": 64, "num_heads": 1, "num_layers": 2, "qkv_bias": True}
WITH_GPT2_WORDS = {**SHAPE, "vocab_size": 50257, "num_layers": 1}  # 程序给它们配 GPT-2 的词表
STYLES = {"书": BOOK, "早期": EARLY, "最早": EARLIEST}
BOOK_CONFIG = {  # 书里的写法
    "vocab_size": 300,
    "context_length": 64,
    "emb_dim": 32,
    "n_heads": 4,
    "n_layers": 2,
    "drop_rate": 0.1,
    "qkv_bias": False,
}


def save(folder, state, name="book.pth"):
    torch.save(state, folder / name)
    return folder / name


def load(path, config: ConfigFile | None = None, changes: dict | None = None) -> LanguageModel:
    """词表很小，不能像程序那样经过 load_model，它要放得下 GPT-2 的词表。"""
    file = read_weights_file(path)
    cfg = ModelConfig.from_dict({**complete_config(file, config), **(changes or {})})
    return build_model(lambda: LanguageModel(cfg), file, "认出的配置").eval()


def write_book_config(folder, **changes):
    values = {key: value for key, value in {**BOOK_CONFIG, **changes}.items() if value is not ...}
    path = folder / "book.json"
    path.write_text(json.dumps(values), encoding="utf-8")
    return path


@torch.inference_mode()
def assert_same_model(ours: LanguageModel, reference) -> None:
    """分数相差不到 TOLERANCE；贪心续写的 CONTINUATION 个 token 完全相同，写到后来已经放不下开头。"""
    length = ours.cfg.context_length
    token_ids = torch.randint(0, ours.cfg.vocab_size, (2, length))
    torch.testing.assert_close(ours(token_ids), reference(token_ids), atol=TOLERANCE, rtol=0)
    prompt = token_ids[:1, :8]
    assert continue_greedily(ours, prompt) == continue_by_recomputing(reference, prompt, CONTINUATION, length)


@pytest.mark.parametrize("qkv_bias", [True, False])
@pytest.mark.parametrize("style", STYLES.values(), ids=STYLES)
def test_logits_and_continuation_are_those_of_the_other_project(tmp_path, style, qkv_bias):
    reference = ReferenceModel(style, {**SHAPE, "emb_dim": 128, "num_heads": 2, "qkv_bias": qkv_bias})
    ours = load(save(tmp_path, reference.state_dict()))
    assert (ours.cfg.num_heads, ours.cfg.qkv_bias, ours.cfg.tie_weights) == (2, qkv_bias, False)
    assert ours.cfg.num_parameters == sum(tensor.numel() for tensor in reference.weights.values())
    assert_same_model(ours, reference)


@pytest.mark.parametrize("qkv_bias", [True, False])
@pytest.mark.parametrize("num_heads", [2, 4])
def test_same_numbers_as_the_package_of_the_book(tmp_path, qkv_bias, num_heads):
    """两个头看形状就知道，四个头由书里写法的配置说。"""
    reason = "没有装 llms-from-scratch：pip install --no-deps --ignore-requires-python -r requirements-book.txt"
    chapter = pytest.importorskip("llms_from_scratch.ch04", reason=reason)
    values = {**BOOK_CONFIG, "emb_dim": 128, "n_heads": num_heads, "qkv_bias": qkv_bias}
    book = chapter.GPTModel(values).eval()
    for name, parameter in book.named_parameters():
        torch.nn.init.normal_(parameter, std=0.5 if "pos_emb" in name else 0.2)
    path, config_path = save(tmp_path, book.state_dict()), write_book_config(tmp_path, **values)
    ours = load(path, read_config(config_path, ModelConfig.from_dict) if num_heads == 4 else None)
    assert ours.cfg.num_heads == num_heads
    assert_same_model(ours, book)
    prompt = torch.randint(0, 300, (1, 8))
    theirs = chapter.generate_text_simple(book, prompt, CONTINUATION, context_size=64)[0, 8:].tolist()
    assert continue_greedily(ours, prompt) == theirs


@pytest.mark.parametrize("style", STYLES.values(), ids=STYLES)
@pytest.mark.parametrize("field", ["activation", "norm_eps"])
@torch.inference_mode()
def test_the_other_activation_or_epsilon_would_show(tmp_path, style, field):
    """嵌入很小，方差便与 ε 差不多；分数放大五倍。换成另一个项目的，差得比误差大。"""
    reference = ReferenceModel(style, SHAPE)
    for name in ("tok_emb.weight", "pos_emb.weight"):
        reference.weights[name] *= 1e-2
    reference.weights[f"final_norm.{style.norm[0]}"] *= 5
    path, token_ids = save(tmp_path, reference.state_dict()), torch.randint(0, 300, (2, 64))
    torch.testing.assert_close(load(path)(token_ids), reference(token_ids), atol=TOLERANCE, rtol=0)
    other = EARLY_PROJECT if style is BOOK else BOOK_PROJECT
    wrong = load(path, changes={field: other.config[field]})
    worst = (wrong(token_ids) - reference(token_ids)).abs().max().item()
    assert worst > 5 * TOLERANCE


def test_checkpoint_of_the_book_with_its_optimizer(tmp_path):
    """书里第五章的存法。"""
    reference = ReferenceModel(BOOK, SHAPE)
    parameters = [torch.nn.Parameter(tensor.clone()) for tensor in reference.weights.values()]
    optimizer = torch.optim.AdamW(parameters, lr=5e-4, weight_decay=0.1)
    sum(parameter.sum() for parameter in parameters).backward()
    optimizer.step()
    state = {"model_state_dict": reference.state_dict(), "optimizer_state_dict": optimizer.state_dict()}
    assert_same_model(load(save(tmp_path, state)), reference)


def test_safetensors_with_the_names_of_the_book(tmp_path):
    reference = ReferenceModel(BOOK, SHAPE)
    safetensors.torch.save_file(reference.state_dict(), tmp_path / "book.safetensors")
    assert_same_model(load(tmp_path / "book.safetensors"), reference)


def test_equal_head_is_shared(tmp_path):
    """书里装进 GPT-2 的权重之后，out_head 是 tok_emb 的一份副本。"""
    reference = ReferenceModel(BOOK, SHAPE)
    reference.weights["out_head.weight"] = reference.weights["tok_emb.weight"].clone()
    ours = load(save(tmp_path, reference.state_dict()))
    assert ours.cfg.tie_weights and ours.out_head.weight is ours.tok_emb.weight
    assert_same_model(ours, reference)


def with_changes(**changes):
    state = {**ReferenceModel(BOOK, SHAPE).state_dict(), **changes}
    return {name: tensor for name, tensor in state.items() if tensor is not None}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"out_head.bias": torch.zeros(2)}, "像是《从零构建大模型》的 GPTModel，但不认识其中的 out_head.bias"),
        ({"trf_blocks.1.att.k_norm.scale": torch.ones(64)}, "不认识其中的 trf_blocks.1.att.k_norm.scale"),
        ({"trf_blocks.0.att.W_query.lora.A": torch.ones(64, 8)}, "不认识其中的 trf_blocks.0.att.W_query.lora.A"),
        ({"final_norm.weight": torch.ones(64)}, "不认识其中的 final_norm.weight"),
        ({"out_head.weight": torch.ones(2, 64)}, "没有给词表打分的 out_head.weight"),
        ({"out_head.weight": None}, "没有给词表打分的 out_head.weight"),
        ({"pos_emb.weight": None}, "没有 position.pos_emb.weight 这个矩阵"),
        ({"trf_blocks.1.norm2.shift": None}, "trf_blocks.1.norm2.bias 在文件里没有"),
        ({"trf_blocks.0.att.W_key.weight": torch.ones(64, 32)}, "trf_blocks.0.attn.W_key.weight 在文件里是"),
        ({"trf_blocks.0.att.out_proj.weight": torch.full((64, 64), torch.nan)}, "out_proj.weight 里有 NaN"),
        ({"pos_emb.weight": torch.zeros(1).expand(10**12)}, "pos_emb.weight"),
    ],
)
def test_other_weights_are_refused_by_name(tmp_path, changes, words):
    with pytest.raises(UserError, match=words):
        load(save(tmp_path, with_changes(**changes)))


def test_heads_that_cannot_be_seen_are_asked_for(tmp_path):
    reference = ReferenceModel(BOOK, {**SHAPE, "emb_dim": 32, "num_heads": 4, "qkv_bias": False})
    path = save(tmp_path, reference.state_dict())
    with pytest.raises(UserError, match="emb_dim=32 不是 64 的倍数，看不出有几个头。用 --config"):
        load(path)
    assert_same_model(load(path, read_config(write_book_config(tmp_path), ModelConfig.from_dict)), reference)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"emb_dim": 64}, "emb_dim 是 64，.*的权重是 32"),
        ({"n_layers": 3}, "num_layers 是 3，.*的权重是 2"),
        ({"qkv_bias": True}, "qkv_bias 是 True"),
        ({"activation": "relu2"}, "activation 是 relu2，.*的权重是 gelu"),
        ({"position": "rope"}, "position 是 rope，.*的权重是 learned"),
        ({"num_kv_heads": 2}, "num_kv_heads 是 2，.*的权重是 4"),
        ({"norm_eps": 1e-6}, "norm_eps 是 1e-06"),
    ],
)
def test_contradicting_config_is_named(tmp_path, changes, words):
    reference = ReferenceModel(BOOK, {**SHAPE, "emb_dim": 32, "num_heads": 4, "qkv_bias": False})
    path = save(tmp_path, reference.state_dict())
    with pytest.raises(UserError, match=words):
        load(path, read_config(write_book_config(tmp_path, **changes), ModelConfig.from_dict))


def test_flipped_bits_never_load_with_changed_weights(tmp_path):
    shape = {**SHAPE, "context_length": 8}
    path = save(tmp_path, ReferenceModel(BOOK, shape).state_dict())
    expected, whole, generator = read_weights_file(path).weights, path.read_bytes(), random.Random(0)
    expected = {name: tensor.clone() for name, tensor in expected.items()}
    damaged_path, refused = tmp_path / "damaged.pth", 0
    for _ in range(60):
        damaged = bytearray(whole)
        damaged[generator.randrange(len(whole))] ^= 1 << generator.randrange(8)
        damaged_path.write_bytes(damaged)
        try:
            weights = read_weights_file(damaged_path).weights
        except UserError:
            refused += 1
            continue
        assert all(torch.equal(weights[name], tensor) for name, tensor in expected.items())
    assert refused > 30


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """书里的权重，头数看不出的和看得出的；读者自己的数据。"""
    folder = tmp_path_factory.mktemp("book")
    save(folder, ReferenceModel(BOOK, WITH_GPT2_WORDS).state_dict())
    save(folder, ReferenceModel(EARLIEST, WITH_GPT2_WORDS).state_dict(), "early.pth")
    save(folder, ReferenceModel(BOOK, {**WITH_GPT2_WORDS, "emb_dim": 32}).state_dict(), "narrow.pth")
    write_book_config(folder, vocab_size=50257, n_layers=1, qkv_bias=True)
    (folder / "corpus.txt").write_text("Every effort moves you. 一分耕耘。\n" * 200, encoding="utf-8")
    lines = [f"{label},{text} {i}" for i in range(40) for label, text in (("正常", "回家"), ("垃圾", "领奖"))]
    (folder / "spam.csv").write_text("label,text\n" + "\n".join(lines), encoding="utf-8")
    records = [{"instruction": f"说{word}", "output": word} for word in "天地玄黄宇宙洪荒日月盈昃辰宿列张寒来暑往"]
    (folder / "ask.json").write_text(json.dumps(records), encoding="utf-8")
    return folder


def test_generate_goes_on_from_the_prompt(project):
    flags = ("--prompt", "Every effort moves you", "--max_new_tokens", 6, "--dtype", "float32")
    for name, more in {"book.pth": (), "early.pth": (), "narrow.pth": ("--config", "book.json")}.items():
        result = run("generate.py", "--model_path", name, *flags, *more, cwd=project)
        assert (result.code, result.stderr) == (0, "") and result.stdout.startswith("Every effort moves you")


def test_missing_head_count_is_one_line(project):
    result = run("generate.py", "--model_path", "narrow.pth", "--prompt", "Hi", cwd=project)
    assert result.code == 2 and "看不出有几个头。用 --config" in result.stderr and result.stderr.count("\n") == 1


TRAININGS = {
    "pretrain.py": ("--data_path", "corpus.txt", "--model_path"),
    "finetune_classifier.py": ("--data_path", "spam.csv", "--epochs", 1, "--output_path"),
    "finetune_instruction.py": ("--data_path", "ask.json", "--epochs", 1, "--output_path"),
}


@pytest.mark.parametrize("program", TRAININGS)
def test_training_starts_from_them(project, program):
    """练出的文件是自己的，说得清自己的结构；没有 out_proj 的还是没有。"""
    for name, more in {"early.pth": (), "narrow.pth": ("--config", "book.json")}.items():
        before = (project / name).read_bytes()
        flags = (*TRAININGS[program], f"{program}.{name}", "--batch_size", 2, "--max_steps", 2)
        result = run(program, "--init_from", name, *more, *flags, cwd=project)
        assert result.code == 0, result.stderr
        config = read_model_file(project / f"{program}.{name}").config
        is_early = name == "early.pth"
        assert (config["out_proj"], config["num_heads"]) == ((False, 1) if is_early else (True, 4))
        assert (config["activation"], config["norm_eps"]) == (("gelu_exact", 1e-12) if is_early else ("gelu", 1e-5))
        assert (project / name).read_bytes() == before


def test_unknown_weight_stops_every_program(project):
    state = ReferenceModel(BOOK, WITH_GPT2_WORDS).state_dict() | {"out_head.bias": torch.zeros(2)}
    save(project, state, "classifier.pth")
    for program, flags in TRAININGS.items():
        result = run(program, "--init_from", "classifier.pth", *flags, "x.pth", cwd=project)
        assert result.code == 2 and "不认识其中的 out_head.bias" in result.stderr, result.stderr
        assert result.stderr.count("\n") == 1 and not (project / "x.pth").exists()


@pytest.mark.parametrize("style", [BOOK, EARLY], ids=["书", "早期"])
def test_exported_to_transformers_they_compute_the_same(tmp_path, style):
    reference = ReferenceModel(style, {**WITH_GPT2_WORDS, "emb_dim": 32, "num_heads": 4})
    save(tmp_path, reference.state_dict())
    config = write_book_config(tmp_path, vocab_size=50257, n_layers=1, qkv_bias=True)
    flags = ("--model_path", "book.pth", "--config", config, "--output", "exported")
    result = run("export_hf.py", *flags, cwd=tmp_path)
    assert result.code == 0, result.stderr
    token_ids = torch.randint(0, 50257, (2, 16))
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "exported").eval()
    torch.testing.assert_close(theirs(token_ids).logits, reference(token_ids), atol=TOLERANCE, rtol=0)
