"""utils/model_file.py：写出的模型文件谁都能读；读回之前先检查。"""

import hashlib
import random
import zipfile

import pytest
import torch

from conftest import tiny_config
from model.language_model import LanguageModel
from utils.errors import UserError
from utils.model_file import build_model, load_weights, read_model_file, save_model, tokenizer_of
from utils.text_utils import train_tokenizer


@pytest.fixture
def saved(tmp_path, corpus_text):
    model = LanguageModel(tiny_config())
    model.tokenizer_state = train_tokenizer(corpus_text, 300).state()
    path = tmp_path / "model.pth"
    save_model(path, model)
    return model, path


def same_weights(first, second) -> bool:
    return all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))


def test_file_is_a_plain_state_dict_anyone_can_load(saved):
    model, path = saved
    state = torch.load(path, weights_only=True)
    assert state["_extra_state"]["config"] == model.cfg.to_dict()
    again = LanguageModel(tiny_config())
    again.load_state_dict(state)
    assert same_weights(model, again) and again.tokenizer_state == model.tokenizer_state


def test_round_trip_with_description(saved, corpus_text):
    model, path = saved
    file = read_model_file(path)
    assert file.config == model.cfg.to_dict()
    again = LanguageModel(tiny_config())
    load_weights(again, file, "配置")
    assert same_weights(model, again)
    tokenizer = tokenizer_of(file, None)
    assert tokenizer.encode(corpus_text) == train_tokenizer(corpus_text, 300).encode(corpus_text)


@pytest.mark.parametrize("changes", [{}, {"tie_weights": False}, {"position": "rope"}])
def test_model_built_from_a_file_equals_the_saved_one(tmp_path, changes):
    model = LanguageModel(tiny_config(**changes)).eval()
    save_model(tmp_path / "model.pth", model)
    again = build_model(lambda: LanguageModel(model.cfg), read_model_file(tmp_path / "model.pth"), "配置").eval()
    assert same_weights(model, again) and not any(parameter.is_meta for parameter in again.parameters())
    assert (again.out_head.weight is again.tok_emb.weight) is model.cfg.tie_weights
    token_ids = torch.randint(0, 300, (1, 9))
    assert torch.equal(model(token_ids), again(token_ids))


def test_tied_matrix_is_stored_once(saved):
    model, path = saved
    numbers = sum(parameter.numel() for parameter in model.parameters())
    assert path.stat().st_size < numbers * 4 + 60_000


def test_weights_without_description_load_with_a_config(saved, tmp_path):
    model, _ = saved
    state = {name: value for name, value in model.state_dict().items() if name != "_extra_state"}
    torch.save(state, tmp_path / "plain.pth")
    file = read_model_file(tmp_path / "plain.pth")
    assert file.config is None and file.tokenizer is None
    again = LanguageModel(tiny_config())
    load_weights(again, file, "配置")
    assert same_weights(model, again)
    assert tokenizer_of(file, None).kind == "gpt2"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"emb_dim": 64}, "emb_dim 权重为 32，配置为 64"),
        ({"vocab_size": 400}, "vocab_size 权重为 300，配置为 400"),
        ({"context_length": 32}, "context_length 权重为 16，配置为 32"),
        ({"num_layers": 3}, "num_layers 权重为 2，配置为 3"),
        ({"hidden_dim": 64}, r"ff.layers.*在文件里是.*按配置应是"),
        ({"norm": "rms_norm"}, "norm.*在文件里是.*按配置应没有"),
    ],
)
def test_mismatch_names_the_field(saved, changes, message):
    with pytest.raises(UserError, match=message):
        load_weights(LanguageModel(tiny_config(**changes)), read_model_file(saved[1]), "x.json")


def test_untied_weights_are_not_silently_tied(tmp_path):
    untied = LanguageModel(tiny_config(tie_weights=False))
    save_model(tmp_path / "untied.pth", untied)
    with pytest.raises(UserError, match="tie_weights"):
        load_weights(LanguageModel(tiny_config()), read_model_file(tmp_path / "untied.pth"), "x.json")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_named(saved, value):
    model, path = saved
    with torch.no_grad():
        model.trf_blocks[1].norm2.weight[3] = value
    save_model(path, model)
    with pytest.raises(UserError, match="trf_blocks.1.norm2.weight"):
        read_model_file(path)


def test_flipped_bits_never_load_with_changed_weights(saved):
    model, path = saved
    whole, generator = path.read_bytes(), random.Random(0)
    for _ in range(300):
        damaged = bytearray(whole)
        damaged[generator.randrange(len(whole))] ^= 1 << generator.randrange(8)
        path.write_bytes(damaged)
        try:
            file = read_model_file(path)
            again = LanguageModel(tiny_config())
            load_weights(again, file, "x.json")
        except UserError:
            continue
        assert same_weights(model, again)


@pytest.mark.parametrize("fraction", [0, 0.001, 0.3, 0.9, 0.9999])
def test_truncated_files_are_refused(saved, fraction):
    path = saved[1]
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * fraction)])
    with pytest.raises(UserError, match="已损坏或不是模型文件"):
        read_model_file(path)


class Malicious:
    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return open, (str(self.target), "w")


@pytest.mark.parametrize("is_legacy", [True, False])
def test_code_in_a_pickle_is_not_executed(tmp_path, is_legacy):
    path, evidence = tmp_path / "evil.pth", tmp_path / "evidence"
    torch.save({"tok_emb.weight": Malicious(evidence)}, path, _use_new_zipfile_serialization=not is_legacy)
    with pytest.raises(UserError):
        read_model_file(path)
    assert not evidence.exists()


def test_compressed_archive_is_refused(saved, tmp_path):
    bomb = tmp_path / "bomb.pth"
    with zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", b"\0" * 50_000_000)
    with pytest.raises(UserError, match="已损坏或不是模型文件"):
        read_model_file(bomb)


def test_tensor_that_pretends_to_be_huge_is_refused(tmp_path):
    torch.save({"tok_emb.weight": torch.zeros(1).expand(10**12)}, tmp_path / "huge.pth")
    with pytest.raises(UserError, match="tok_emb.weight"):
        read_model_file(tmp_path / "huge.pth")


@pytest.mark.parametrize("content", [{}, [1, 2], {"a": 1}, {1: torch.ones(2)}, torch.ones(3)], ids=str)
def test_other_torch_files_are_refused(tmp_path, content):
    torch.save(content, tmp_path / "other.pth")
    with pytest.raises(UserError, match="已损坏或不是模型文件"):
        read_model_file(tmp_path / "other.pth")


def test_saving_the_same_model_gives_the_same_bytes(saved, tmp_path):
    model, path = saved
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    save_model(path, model)
    assert hashlib.sha256(path.read_bytes()).hexdigest() == digest
