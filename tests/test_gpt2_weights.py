"""Hugging Face 的 GPT-2 用在各个程序里：--model_path 续写，--init_from 接着训练和微调。"""

import json
import re
import shutil

import pytest
import safetensors.torch
import torch
from gpt2_reference import continue_reference
from transformers import AutoModelForCausalLM, AutoTokenizer

from conftest import last_of_each, run, write_config
from utils.model_file import read_model_file

DATA = {
    "pretrain.py": "corpus.txt",
    "finetune_classifier.py": "spam.csv",
    "finetune_instruction.py": "ask.json",
}
LOSS = re.compile(r"Validate loss (\d+\.\d{3})")


@pytest.fixture(scope="module")
def folder(trained, tmp_path_factory):
    """gpt2/ 是导出的小模型，corpus.txt 是它学过的语料。"""
    folder = tmp_path_factory.mktemp("weights")
    result = run("export_hf.py", "--model_path", trained / "model.pth", "--output", folder / "gpt2", cwd=folder)
    assert result.code == 0, result.stderr
    (folder / "corpus.txt").write_bytes((trained / "corpus.txt").read_bytes())
    lines = [f"{label},{text} {i}" for i in range(40) for label, text in (("正常", "回家吃饭"), ("垃圾", "点击领取"))]
    (folder / "spam.csv").write_text("label,text\n" + "\n".join(lines), encoding="utf-8")
    records = [{"instruction": f"说{word}", "output": word} for word in "天地玄黄宇宙洪荒日月盈昃辰宿列张寒来暑往"]
    (folder / "ask.json").write_text(json.dumps(records), encoding="utf-8")
    return folder


def pretrain(folder, *args):
    flags = ("--data_path", "corpus.txt", "--batch_size", 4, "--eval_freq", 2, "--max_steps", 4)
    return run("pretrain.py", *last_of_each(*flags, *args), cwd=folder)


def test_generate_writes_what_transformers_writes(folder):
    flags = ("--prompt", "悟空", "--max_new_tokens", 12, "--dtype", "float32")
    ours = run("generate.py", "--model_path", "gpt2", *flags, cwd=folder)
    assert (ours.code, ours.stderr) == (0, "")
    tokenizer, model = (auto.from_pretrained(folder / "gpt2") for auto in (AutoTokenizer, AutoModelForCausalLM))
    prompt = tokenizer("悟空", return_tensors="pt")["input_ids"]
    token_ids = prompt[0].tolist() + continue_reference(model, prompt, 12)
    assert ours.stdout == tokenizer.decode(token_ids) + "\n"


def test_training_goes_on_from_the_given_weights(trained, folder):
    """第 0 步的损失就是那个模型的；结构和词表也是它的，不必给 --config。"""
    result = pretrain(folder, "--init_from", "gpt2", "--model_path", "more.pth")
    assert result.code == 0, result.stderr
    last = json.loads((trained / "model.pth.log.jsonl").read_text("utf-8").splitlines()[-1])
    assert float(LOSS.search(result.stdout)[1]) == pytest.approx(last["validate_loss"], abs=2e-3)
    ours, given = read_model_file(folder / "more.pth"), read_model_file(trained / "model.pth")
    assert (ours.config, ours.tokenizer) == (given.config, given.tokenizer)
    assert not torch.equal(ours.weights["tok_emb.weight"], given.weights["tok_emb.weight"])


def test_interrupted_training_resumes_to_the_same_bits(folder):
    flags = ("--init_from", "gpt2", "--max_steps", 4, "--save_every", 2)
    whole = pretrain(folder, *flags, "--model_path", "whole.pth")
    assert whole.code == 0, whole.stderr
    (folder / "whole.pth.ckpt").rename(folder / "part.pth.ckpt")
    for path in sorted((folder / "part.pth.ckpt").iterdir())[1:]:
        path.unlink()
    resumed = pretrain(folder, *flags, "--model_path", "part.pth", "--resume")
    assert resumed.code == 0 and "从第 2 步继续" in resumed.stdout, resumed.stderr
    one, other = (read_model_file(folder / name).weights for name in ("whole.pth", "part.pth"))
    assert all(torch.equal(other[name], tensor) for name, tensor in one.items())


def test_a_contradicting_config_is_named(folder):
    config = write_config(folder, emb_dim=64)
    result = pretrain(folder, "--init_from", "gpt2", "--config", config, "--model_path", "x.pth")
    assert result.code == 2 and "emb_dim" in result.stderr and result.stderr.count("\n") == 1, result.stderr
    assert not (folder / "x.pth").exists()


