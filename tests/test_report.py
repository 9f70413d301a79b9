"""utils/report.py：训练前后对用户说的话，尤其是最后那行的算术。"""

import json
import math
import re
from pathlib import Path

import pytest
import torch

from conftest import make_corpus, tiny_config
from model.language_model import LanguageModel
from utils import report
from utils.budget import Budget
from utils.corpus import Corpus
from utils.optimizers import build_optimizers
from utils.run_files import Kept, RunFiles
from utils.settings import TrainingSettings
from utils.train_utils import Trainer, calc_loss_loader

# 没有一次合并的词表：一个 token 就是一个字节。“悟a”是 2 个字、4 个字节，任何连续的 16 个字节都恰有 8 个字的开头
BYTES_ONLY = {"type": "bpe", "vocab_size": 257}
TEXT = "悟a" * 400  # 训练 720 字 1,440 字节，验证 80 字 160 字节
GPT2_TEXT = "Monkey went west. " * 100


@pytest.fixture(autouse=True)
def _in_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def corpus_of(text: str = TEXT, spec: dict = BYTES_ONLY) -> Corpus:
    return make_corpus(text, spec, Path("西游.txt"))


def make_trainer(corpus: Corpus, **settings) -> Trainer:
    settings = TrainingSettings(**{"batch_size": 4, "eval_freq": 10, **settings})
    model = LanguageModel(tiny_config(vocab_size=max(300, corpus.tokenizer.vocab_size)))
    model.tokenizer_state = corpus.tokenizer.state()
    loaders = corpus.create_loaders(16, settings)
    return Trainer(model, build_optimizers(model, settings), *loaders, settings)


def result_lines(trainer: Trainer, corpus: Corpus, kept: Kept, files: RunFiles, capsys) -> list[str]:
    files.kept = kept
    report.print_result(trainer, corpus, files)
    return capsys.readouterr().out.splitlines()


def test_start_names_the_device_the_model_the_vocabulary_and_the_corpus(capsys):
    corpus = corpus_of()
    report.print_start(make_trainer(corpus), corpus, Path("tiny.json"), torch.bfloat16)
    device, model, vocabulary, data = capsys.readouterr().out.splitlines()
    assert re.fullmatch(r"设备：(cpu（\d+ 线程）|cuda（.+）|mps)，精度 bfloat16", device)
    assert model == "模型：tiny.json，35,584 个参数，上下文 16 个 token"
    assert vocabulary.startswith("词表：自己训练的词表，257 个 token，平均每个 token 0.50 字（GPT-2 词表约 ")
    assert data == "语料：西游.txt，训练 720 字（1,440 token），验证 80 字（160 token）"


def test_start_compares_with_the_gpt2_vocabulary_or_names_it(capsys):
    text = "a" * 3000  # 与 GPT-2 的词表相比的是训练部分
    corpus = corpus_of(text)
    report.print_start(make_trainer(corpus), corpus, Path("a"), torch.float32)
    gpt2 = len(corpus.excerpt) / len(report.load_gpt2_tokenizer().encode(corpus.excerpt))
    assert f"平均每个 token 1.00 字（GPT-2 词表约 {gpt2:.2f}）" in capsys.readouterr().out
    corpus = corpus_of(GPT2_TEXT, {"type": "gpt2"})
    report.print_start(make_trainer(corpus), corpus, Path("a"), torch.float32)
    assert re.search(r"词表：GPT-2 词表，50,257 个 token，平均每个 token \d\.\d\d 字\n", capsys.readouterr().out)


def test_stride_longer_than_the_context_says_what_is_skipped(capsys):
    corpus = corpus_of()
    for stride, said in (
        (16, ""),
        (160, "提示：--stride 160 大于上下文长度 16，窗口之间的跳过，每轮只训练到 8.9%\n"),  # 8 个窗口，1,440 个 token
    ):
        report.print_start(make_trainer(corpus, stride=stride), corpus, Path("a"), torch.float32)
        assert capsys.readouterr().err == said


def plan_of(capsys, budget: Budget, **settings) -> list[str]:
    report.print_plan(make_trainer(corpus_of(), **settings), budget)
    return capsys.readouterr().out.splitlines()


def test_plan_tells_steps_epochs_speed_and_time(capsys):
    # 1,440 个 token 是 89 个窗口，每批 4 个，一轮 23 步；每步 64 个 token
    lines = plan_of(capsys, Budget(max_steps=46, seconds_per_step=0.5))
    # 评估看 9 + 9 个样本，前向每个 0.5 / 4 / 3 秒，即一次 0.75 秒，共 2 + 4 次
    assert lines == ["训练：2 轮共 46 步，每步 0.5 秒（128 token/s），预计 28 秒"]


def test_plan_of_no_time_at_all(capsys):
    (line,) = plan_of(capsys, Budget(max_steps=1, seconds_per_step=0.01))
    assert line.endswith("，预计不到 1 秒")


def test_plan_counts_accumulated_batches(capsys):
    (line,) = plan_of(capsys, Budget(max_steps=12, seconds_per_step=1.0), accumulation_steps=2)
    assert line.startswith("训练：1 轮共 12 步，每步 1 秒（128 token/s）")


def test_plan_says_when_the_time_limit_comes_first(capsys):
    (line,) = plan_of(capsys, Budget(max_steps=4610, seconds_per_step=0.5), max_minutes=2.0)
    assert line.endswith("，2 分 0 秒后停止（跑完要 44 分 12 秒）")  # 2305 + 463 × 0.75 秒
    (line,) = plan_of(capsys, Budget(max_steps=46, seconds_per_step=0.5), max_minutes=2.0)
    assert line.endswith("，预计 28 秒")


