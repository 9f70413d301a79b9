"""explain.py 从头到尾：像用户那样从命令行运行，再从网页自己的数据重算。"""

import argparse
import os
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
import torch
from page_data import DATA, read_data, unpack
from torch.nn import functional as F

from conftest import ROOT, run, write_config
from explain import same_generation
from model.config import ModelConfig
from model.language_model import LanguageModel
from utils.explain_page import data as page_data_module
from utils.explain_page.data import chance_similarity, choose_layers, token_section, whole_characters
from utils.explain_page.pack import pack, pack_half, show_text
from utils.explain_page.page import SOURCE, embed_json, find_source
from utils.generation import Sampling
from utils.model_file import read_model_file, save_model
from utils.model_loading import load_model
from utils.text_utils import Tokenizer, load_gpt2_tokenizer, train_tokenizer
from utils.trace import BlockTrace, Trace, token_probabilities

TEMPLATE = (ROOT / "utils/explain_page/page.html").read_text(encoding="utf-8")
PROMPT = "孙悟空"
NASTY = "</script><script>alert(1)</script><!--&amp;\n\x07\x1b[31m\u2028🧑‍🚀<|endoftext|>{{script}}"


def explain(folder, *arguments, model="model.pth"):
    result = run("explain.py", "--model_path", model, *arguments, cwd=folder)
    assert result.code == 0, result.stderr
    return result


def load(path) -> tuple[LanguageModel, Tokenizer]:
    model, tokenizer = load_model(read_model_file(path), ModelConfig.from_dict, LanguageModel)
    return model.eval(), tokenizer


@pytest.fixture(scope="module")
def page(trained, tmp_path_factory):
    """(网页的路径, 程序的输出)"""
    path = tmp_path_factory.mktemp("explain") / "页面" / "explain.html"
    flags = ["--temperature", 1.2, "--top_k", 40, "--max_new_tokens", 14, "--seed", 5]
    return path, explain(trained, "--prompt", PROMPT, "--continuation", "笑道", "--output", path, *flags)


@pytest.fixture(scope="module")
def data(page):
    return read_data(page[0])


@pytest.fixture(scope="module")
def loaded(trained):
    return load(trained / "model.pth")


@pytest.fixture(scope="module")
def token_ids(data):
    return torch.tensor([[token["id"] for token in data["tokens"]]])


def test_one_line_is_printed(page):
    path, result = page
    assert re.fullmatch(rf"已写出：{re.escape(str(path))}（[\d.]+ [KM]B），用浏览器打开它，不用联网\n", result.stdout)
    assert result.stderr == ""


def test_page_needs_nothing_from_outside(page):
    text = page[0].read_text(encoding="utf-8")
    assert "default-src 'none'" in text
    assert not re.search(r"https?:|\bsrc=|@import|url\(|<link", DATA.sub("", text))


def test_tokens_are_those_of_the_prompt(data, loaded, token_ids):
    tokenizer = loaded[1]
    assert tokenizer.decode(token_ids[0].tolist()) == data["prompt"] == PROMPT
    assert b"".join(bytes.fromhex(token["bytes"]) for token in data["tokens"]).decode() == PROMPT
    assert data["characters"] == len(PROMPT)


def test_embeddings_are_rows_of_the_tables(data, loaded, token_ids):
    model, _ = loaded
    parts, seq = unpack(data["embedding"]["parts"]), token_ids.shape[1]
    assert torch.equal(parts[0], model.tok_emb.weight[token_ids[0]].detach()[:, : parts.shape[-1]])
    torch.testing.assert_close(parts[1], model.position.pos_emb.weight[:seq].detach()[:, : parts.shape[-1]])
    torch.testing.assert_close(parts[2], parts[0] + parts[1])


def test_neighbours_are_the_closest_other_tokens(data, loaded, token_ids):
    model, tokenizer = loaded
    table = model.tok_emb.weight.detach()[: tokenizer.vocab_size]
    for position, token_id in enumerate(token_ids[0].tolist()):
        cosines = F.cosine_similarity(table, table[token_id], dim=-1)
        cosines[token_id] = -torch.inf
        best = cosines.topk(6)
        assert data["embedding"]["neighbours"][position] == best.indices.tolist()
        torch.testing.assert_close(unpack(data["embedding"]["similarities"])[position], best.values)


