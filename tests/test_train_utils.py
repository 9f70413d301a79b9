"""utils/train_utils.py：损失、评估、唯一的训练循环。"""

import math

import pytest
import torch
from builders import make_loaders, make_trainer
from builders import run_steps as run
from torch.nn import functional as F

from conftest import tiny_config
from model.language_model import LanguageModel
from utils.budget import Budget
from utils.cross_entropy import IGNORE_INDEX
from utils.errors import RunError
from utils.evaluation_set import evaluation_loader
from utils.settings import TrainingSettings
from utils.train_utils import (
    Interrupted,
    Trainer,
    calc_loss_batch,
    calc_loss_loader,
    evaluate_model,
    evaluating,
)


def weights_of(trainer: Trainer) -> list[torch.Tensor]:
    return [parameter.detach().clone() for parameter in trainer.model.parameters()]


def test_loss_equals_hand_computed_cross_entropy():
    model, inputs = LanguageModel(tiny_config()), torch.randint(0, 300, (2, 5))
    targets = torch.randint(0, 300, (2, 5))
    probabilities = model(inputs).softmax(dim=-1)
    picked = [-math.log(probabilities[b, t, targets[b, t]].item()) for b in range(2) for t in range(5)]
    assert calc_loss_batch(model, inputs, targets).item() == pytest.approx(sum(picked) / 10, abs=1e-5)


def test_ignored_positions_carry_no_loss_and_no_gradient():
    model, inputs = LanguageModel(tiny_config()), torch.randint(0, 300, (1, 6))
    targets = torch.tensor([[IGNORE_INDEX, 5, IGNORE_INDEX, 9, IGNORE_INDEX, IGNORE_INDEX]])
    expected = F.cross_entropy(model(inputs)[0, [1, 3]], torch.tensor([5, 9]))
    torch.testing.assert_close(calc_loss_batch(model, inputs, targets), expected)


def test_loader_loss_is_averaged_over_tokens_not_batches():
    model = LanguageModel(tiny_config())
    _, validate = make_loaders(batch_size=4)  # 7 个窗口：一批 4 个，一批 3 个
    batches = list(validate)
    inputs, targets = (torch.cat(parts) for parts in zip(*batches, strict=True))
    whole = calc_loss_batch(model.eval(), inputs, targets).item()
    assert calc_loss_loader(model, validate) == pytest.approx(whole, abs=1e-5)
    average_of_batches = sum(calc_loss_batch(model, *batch).item() for batch in batches) / 2
    assert calc_loss_loader(model, validate) != pytest.approx(average_of_batches, abs=1e-7)


def test_evaluating_turns_off_dropout_and_gradients_and_restores_the_mode():
    model = LanguageModel(tiny_config(drop_rate=0.5))
    for mode in (True, False):
        model.train(mode)
        with evaluating(model):
            assert not model.training and not torch.is_grad_enabled()
        assert model.training is mode
    with pytest.raises(ZeroDivisionError), evaluating(model.train()):
        raise ZeroDivisionError
    assert model.training


def test_evaluation_samples_are_spread_and_fixed():
    train, validate = make_loaders()
    sample = evaluation_loader(train, 10)
    starts = torch.cat([inputs for inputs, _ in sample])
    assert len(starts) == 10
    assert torch.equal(starts, torch.cat([inputs for inputs, _ in sample]))
    assert sample.dataset.indices == [0, 3, 6, 9, 12, 15, 18, 21, 24, 27]
    assert len(evaluation_loader(validate, 1000).dataset) == len(validate.dataset)


def test_same_seed_gives_bit_identical_losses_and_weights():
    runs = [make_trainer(drop_rate=0.2) for _ in range(2)]
    (first, records), (second, again) = (run(trainer, 12) for trainer in runs)
    assert [loss.hex() for loss in first] == [loss.hex() for loss in second]
    assert all(torch.equal(a, b) for a, b in zip(*map(weights_of, runs), strict=True))
    assert [record.validate_loss for record in records] == [record.validate_loss for record in again]


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_evaluation_changes_nothing_in_training(optimizer):
    often = TrainingSettings(batch_size=4, eval_freq=1, optimizer=optimizer)
    never = TrainingSettings(batch_size=4, eval_freq=1000, optimizer=optimizer)
    runs = [make_trainer(settings, drop_rate=0.2) for settings in (often, never)]
    first, second = (run(trainer, 10)[0] for trainer in runs)
    assert [loss.hex() for loss in first] == [loss.hex() for loss in second]
    assert all(torch.equal(a, b) for a, b in zip(*map(weights_of, runs), strict=True))


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_rehearsal_changes_nothing(optimizer):
    settings = TrainingSettings(batch_size=4, optimizer=optimizer)
    plain, rehearsed = (make_trainer(settings, drop_rate=0.2) for _ in range(2))
    assert rehearsed.rehearse() > 0
    first, second = run(plain, 6)[0], run(rehearsed, 6)[0]
    assert [loss.hex() for loss in first] == [loss.hex() for loss in second]


def test_rehearsal_keeps_the_random_state():
    trainer = make_trainer(drop_rate=0.2)
    before = torch.get_rng_state()
    trainer.rehearse()
    assert torch.equal(torch.get_rng_state(), before)