@pytest.mark.parametrize("program", DATA)
@pytest.mark.parametrize("content", [None, b"<html></html>"])
def test_bad_weights_are_one_line(folder, program, content):
    path = folder / "bad.safetensors"
    path.unlink(missing_ok=True)
    if content:
        path.write_bytes(content)
    result = run(program, "--init_from", path, "--data_path", DATA[program], cwd=folder)
    assert result.code == 2 and "bad.safetensors" in result.stderr and result.stderr.count("\n") == 1, result.stderr


def test_another_kind_of_model_is_named_as_such(folder):
    (folder / "bert").mkdir(exist_ok=True)
    tensors = {"bert.embeddings.word_embeddings.weight": torch.zeros(3, 4)}
    safetensors.torch.save_file(tensors, folder / "bert" / "model.safetensors")
    for program, flag in (("generate.py", "--model_path"), ("pretrain.py", "--init_from")):
        data = ("--data_path", "corpus.txt") if program == "pretrain.py" else ("--prompt", "你好")
        result = run(program, flag, "bert", *data, cwd=folder)
        assert result.code == 2 and "model.safetensors：不是 GPT-2 的权重" in result.stderr, result.stderr


def test_output_cannot_replace_the_starting_weights(folder):
    weights = folder / "gpt2" / "model.safetensors"
    result = pretrain(folder, "--init_from", "gpt2", "--model_path", weights)
    assert result.code == 2 and "model.safetensors" in result.stderr, result.stderr


@pytest.mark.parametrize("start", ["gpt2", "gpt2/model.safetensors"])
@pytest.mark.parametrize("program", [*DATA, "explain.py"])
@pytest.mark.parametrize("name", ["config.json", "tokenizer.json"])
def test_output_cannot_replace_what_is_read_beside_the_weights(folder, program, name, start):
    before = {path: path.read_bytes() for path in (folder / "gpt2").iterdir()}
    names = {"pretrain.py": ("--init_from", "--model_path"), "explain.py": ("--model_path", "--output")}
    source, target = names.get(program, ("--model_path", "--output_path"))
    data = ("--data_path", DATA[program]) if program in DATA else ("--prompt", "悟空")
    result = run(program, source, start, target, f"gpt2/{name}", *data, cwd=folder)
    assert result.code == 2 and result.stderr.startswith(f"错误：gpt2/{name}：同时是输入文件"), result.stderr
    assert result.stderr.count("\n") == 1
    assert {path: path.read_bytes() for path in (folder / "gpt2").iterdir()} == before


def test_export_cannot_replace_what_it_reads(folder):
    """权重是早期的 pytorch_model.bin，要写的 model.safetensors 还没有，旁边的 config.json 却是输入。"""
    source = folder / "early"
    shutil.copytree(folder / "gpt2", source)
    torch.save(safetensors.torch.load_file(source / "model.safetensors"), source / "pytorch_model.bin")
    (source / "model.safetensors").unlink()
    before = {path: path.read_bytes() for path in source.iterdir()}
    result = run("export_hf.py", "--model_path", "early", "--output", "early", cwd=folder)
    assert result.code == 2 and "同时是输入文件" in result.stderr and result.stderr.count("\n") == 1, result.stderr
    assert {path: path.read_bytes() for path in source.iterdir()} == before


@pytest.fixture
def half(folder):
    """同样的模型，权重是 float16。"""
    target = folder / "half"
    shutil.copytree(folder / "gpt2", target, dirs_exist_ok=True)
    tensors = safetensors.torch.load_file(folder / "gpt2" / "model.safetensors")
    halves = {name: tensor.half() for name, tensor in tensors.items()}
    safetensors.torch.save_file(halves, target / "model.safetensors")
    return target


def test_half_precision_weights_are_trained_in_full_precision(folder, half):
    results = [pretrain(folder, "--init_from", half, "--model_path", "tuned.pth")]
    for program, data in list(DATA.items())[1:]:
        flags = ("--data_path", data, "--output_path", f"{program}.pth", "--epochs", 1)
        results.append(run(program, "--init_from", half, *flags, cwd=folder))
    assert all(result.code == 0 for result in results), results
    for name in ("tuned.pth", *(f"{program}.pth" for program in list(DATA)[1:])):
        assert {tensor.dtype for tensor in read_model_file(folder / name).weights.values()} == {torch.float32}


def test_both_fine_tunings_start_from_it(folder):
    for program, data in list(DATA.items())[1:]:
        flags = ("--init_from", "gpt2", "--data_path", data, "--output_path", "tuned.pth", "--epochs", 1)
        result = run(program, *flags, cwd=folder)
        assert result.code == 0, result.stderr
        assert read_model_file(folder / "tuned.pth").config["emb_dim"] == 32