def test_noise_floor_is_how_near_random_vectors_come_by_chance(data, loaded):
    model, tokenizer = loaded
    for count, num_dims in ((tokenizer.vocab_size, model.cfg.emb_dim), (3267, 192)):
        draw = np.random.default_rng(1)  # 随机方向与一个固定方向的余弦，就是它单位化之后的第一个分量
        first, others = draw.standard_normal((500, count - 1)), draw.chisquare(num_dims - 1, (500, count - 1))
        expected = (first / np.sqrt(first**2 + others)).max(axis=1).mean()
        assert chance_similarity(count, num_dims) == pytest.approx(expected, abs=0.02)
    assert data["embedding"]["noise"] == chance_similarity(tokenizer.vocab_size, model.cfg.emb_dim)


@torch.inference_mode()
def test_attention_weights_follow_from_the_scores(data, loaded, token_ids):
    """由页面的分数算出权重，取页面的值，经模型的 out_proj，应得页面记下的长度。"""
    model, _ = loaded
    seq = token_ids.shape[1]
    for layer, block in enumerate(model.trf_blocks):
        scores = unpack(data["attention"]["scores"][layer])
        queries, keys, values = (unpack(data["attention"][name][layer]) for name in ("queries", "keys", "values"))
        torch.testing.assert_close(scores, queries @ keys.mT / data["config"]["head_dim"] ** 0.5, atol=5e-3, rtol=5e-3)
        mask = torch.ones(seq, seq, dtype=torch.bool).triu(1)
        weights = scores.masked_fill(mask, -torch.inf).softmax(dim=-1)
        added = block.attn.out_proj((weights @ values).transpose(0, 1).flatten(1)).norm(dim=-1)
        torch.testing.assert_close(added, unpack(data["stream"]["added"])[2 * layer], atol=1e-3, rtol=5e-3)
        shares = unpack(data["attention"]["shares"])[layer]
        torch.testing.assert_close(shares[:, 0], weights.diagonal(-1, 1, 2).mean(dim=-1))  # 前一个
        torch.testing.assert_close(shares[:, 2], weights[:, 1:, 0].mean(dim=-1))  # 首个


def test_layer_norm_is_what_the_page_says(data, loaded):
    model, _ = loaded
    norms = [norm for block in model.trf_blocks for norm in (block.norm1, block.norm2)] + [model.final_norm]
    vectors, means, stds = (unpack(data["stream"][name]) for name in ("vectors", "means", "stds"))
    for site, norm in enumerate(norms):
        dims = vectors.shape[-1]
        normalized = (vectors[site, 0] - means[site, 0, :, None]) / (stds[site, 0, :, None] ** 2 + 1e-5).sqrt()
        expected = normalized * norm.weight.detach()[:dims] + norm.bias.detach()[:dims]
        torch.testing.assert_close(vectors[site, 1], expected, atol=1e-4, rtol=1e-4)


@torch.inference_mode()
def test_logit_lens_ends_in_the_real_answer(data, loaded, token_ids):
    model, tokenizer = loaded
    log_p = model(token_ids)[0, :, : tokenizer.vocab_size].log_softmax(dim=-1)
    best = log_p.topk(5)
    assert data["lens"]["ids"][-1] == best.indices.tolist()
    torch.testing.assert_close(unpack(data["lens"]["probabilities"])[-1], best.values.exp())
    torch.testing.assert_close(unpack(data["lens"]["entropies"])[-1], -(log_p.exp() * log_p).sum(dim=-1))
    first = model.out_head(model.final_norm(model.position.embed(model.tok_emb(token_ids), 0)))[0]
    assert [guesses[0] for guesses in data["lens"]["ids"][0]] == first.argmax(dim=-1).tolist()


@torch.inference_mode()
def test_next_logits_are_complete(data, loaded, token_ids):
    model, tokenizer = loaded
    expected = model(token_ids)[0, -1, : tokenizer.vocab_size]
    torch.testing.assert_close(unpack(data["next"]["logits"]), expected, atol=1e-5, rtol=1e-5)
    assert data["next"]["sampling"] == {"temperature": 1.2, "top_k": 40, "top_p": None, "repetition_penalty": 1.0}


def test_generated_text_is_that_of_generate(trained, data, loaded):
    """网页上的命令，接上滑块开始时的位置，写出的就是网页上的那一段。"""
    _, program, *arguments = shlex.split(data["command"])
    written = run(program, *arguments, "--temperature", 1.2, "--top_k", 40, cwd=trained).stdout
    steps = data["generation"]["steps"]
    assert written.rstrip("\n") == (PROMPT + loaded[1].decode([step["id"] for step in steps])).rstrip("\n")