def test_accumulated_gradient_equals_one_big_batch():
    inputs, targets = torch.randint(0, 300, (2, 7, 16))
    targets[0, :9] = IGNORE_INDEX  # 各批计损失的 token 数不同，按 token 加权才相等
    big, small = make_trainer(), make_trainer()
    big_loss, _ = big._backward([(inputs, targets)])
    parts = list(zip(inputs.split([3, 3, 1]), targets.split([3, 3, 1]), strict=True))
    assert small._backward(parts)[0] == pytest.approx(big_loss, abs=1e-6)
    for a, b in zip(big.model.parameters(), small.model.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, atol=1e-6, rtol=1e-4)


def test_last_short_batch_and_short_group_are_used():
    settings = TrainingSettings(batch_size=4, accumulation_steps=3, eval_freq=1000)
    trainer = make_trainer(settings)  # 30 个窗口：7 批 4 个、1 批 2 个；3 批一组，共 3 步
    assert trainer.steps_per_epoch == 3
    run(trainer, 3)
    assert trainer.tokens == 30 * 16


def test_gradient_norm_is_clipped():
    seen = []
    trainer = make_trainer(TrainingSettings(batch_size=4, grad_clip=0.25))

    def measure(*_):
        seen.append(torch.nn.utils.get_total_norm([p.grad for p in trainer.model.parameters()]).item())

    trainer.optimizers[0].register_step_pre_hook(measure)
    run(trainer, 2)
    assert seen == pytest.approx([0.25, 0.25], rel=1e-4)
    before = sum(norm.item() ** 2 for norm in trainer.gradient_norms.values()) ** 0.5
    assert before > 0.25 and trainer.gradient_norms.keys() == dict(trainer.model.named_parameters()).keys()


def test_training_learns():
    _, records = run(make_trainer(TrainingSettings(batch_size=4, learning_rate=0.01, eval_freq=1000)), 120)
    assert records[0].step == 0 and records[-1].step == 120
    assert records[-1].train_loss < records[0].train_loss - 1.5


def test_evaluations_come_at_zero_every_eval_freq_and_the_end():
    _, records = run(make_trainer(), 12)
    assert [record.step for record in records] == [0, 5, 10, 12]
    assert [record.epoch for record in records] == [1, 1, 2, 2]  # 每轮 8 步


def test_stop_request_ends_before_the_next_step():
    trainer = make_trainer()
    trainer.on_step = lambda loss, progress: setattr(trainer, "stop_requested", trainer.step == 4)
    with pytest.raises(Interrupted):
        list(trainer.run(Budget(max_steps=100)))
    assert trainer.step == 4


def test_step_stopped_between_micro_batches_leaves_no_trace():
    """累积到一半停下：权重、梯度、随机状态、位置都像这一步没有开始过。"""
    trainer = make_trainer(TrainingSettings(batch_size=4, accumulation_steps=3), drop_rate=0.2)
    asked = iter(range(100))
    trainer.check_stop = lambda: (_ for _ in ()).throw(Interrupted) if next(asked) == 2 else None
    before, random_state = weights_of(trainer), torch.get_rng_state()
    with pytest.raises(Interrupted):
        trainer._train_step(next(trainer._grouped_batches()), 0.0)
    assert all(map(torch.equal, before, weights_of(trainer)))
    assert torch.equal(torch.get_rng_state(), random_state)
    assert all(parameter.grad is None for parameter in trainer.model.parameters())
    assert (trainer.step, trainer.tokens, trainer.samples_done) == (0, 0, 0)


def test_stop_is_asked_for_before_every_evaluation_batch():
    trainer = make_trainer()
    asked = []
    trainer.check_stop = lambda: asked.append(None)
    trainer.evaluate(Budget(max_steps=1))
    assert len(asked) == len(trainer.train_sample) + len(trainer.validate_sample) > 2


def test_deadline_ends_training_and_shapes_the_schedule(monkeypatch):
    now = [0.0]
    monkeypatch.setattr("utils.budget.time.monotonic", lambda: now[0])
    trainer = make_trainer()
    factors = []

    def tick(loss, progress):
        now[0] += 1.0
        factors.append(trainer.learning_rate / trainer.settings.learning_rate)

    trainer.on_step = tick
    list(trainer.run(Budget(max_steps=10_000, max_seconds=20.0)))
    assert trainer.step == 20
    assert factors[10] == pytest.approx(0.5) and factors[19] == pytest.approx(0.05)


def test_training_that_ends_with_an_epoch_is_still_in_that_epoch():
    _, records = run(make_trainer(), 16)  # 每轮 8 步
    assert (records[-1].step, records[-1].epoch) == (16, 2)


def test_loss_that_is_not_finite_stops_before_the_step():
    trainer = make_trainer()
    with torch.no_grad():
        trainer.model.tok_emb.weight[3, 0] = torch.nan
    before = weights_of(trainer)
    with pytest.raises(RunError, match="第 1 步.*损失为 nan") as error:
        trainer._train_step(next(trainer._grouped_batches()), 0.0)
    sampler = trainer.train_loader.sampler
    sampler.epoch, sampler.done = 1, 0
    first = 16 * next(iter(sampler))  # 这一批四个样本里的第一个在语料里的位置
    assert f"这一批从第 {first:,} 个 token 等 4 处取样" in str(error.value)
    assert "学习率 0.001" in str(error.value) and "梯度范数为 nan" in str(error.value)
    assert all(torch.equal(a.nan_to_num(9), b.nan_to_num(9)) for a, b in zip(before, weights_of(trainer), strict=True))


def test_evaluate_model_returns_both_losses():
    model = LanguageModel(tiny_config())
    train, validate = make_loaders()
    losses = evaluate_model(model, validate, train)
    assert losses == (calc_loss_loader(model, validate), calc_loss_loader(model, train))