def test_warmup_as_long_as_the_training_is_hinted(capsys):
    for budget, warmup_steps, steps in (
        (Budget(max_steps=46, seconds_per_step=0.1), 45, None),
        (Budget(max_steps=46, seconds_per_step=0.1), 46, 46),
        (Budget(max_steps=46, max_seconds=2.0, seconds_per_step=0.1), 20, 20),
    ):
        report.print_plan(make_trainer(corpus_of(), warmup_steps=warmup_steps), budget)
        hint = f"提示：--warmup_steps {warmup_steps} 不少于要走的 {steps} 步，学习率升不到最大\n"
        assert capsys.readouterr().err == (hint if steps else "")


def test_only_a_long_plan_recommends_the_small_configuration(capsys):
    lines = plan_of(capsys, Budget(max_steps=100_000, seconds_per_step=1.0))
    assert lines[1] == f"想几分钟就看到结果，可以换小模型（如 {report.QUICK_CONFIG} 的），或用 --max_minutes 限定时间"
    assert Path(report.__file__).parent.parent.joinpath(report.QUICK_CONFIG).exists()
    assert len(plan_of(capsys, Budget(max_steps=100_000, seconds_per_step=1.0), max_minutes=59.0)) == 1
    assert len(plan_of(capsys, Budget(max_steps=3000, seconds_per_step=1.0))) == 1


@pytest.mark.parametrize(("keep", "name", "which"), [("best", "Best", "验证损失最低的"), ("last", "Last", "最后的")])
def test_best_line_converts_nats_per_token_by_hand(tmp_path, capsys, keep, name, which):
    """每个 token 2 nat，一个字平均两个 token：4 nat/字；一个 token 一个字节：2 / ln 2 = 2.885 bit/字节。"""
    corpus = corpus_of()
    trainer, files = make_trainer(corpus, keep=keep), RunFiles(tmp_path / "m.pth")
    trainer.step = 7
    lines = result_lines(trainer, corpus, Kept(7, 2.0), files, capsys)
    best, sample, *_, saved, invitation = lines  # 样文里可能有换行
    assert best == f"{name} validate loss 2.000 (Step 000007), 4.000 nats/char, 2.885 bits/byte"
    result = json.loads(files.result.read_bytes())  # 同样的数，不取整
    assert result == {
        "step": 7,
        "validate_loss": 2.0,
        "nats_per_char": 4.0,
        "bits_per_byte": pytest.approx(2 / math.log(2)),
    }
    assert sample.startswith("样文：悟a悟a悟a悟a")
    assert (
        saved
        == f"{which}权重（第 7 步）：{files.model}；损失曲线：{files.curve}；报告：{files.report}；日志：{files.log}"
    )
    assert invitation.startswith(f"现在可以让它续写：python generate.py --model_path {files.model} ")


def test_partial_evaluation_is_replaced_by_the_whole_validation_part(tmp_path, capsys):
    corpus = corpus_of(TEXT * 3)
    trainer = make_trainer(corpus, batch_size=1, eval_iter=1)  # 每次只看 16 个，验证部分有 29 个窗口
    whole = calc_loss_loader(trainer.model, trainer.validate_loader)
    line = result_lines(trainer, corpus, Kept(0, 123.0), RunFiles(tmp_path / "m.pth"), capsys)[0]
    expected = f"{whole:.3f} (Step 000000), {2 * whole:.3f} nats/char, {whole / math.log(2):.3f} bits/byte"
    assert line == f"Best validate loss {expected}"


def test_weights_saved_by_an_interruption_are_evaluated_at_the_end(tmp_path, capsys):
    trainer = make_trainer(corpus := corpus_of())
    whole = calc_loss_loader(trainer.model, trainer.validate_loader)
    line = result_lines(trainer, corpus, Kept(0, None), RunFiles(tmp_path / "m.pth"), capsys)[0]
    assert line.startswith(f"Best validate loss {whole:.3f} ")


def test_result_speaks_of_the_saved_weights_not_of_those_in_memory(tmp_path, capsys):
    corpus = corpus_of(TEXT * 3)
    trainer, files = make_trainer(corpus, eval_iter=1, batch_size=2), RunFiles(tmp_path / "m.pth")
    files.save_model(trainer, 1.0)
    best = {name: value.clone() for name, value in trainer.model.named_parameters()}
    loss = calc_loss_loader(trainer.model, trainer.validate_loader)
    with torch.no_grad():
        trainer.model.tok_emb.weight.mul_(30)  # 后来训坏了
    trainer.step = 9
    assert calc_loss_loader(trainer.model, trainer.validate_loader) > loss + 0.1
    line = result_lines(trainer, corpus, Kept(3, 1.0), files, capsys)[0]
    assert line.startswith(f"Best validate loss {loss:.3f} (Step 000003)")
    assert all(torch.equal(value, best[name]) for name, value in trainer.model.named_parameters())


def test_sample_starts_with_the_prompt_and_depends_only_on_the_seed():
    corpus = corpus_of()
    model = make_trainer(corpus).model.train()
    first = report.sample(model, corpus, "师父", 1)
    torch.rand(5)
    before = torch.get_rng_state()
    assert report.sample(model, corpus, "师父", 1) == first and first.startswith("师父")
    assert report.sample(model, corpus, "师父", 2) != first
    assert torch.equal(torch.get_rng_state(), before) and model.training