def test_steps_follow_from_the_logits_and_fill_the_cache(data, loaded, token_ids):
    model, _ = loaded
    generation = data["generation"]
    first, cache = generation["steps"][0], model.new_cache()
    logits = unpack(data["next"]["logits"])[None]
    expected = token_probabilities(logits, token_ids, Sampling(1.2, 40))[0]
    assert first["probability"] == pytest.approx(expected[first["id"]].item())
    assert first["probabilities"] == pytest.approx(expected.topk(len(first["ids"])).values.tolist())
    total = cache.keys.nbytes + cache.values.nbytes
    assert generation["bytes_per_token"] * model.cfg.context_length == total
    counts = [step["num_tokens"] for step in generation["steps"]]
    assert (
        counts == list(range(token_ids.shape[1], token_ids.shape[1] + len(counts)))
        and counts[-1] > model.cfg.context_length
    )


@torch.inference_mode()
def test_loss_is_cross_entropy_on_the_continuation(data, loaded):
    model, tokenizer = loaded
    loss, start = data["loss"], data["loss"]["num_context"]
    assert tokenizer.decode(loss["ids"][start:]) == "笑道" and loss["num_characters"] == 2
    logits = model(torch.tensor([loss["ids"]]))[0, start - 1 : -1, : tokenizer.vocab_size]
    targets = torch.tensor(loss["ids"][start:])
    losses = unpack(loss["log_sums"]) - unpack(loss["right"])
    torch.testing.assert_close(losses, F.cross_entropy(logits, targets, reduction="none"))
    assert loss["best"] == logits.argmax(dim=-1).tolist()
    for row, target, rank in zip(logits, targets, loss["ranks"], strict=True):
        assert row.argsort(descending=True)[rank - 1] == target


def test_every_mentioned_token_has_a_label(data):
    mentioned = {str(token_id) for row in data["lens"]["ids"] for guesses in row for token_id in guesses}
    mentioned |= {str(step["id"]) for step in data["generation"]["steps"]}
    mentioned |= {str(token_id) for token_id in (*data["loss"]["ids"], *data["loss"]["best"])}
    assert mentioned <= data["labels"].keys()


def test_every_named_function_is_shown_as_it_is(data):
    names = {f"{path} {name}" for path, name in SOURCE.findall(TEMPLATE)}
    assert names == data["sources"].keys() and len(names) > 15
    assert TEMPLATE.count("data-source=") == len(SOURCE.findall(TEMPLATE))
    assert data["sources"]["model/attention.py attention_map"].startswith("def attention_map(queries: Tensor")


def test_same_command_writes_the_same_page_and_keeps_the_old(trained, tmp_path):
    first = explain(trained, "--prompt", "悟空", "--output", tmp_path / "a.html")
    content = (tmp_path / "a.html").read_bytes()
    again = explain(trained, "--prompt", "悟空", "--output", tmp_path / "a.html")
    assert first.stderr == "" and again.stderr == f"提示：原来的 {tmp_path / 'a.html'} 已改名为 a.html.bak\n"
    assert (tmp_path / "a.html").read_bytes() == (tmp_path / "a.html.bak").read_bytes() == content
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.html", "a.html.bak"]


def test_prompt_that_looks_like_markup_stays_text(trained, tmp_path):
    explain(trained, f"--prompt=空{NASTY[:9]}", "--output", tmp_path / "a.html", "--max_new_tokens", 1)
    text = (tmp_path / "a.html").read_text(encoding="utf-8")
    assert read_data(tmp_path / "a.html")["prompt"] == "空</script>"
    assert text.count("</script>") == TEMPLATE.count("</script>")


@pytest.mark.skipif(os.name == "nt", reason="Windows 的命令行参数里不会有孤立的代理字符")
def test_broken_bytes_and_a_single_character_are_explained(trained, tmp_path):
    for prompt in ("\udce5\udcad", "a"):
        explain(trained, f"--prompt={prompt}", "--output", tmp_path / "a.html", "--max_new_tokens", 2)


