"""export_hf.py 从头到尾：从命令行导出，transformers 打开，再读回来。"""

import json

import pytest
import torch
from gpt2_reference import assert_same_model, build_ours, build_reference
from transformers import AutoModelForCausalLM, AutoTokenizer

from conftest import run, tiny_config
from model.config import ModelConfig
from model.language_model import LanguageModel
from utils.hugging_face import read_weights_file
from utils.model_file import read_model_file, save_model, tokenizer_of
from utils.text_utils import load_gpt2_tokenizer, train_tokenizer

EVERY_FILE = {
    "config.json",
    "generation_config.json",
    "merges.txt",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.json",
}


def build(tokenizer, **changes) -> LanguageModel:
    """权重都不是特殊值的小模型，带着词表。"""
    model = LanguageModel(tiny_config(context_length=128, **{"vocab_size": tokenizer.vocab_size, **changes}))
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    model.tokenizer_state = tokenizer.state()
    return model.eval()


@pytest.fixture(scope="module")
def tokenizer(corpus_text):
    return train_tokenizer(corpus_text, 400, "han")


def export(model, folder):
    """存成 model.pth 再导出；返回导出的文件夹。"""
    save_model(folder / "model.pth", model)
    result = run("export_hf.py", "--model_path", "model.pth", "--output", "out/gpt2", cwd=folder)
    assert (result.code, result.stderr) == (0, ""), result.stderr
    assert "已导出：" in result.stdout
    return folder / "out" / "gpt2"


def assert_refused(folder, *flags, words):
    before = {path.name for path in folder.rglob("*")}
    result = run("export_hf.py", *flags, cwd=folder)
    assert (result.code, result.stdout) == (2, ""), result.stderr
    assert result.stderr.startswith("错误：") and result.stderr.count("\n") == 1, result.stderr
    assert not [word for word in words if word not in result.stderr], result.stderr
    assert {path.name for path in folder.rglob("*")} == before


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"tie_weights": False, "hidden_dim": 80, "drop_rate": 0.2},
        {"qkv_bias": False, "bias": False},
        {"activation": "relu2", "vocab_size": 448},
    ],
)
def test_transformers_opens_it_and_it_comes_back_bit_equal(tmp_path, tokenizer, changes):
    model = build(tokenizer, **changes)
    model.template = "zh" if changes else None  # 指令模型的模板也要回得来
    folder = export(model, tmp_path)
    reference, loading = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert not any(loading.values())
    assert_same_model(model, reference.eval())

    file = read_weights_file(folder)
    assert ModelConfig.from_dict(file.config) == model.cfg
    expected, again = model.state_dict(), build_ours(file).state_dict()
    assert again.keys() == expected.keys()
    assert all(torch.equal(again[name], value) for name, value in expected.items() if name != "_extra_state")
    assert again["_extra_state"] == expected["_extra_state"]


def test_own_vocabulary_comes_with_it(tmp_path, tokenizer, corpus_text):
    folder = export(build(tokenizer), tmp_path)
    theirs = AutoTokenizer.from_pretrained(folder)
    assert theirs.encode(corpus_text) == tokenizer.encode(corpus_text)
    assert tokenizer_of(read_weights_file(folder), None).state() == tokenizer.state()
    assert {path.name for path in folder.iterdir()} == EVERY_FILE - {"vocab.json", "merges.txt"}


def test_gpt2_vocabulary_comes_with_it(tmp_path):
    tokenizer = load_gpt2_tokenizer()
    folder = export(build(tokenizer), tmp_path)
    assert AutoTokenizer.from_pretrained(folder).encode("孙悟空 Monkey!") == tokenizer.encode("孙悟空 Monkey!")
    assert read_weights_file(folder).tokenizer == {"type": "gpt2"}
    assert {path.name for path in folder.iterdir()} == EVERY_FILE


def test_transformers_never_generates_padded_ids(tmp_path, tokenizer):
    model = build(tokenizer, vocab_size=tokenizer.vocab_size + 5000)
    reference = AutoModelForCausalLM.from_pretrained(export(model, tmp_path))
    output = reference.generate(torch.tensor([[1, 2, 3]]), max_new_tokens=60, do_sample=True)
    assert output.max() < tokenizer.vocab_size


def test_what_transformers_wrote_can_be_exported_after_saving_here(tmp_path):
    """transformers -> 我们的 model.pth -> transformers，权重一个位也不变。"""
    reference = build_reference(vocab_size=50257)
    reference.save_pretrained(tmp_path / "theirs")
    model = build_ours(read_weights_file(tmp_path / "theirs"))
    again = AutoModelForCausalLM.from_pretrained(export(model, tmp_path))
    expected, actual = reference.state_dict(), again.state_dict()
    assert actual.keys() == expected.keys()
    assert all(torch.equal(actual[name], tensor) for name, tensor in expected.items())


def test_existing_files_are_kept_as_backups(tmp_path, tokenizer):
    folder = tmp_path / "out" / "gpt2"
    folder.mkdir(parents=True)
    for name in ("config.json", "model.safetensors", "别的.txt"):
        (folder / name).write_text("原来的", encoding="utf-8")
    save_model(tmp_path / "model.pth", build(tokenizer))
    result = run("export_hf.py", "--output", folder, cwd=tmp_path)
    assert result.code == 0
    assert "config.json 已改名为 config.json.bak" in result.stderr
    for name in ("config.json.bak", "model.safetensors.bak", "别的.txt"):
        assert (folder / name).read_text(encoding="utf-8") == "原来的"
    assert json.loads((folder / "config.json").read_text(encoding="utf-8"))["model_type"] == "gpt2"
    assert not [path.name for path in folder.iterdir() if path.name.startswith(".")]


def test_other_structures_are_refused_before_anything_is_written(tmp_path, tokenizer):
    save_model(tmp_path / "model.pth", build(tokenizer, position="rope", norm="rms_norm", num_kv_heads=2))
    words = ['position="rope"', "norm=", "num_kv_heads=2", "GPT-2 只有 4"]
    assert_refused(tmp_path, "--model_path", "model.pth", "--output", "out", words=words)
    (tmp_path / "file").write_text("", encoding="utf-8")  # 写不进去的，载入模型之前就说
    assert_refused(tmp_path, "--model_path", "model.pth", "--output", "file", words=["无法写入文件夹"])


def test_bad_arguments_are_one_line(tmp_path, tokenizer):
    assert_refused(tmp_path, words=["--output"])
    assert_refused(tmp_path, "--output", "out", words=["找不到模型文件", "model.pth"])
    assert_refused(tmp_path, "--ouput", "out", "--output", "out", words=["--ouput", "--output"])
    save_model(tmp_path / "model.pth", build(tokenizer))
    (tmp_path / "file").write_text("", encoding="utf-8")
    assert_refused(tmp_path, "--output", "file", words=["file", "无法写入文件夹"])
    state = torch.load(tmp_path / "model.pth", weights_only=True)
    del state["_extra_state"]
    torch.save(state, tmp_path / "plain.pth")
    assert_refused(tmp_path, "--model_path", "plain.pth", "--output", "out", words=["没有记录配置"])


def test_trained_model_of_gpt2_shape_is_exported(trained, tmp_path):
    result = run("export_hf.py", "--model_path", "model.pth", "--output", tmp_path, cwd=trained)
    assert result.code == 0, result.stderr
    file, expected = read_weights_file(tmp_path), read_model_file(trained / "model.pth")
    assert file.tokenizer == expected.tokenizer
    assert all(torch.equal(file.weights[name], tensor) for name, tensor in expected.weights.items())