@pytest.mark.skipif(os.name == "nt", reason="Windows 的命令行另有一套引号")
def test_command_on_the_page_survives_the_shell():
    prompt, config = '-话 "x" $HOME `ls`\n</script>', Path("我的 配置.json")
    args = argparse.Namespace(model_path=Path("a b.pth"), config=config, prompt=prompt, max_new_tokens=3, seed=1)
    expected = ["--model_path", "a b.pth", "--config", str(config), f"--prompt={prompt}", "--max_new_tokens", "3"]
    assert shlex.split(same_generation(args)) == ["python", "generate.py", *expected, "--seed", "1"]


def test_top_k_over_the_vocabulary_is_said(trained, tmp_path):
    result = explain(trained, "--prompt", "悟空", "--output", tmp_path / "k.html", "--top_k", 99_999)
    assert result.stderr == "提示：--top_k 已降为词表大小 300\n"


def test_long_and_strange_inputs_are_shortened_and_said_so(trained, tmp_path):
    text = NASTY * 200
    flags = [f"--prompt={text}", f"--continuation={text}", "--max_new_tokens", 1000, "--output", tmp_path / "a.html"]
    result = explain(trained, *flags)
    data = read_data(tmp_path / "a.html")
    assert data["prompt"] == text
    assert [f"提示：{note}" for note in data["notes"]] == result.stderr.splitlines()
    assert re.match(r"提示：开头有 \d+ 个 token，只用最后 16 个\n提示：计算损失的文字有 \d+", result.stderr)
    assert "--max_new_tokens 已降为 48" in result.stderr
    assert len(data["tokens"]) == len(data["loss"]["ids"]) == 16 and data["loss"]["num_context"] == 1
    assert not [token for token in data["tokens"] if not token["label"].isprintable()]


@pytest.mark.parametrize(
    "changes",
    [
        {"position": "rope", "norm": "rms_norm", "activation": "swiglu", "qk_norm": True, "num_kv_heads": 2},
        {"tie_weights": False, "num_kv_heads": 1, "activation": "relu2", "bias": False, "qkv_bias": False},
    ],
    ids=["rope", "untied"],
)
def test_every_variant_is_explained(tmp_path, changes):
    tokenizer = train_tokenizer("孙悟空 Monkey", 300)
    size = {"vocab_size": tokenizer.vocab_size + 7, "context_length": 32, "emb_dim": 32, "num_heads": 4}
    rest = {"num_layers": 2, "drop_rate": 0.1, "qkv_bias": True}
    model = LanguageModel(ModelConfig.from_dict({**size, **rest, **changes}))
    model.tokenizer_state = tokenizer.state()
    save_model(tmp_path / "model.pth", model)
    explain(tmp_path, "--prompt", "Hello 猪八戒", "--max_new_tokens", 2)
    data = read_data(tmp_path / "explain.html")
    assert unpack(data["next"]["logits"]).shape == (tokenizer.vocab_size,)  # 补齐的部分抽不到
    assert any("part_of" in token for token in data["tokens"])
    heads = changes["num_kv_heads"]
    assert data["generation"]["bytes_per_token"] == 2 * 2 * heads * 8 * 4  # 键值两份 × 层 × 头 × 维 × 字节


BAD_ARGUMENTS = [
    ([], "--prompt", "缺少必填参数"),
    (["--prompt", ""], "--prompt", "不能为空"),
    (["--prompt", "悟空", "--promt", "x"], "--promt", "是否想写 --prompt？"),
    (["--prompt", "悟空", "--continuation", ""], "--continuation", "不能为空"),
    (["--prompt", "悟空", "--temperature", "nan"], "--temperature", "收到 nan"),
    (["--prompt", "悟空", "--top_k", "0"], "--top_k", "≥1"),
    (["--prompt", "悟空", "--top_p", "2"], "--top_p", "(0, 1]"),
    (["--prompt", "悟空", "--max_new_tokens", "0"], "--max_new_tokens", "≥1"),
    (["--prompt", "悟空", "--repetition_penalty", "0"], "--repetition_penalty", "收到 0"),
    (["--prompt", "悟空", "--seed", "-1"], "--seed", "收到 -1"),
    (["--prompt", "悟空", "--output", ""], "--output", "空"),
    (["--prompt", "悟空", "--output", "."], ".", "是一个文件夹"),
    (["--prompt", "悟空", "--output", "model.pth"], "model.pth", "同时是输入文件"),
    (["--prompt", "悟空", "--output", "corpus.txt/a.html"], "无法写入", "路径里有一段是文件，不是文件夹"),
    (["--prompt", "悟空", "--model_path", "没有.pth"], "没有.pth", "找不到模型文件"),
    (["--prompt", "悟空", "--model_path", "corpus.txt"], "corpus.txt", "已损坏或不是模型文件"),
    (["--prompt", "悟空", "--config", "没有.json"], "没有.json", "找不到配置文件"),
]


@pytest.mark.parametrize("case", BAD_ARGUMENTS, ids=lambda case: " ".join(case[0]) or "none")
def test_bad_argument_is_one_line_and_writes_nothing(trained, case):
    arguments, *words = case
    before = {path: path.stat().st_mtime_ns for path in trained.rglob("*")}
    result = run("explain.py", *arguments, cwd=trained)
    assert (result.code, result.stdout) == (2, "") and result.stderr.startswith("错误："), result.stderr
    assert result.stderr.count("\n") == 1 and all(word in result.stderr for word in words), result.stderr
    assert {path: path.stat().st_mtime_ns for path in trained.rglob("*")} == before


def test_plain_weights_need_a_config(trained, tmp_path):
    state = torch.load(trained / "model.pth", weights_only=True)
    del state["_extra_state"]
    tables = {name: torch.randn(50257, 32) * 0.02 for name in ("tok_emb.weight", "out_head.weight")}
    torch.save({**state, **tables}, tmp_path / "plain.pth")
    refused = run("explain.py", "--model_path", "plain.pth", "--prompt", "悟空", cwd=tmp_path)
    assert refused.code == 2 and "--config" in refused.stderr
    flags = ("--model_path", "plain.pth", "--prompt", "悟空", "--output", "plain.pth/a.html")
    assert "无法写入文件夹" in run("explain.py", *flags, cwd=tmp_path).stderr  # 载入模型之前就说
    config = write_config(tmp_path, vocab_size=50257, tokenizer=...)
    explain(tmp_path, "--config", config, "--prompt", "悟空", "--temperature", 0, model="plain.pth")
    steps = read_data(tmp_path / "explain.html")["generation"]["steps"]
    assert [step["probability"] for step in steps] == [1.0] * len(steps)


def test_help_names_every_flag():
    result = run("explain.py", "--help", cwd=ROOT)
    flags = """config model_path prompt continuation output max_new_tokens temperature top_k top_p repetition_penalty
    seed""".split()
    assert result.code == 0 and all(f"--{flag} " in result.stdout for flag in flags)


def test_packed_tensors_come_back():
    tensor = torch.randn(2, 3, 5) * 10
    assert torch.equal(unpack(pack(tensor)), tensor)
    torch.testing.assert_close(unpack(pack_half(tensor)), tensor, atol=1e-6, rtol=1e-3)
    assert unpack(pack_half(torch.tensor([1e9]))).item() == 65504


def test_json_cannot_end_the_script():
    assert embed_json({"text": "</script>\udcff字"}) == '{"text":"\\u003c/script>\\udcff\\u5b57"}'


def test_half_characters_name_the_whole_one():
    tokenizer = load_gpt2_tokenizer()
    section = token_section(tokenizer, tokenizer.encode("孙a"))
    assert [row.get("part_of") for row in section] == ["孙"] * (len(section) - 1) + [None]
    assert whole_characters("甲乙".encode(), 2, 4) == "甲乙" and whole_characters(b"\x80\x80", 1, 2) == "��"


def test_blanks_and_control_characters_are_visible():
    assert show_text("a b\n\x07\u200b\u3000") == "a␣b↵⟨7⟩⟨200B⟩␣"


def test_source_is_found_and_indented_to_the_left():
    source = find_source("model/attention.py", "MultiHeadAttention.project")
    assert source.startswith("def project(") and "\n    queries = position" in source
    with pytest.raises(KeyError):
        find_source("model/attention.py", "MultiHeadAttention.nothing")


@pytest.mark.parametrize(
    ("fitting", "expected"), [(99, [0, 1, 2, 3, 4, 5, 6]), (3, [0, 3, 6]), (4, [0, 2, 4, 6]), (1, [6]), (0, [6])]
)
def test_large_models_show_some_layers(monkeypatch, fitting, expected):
    zeros = torch.zeros(2, 4, 4)
    block = BlockTrace(*[zeros] * 12)
    trace = Trace(zeros, zeros, [block] * 7, zeros, zeros)
    size = (4 * zeros.numel() + 6 * zeros.numel()) * 4 // 3
    monkeypatch.setattr(page_data_module, "MAX_ATTENTION_BYTES", fitting * size)
    assert choose_layers(trace) == expected
