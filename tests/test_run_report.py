"""utils/run_report.py、run_page.py、run_history.py：网页上的数与日志相同，各部分都在，转义，不改变训练，花的时间有数。"""

import json
import re
import shlex
import signal
import sys
from dataclasses import asdict, replace
from html.parser import HTMLParser
from types import SimpleNamespace

import pytest
import torch
from builders import after_step, before_step, filled, start
from builders import make_short_trainer as make_trainer

from conftest import report_data, timeless_report
from utils import run_report
from utils.budget import Budget
from utils.checkpoint import read_checkpoint
from utils.checkpoint_files import list_checkpoints
from utils.cli import command_line
from utils.errors import RunError, Terminated
from utils.gradient_norms import clip_gradients, norms_by_part
from utils.run_history import Observation, RunHistory, Sample
from utils.run_page import PageData, chart_data, format_clock, render_page, script_json
from utils.run_report import RunStory
from utils.train_utils import Evaluation, NotFiniteError
from utils.training_run import TrainingRun

NASTY = "</script><script>alert('&\"')</script><!-- \u2028 \ud800 $title ${x}"


class Tags(HTMLParser):
    """数出打开了哪些标签，收集看得见的文字。"""

    def __init__(self, html: str):
        super().__init__()
        self.opened, self.links, self.text = [], [], []
        self.feed(html)

    def handle_starttag(self, tag, attributes):
        self.opened.append(tag)
        self.links += [value for name, value in attributes if name in ("src", "href")]

    def handle_data(self, data):
        self.text.append(data)


def run_with_report(tmp_path, steps: int = 6, story: RunStory | None = None, **settings) -> TrainingRun:
    run = start(make_trainer(**settings), tmp_path / "m.pth", Budget(max_steps=steps, seconds_per_step=0.01))
    run.report.story = story or run.report.story
    run.run()
    return run


def page_of(tmp_path) -> str:
    return (tmp_path / "m.pth.report.html").read_text(encoding="utf-8")


def make_page(**changes) -> PageData:
    records = [Evaluation(1, 0, 0, 0.5, 0.0, 9.0, 9.1), Evaluation(1, 4, 256, 100.0, 0.01, 4.0, 4.5)]
    observations = [
        Observation(0, None, 10**8, {}, []),
        Observation(4, 2.5, 2 * 10**8, {"嵌入": 0.5}, [Sample("悟空", "道：大圣来也", copied=[[1, 4]])]),
    ]
    values = {"facts": {"语料": "西游.txt"}, "model": {"emb_dim": 32}, "settings": {"seed": 123, "max_minutes": None}}
    environment = {"environment": {"设备": "cpu"}, "fingerprints": {"数据": "abc"}}
    history = RunHistory(["python pretrain.py"], observations, steps=filled(4))
    known = {"title": "报告", "status": "训练完成", "records": records, "result": {}, "num_samples": 12}
    page = PageData(**known, history=history, **values, **environment)
    return replace(page, **changes)


def test_charts_hold_exactly_what_the_log_says(tmp_path):
    run_with_report(tmp_path)
    log = [json.loads(line) for line in (tmp_path / "m.pth.log.jsonl").read_text(encoding="utf-8").splitlines()]
    data = report_data(tmp_path / "m.pth")
    assert data["axes"] == {
        axis: [record[name] for record in log]
        for axis, name in (("token", "tokens"), ("时间", "seconds"), ("步", "step"))
    }
    charts = {chart["title"]: chart["lines"] for chart in data["charts"]}
    assert charts["损失"] == {"验证": [record["validate_loss"] for record in log]}
    assert list(charts["各部分的梯度范数"]) == ["嵌入", "第 1 层", "第 2 层", "输出"]
    assert data["best"] == min(range(len(log)), key=lambda index: log[index]["validate_loss"])
    speeds, memory = charts["速度"]["速度"], charts["内存"]["内存"]
    assert speeds[0] is None and all(speed > 0 for speed in speeds[1:]) and all(10 < value < 10**5 for value in memory)


def steps_of(data: dict, title: str) -> dict:
    """逐步画的线。"""
    return next(chart["steps"] for chart in data["charts"] if chart["title"] == title)


@pytest.mark.parametrize("eval_freq", [2, 1000])
def test_loss_and_learning_rate_are_those_of_every_step(tmp_path, eval_freq):
    """评估再少，画的也是真正用过的学习率和每一步的损失。"""
    trainer, rates, losses = make_trainer(eval_freq=eval_freq, warmup_steps=3), [], []
    trainer.optimizers[0].register_step_pre_hook(lambda optimizer, *_: rates.append(optimizer.param_groups[0]["lr"]))
    train_step = trainer._train_step
    trainer._train_step = lambda *args: losses.append(train_step(*args)) or losses[-1]
    start(trainer, tmp_path / "m.pth", Budget(max_steps=12)).run()
    data = report_data(tmp_path / "m.pth")
    assert data["steps"]["步"] == list(range(1, 13)) and data["steps"]["token"] == [64 * k for k in range(1, 13)]
    assert steps_of(data, "学习率")["学习率"] == pytest.approx(rates, rel=1e-4)
    assert max(rates) == rates[2] or rates.index(max(rates)) == 3  # 升到头，再降
    assert steps_of(data, "损失")["每一步"] == pytest.approx(losses, rel=1e-4)
    assert len(steps_of(data, "损失")["训练"]) == 12
    assert data["at"] == [step - 1 for step in data["axes"]["步"]]  # 第 0 步还没有走，是 -1


def test_page_of_a_very_long_run_stays_small():
    history = RunHistory(["python"], [], steps=filled(30_000))
    assert len(render_page(make_page(history=history))) < 200_000


def test_page_has_every_part_and_needs_no_network(tmp_path):
    run_with_report(tmp_path)
    page = page_of(tmp_path)
    tags = Tags(page)
    assert tags.links == ["data:,"] and "http" not in page.replace("http://www.w3.org/2000/svg", "").replace(
        "http-equiv", ""
    )
    text = "".join(tags.text)
    for part in (
        "曲线",
        "样文",
        "数据",
        "重复这次训练",
        "配置",
        "模型",
        "训练",
        "环境",
        "日志",
        "处理器",
        "数据指纹",
        "grad_clip",
    ):
        assert part in text, part
    assert "prefers-color-scheme: dark" in page and 'name="viewport"' in page
    assert page.endswith("</html>\n") and len(page) < 100_000


def test_everything_is_escaped():
    sample = Sample(NASTY, NASTY, NASTY, copied=[[0, 9]])
    observation = Observation(0, None, 0, {NASTY: 1.0}, [sample])
    page = make_page(
        title=NASTY,
        status=NASTY,
        facts={NASTY: NASTY},
        model={NASTY: NASTY},
        environment={NASTY: NASTY},
        history=RunHistory([NASTY], [observation]),
    )
    html = render_page(page).decode("utf-8")
    plain = render_page(make_page()).decode("utf-8")
    assert Tags(html).opened.count("script") == Tags(plain).opened.count("script") == 2
    assert "alert('" not in html.replace("alert('&\\\"", "") and "$title" in html  # 替换过的不再替换
    data = re.search(r'type="application/json">(.*?)</script>', html)[1]
    assert NASTY in next(chart for chart in json.loads(data)["charts"] if "梯度" in chart["title"])["lines"]


def test_loss_of_a_classifier_is_per_text_not_per_token():
    record = Evaluation(1, 0, 0, 0.5, 0.0, 0.7, 0.6)
    assert "nat/token，" in render_page(make_page(records=[record])).decode()
    page = make_page(records=[replace(record, train_accuracy=0.5, validate_accuracy=0.6)])
    html = render_page(page).decode()
    assert "nat/token" not in html and html.count("nat/条，第 0 步") == 2 and "评估看 12 个样本" in html
    assert chart_data(page.records, RunHistory())["charts"][0]["unit"].startswith("nat/条；浅色是每一步")


def test_result_replaces_what_the_evaluations_saw():
    result = {"step": 4, "validate_loss": 4.9761, "nats_per_char": 4.8683, "bits_per_byte": 2.3712}
    cards = re.findall("<dt>(.*?)</dt><dd>(.*?)</dd><p>(.*?)</p>", render_page(make_page(result=result)).decode())
    assert cards[0] == ("验证损失", "4.976", "nat/token，整个验证部分，第 4 步的权重")
    assert [value for _, value, _ in cards[1:3]] == ["4.868", "2.371"]
    assert "4.500" not in str(cards) and "最低的验证损失" not in str(cards)
    assert "4.500" in re.search("<dl.*?</dl>", render_page(make_page()).decode())[0]  # 还没有练完


def test_result_written_after_training_reaches_the_page(tmp_path):
    run = run_with_report(tmp_path)
    assert "整个验证部分" not in page_of(tmp_path)
    run.files.write_result(validate_loss=1.2345)
    assert "<dd>1.234</dd>" in page_of(tmp_path) or "<dd>1.235</dd>" in page_of(tmp_path)
    assert '<p class="status">训练完成</p>' in page_of(tmp_path)


def test_script_cannot_be_closed_from_inside():
    assert script_json({"a": "</script>"}) == '{"a": "\\u003c/script>"}'
    with pytest.raises(ValueError):
        script_json(float("nan"))  # 浏览器读不了


def test_copied_pieces_are_marked_and_counted():
    html = render_page(make_page()).decode("utf-8")
    assert "<span class=prompt>悟空</span>道<mark>：大圣</mark>来也<footer>原文照抄率 50.0%</footer>" in html


def test_commands_are_quoted_so_that_a_shell_reads_them_back(monkeypatch):
    monkeypatch.setattr(sys, "platform", "linux")
    arguments = ["pretrain.py", "--data_path", "我的 文章.txt", "--sample_prompt", 'it\'s $HOME `x` "y"\n']
    assert shlex.split(command_line(arguments)) == ["python", *arguments]
    monkeypatch.setattr(sys, "platform", "win32")
    assert command_line(arguments[:3]) == 'python pretrain.py --data_path "我的 文章.txt"'


def test_time_limited_run_is_said_not_to_repeat_exactly():
    note = "不会逐位相同"
    assert note not in render_page(make_page()).decode()
    assert note in render_page(make_page(settings={"max_minutes": 2.0})).decode()


@pytest.mark.parametrize(("seconds", "text"), [(0.4, "0:00:00"), (200, "0:03:20"), (3600 * 30 + 1, "30:00:01")])
def test_clock(seconds, text):
    assert format_clock(seconds) == text


@pytest.mark.parametrize("width", [360, 1280])
def test_page_works_in_a_browser(page, tmp_path, width):
    """读数、选横轴、按左键、移动鼠标之后各是什么样子。"""
    (tmp_path / "page.html").write_bytes(render_page(make_page()))
    page.set_viewport_size({"width": width, "height": 900})
    page.goto((tmp_path / "page.html").as_uri())
    legend, plots = page.locator(".legend").first, page.locator("#charts svg")
    last_tick = plots.first.locator("text").last
    first, last = "第 0 步每一步—训练—验证9.1", "第 4 步，验证最低每一步250训练291.7验证4.5"
    assert (plots.locator("path").count(), legend.text_content(), last_tick.text_content()) == (7, last, "token")
    page.get_by_role("button", name="时间").click()
    assert last_tick.text_content() == "时间"
    plots.nth(1).press("ArrowLeft")
    assert legend.text_content() == first
    box = plots.nth(1).bounding_box()
    page.mouse.move(box["x"] + box["width"] - 1, box["y"] + box["height"] / 2)
    assert legend.text_content() == last
    assert page.evaluate("document.documentElement.scrollWidth") <= width


# ---- 样文 ----


def story_of(samples: list[Sample], tokens: int = 0) -> RunStory:
    return RunStory("训练", {}, lambda: samples, tokens)


def test_samples_are_spread_over_the_run_within_their_budget(tmp_path, monkeypatch):
    """一百步，每步一秒，写一次样文 0.1 秒：至多用 0.5 秒，起初、途中、最后都有。"""
    now = [1000.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    trainer, calls = make_trainer(eval_freq=5), []
    train_step = trainer._train_step

    def slow_step(batches, progress):
        now[0] += 1.0
        return train_step(batches, progress)

    def write() -> list[Sample]:
        now[0] += 0.1
        calls.append(trainer.step)
        return [Sample("悟空", f"第 {trainer.step} 步写的")]

    trainer._train_step = slow_step
    run = start(trainer, tmp_path / "m.pth", Budget(max_steps=100, seconds_per_step=1.0))
    run.report.story = RunStory("训练", {}, write, sample_tokens=1)
    run.run()
    assert (calls[0], calls[-1]) == (0, 100) and calls[1] <= 25 and 5 <= len(calls) <= 6  # 最后一次不计
    assert all(later - earlier >= 10 for earlier, later in zip(calls[:-1], calls[1:], strict=True))
    assert re.findall(r"第 (\d+) 步写的", page_of(tmp_path)) == list(map(str, calls))


def test_expensive_samples_are_left_to_the_end(tmp_path):
    run = run_with_report(tmp_path, story=story_of([Sample("悟空", "道")], tokens=10**9))
    assert [bool(item.samples) for item in run.report.history.observations] == [False, False, False, True]


def test_short_training_without_samples_says_so():
    history = RunHistory(["python"], [])
    assert "没有写样文" in render_page(make_page(history=history)).decode()


# ---- 不改变训练，随时完整 ----


def test_training_is_not_changed_by_being_watched(tmp_path, monkeypatch):
    def losses_of(folder, story: RunStory | None) -> list[str]:
        folder.mkdir()
        torch.manual_seed(3)
        run = run_with_report(folder, story=story, eval_freq=1)
        assert run.trainer.model.training
        return [record.train_loss.hex() for record in run.files.records]

    monkeypatch.setattr(run_report, "SAMPLING_FRACTION", 10**9)
    calls = []

    def write() -> list[Sample]:
        calls.append(torch.rand(1, generator=torch.Generator().manual_seed(1)))
        return [Sample("悟空", "道")]

    watched = RunStory("训练", {}, write)
    assert losses_of(tmp_path / "a", None) == losses_of(tmp_path / "b", watched)
    assert len(calls) > 3


@pytest.mark.parametrize("limit", [0.01, 10.0**9])
def test_clipping_equals_that_of_torch_bit_for_bit(limit):
    trainer = make_trainer()
    for model in (trainer.model,):
        model(torch.randint(0, 300, (4, 16))).square().mean().backward()
    before = {name: parameter.grad.clone() for name, parameter in trainer.model.named_parameters()}
    total, norms = clip_gradients(trainer.model, limit)
    ours = [parameter.grad.clone() for parameter in trainer.model.parameters()]
    for name, parameter in trainer.model.named_parameters():
        parameter.grad = before[name].clone()
    assert torch.nn.utils.clip_grad_norm_(trainer.model.parameters(), limit).item() == total
    assert all(torch.equal(a, p.grad) for a, p in zip(ours, trainer.model.parameters(), strict=True))
    assert norms.keys() == before.keys()
    parts = norms_by_part(norms)
    assert sum(norm**2 for norm in parts.values()) ** 0.5 == pytest.approx(total, rel=1e-5)
    block = [gradient for name, gradient in before.items() if name.startswith("trf_blocks.1.")]
    assert parts["第 2 层"] == pytest.approx(torch.cat([g.flatten() for g in block]).norm().item(), rel=1e-5)


def test_writing_obeys_its_budget_but_the_last_page_is_always_written(tmp_path, monkeypatch):
    monkeypatch.setattr(run_report, "WRITING_FRACTION", 0.0)
    written, render = [], run_report.render_page
    monkeypatch.setattr(run_report, "render_page", lambda page: written.append(page.status) or render(page))
    run_with_report(tmp_path)
    assert written == ["训练到第 0 步", "训练完成"]  # 第一页总要写，往后才知道要多久


def resume(tmp_path, trainer) -> TrainingRun:
    run = start(trainer, tmp_path / "m.pth", Budget(max_steps=8))
    run.prepare(is_resuming=True)
    run.run()
    return run


@pytest.mark.parametrize("step", [3, 4, 5])
def test_interrupted_and_resumed_report_equals_the_uninterrupted_one(tmp_path, monkeypatch, step):
    torch.manual_seed(1)
    (tmp_path / "whole").mkdir()
    run_with_report(tmp_path / "whole", steps=8)
    torch.manual_seed(1)
    trainer = make_trainer()
    before_step(trainer, step, lambda: signal.raise_signal(signal.SIGTERM))
    monkeypatch.setattr(sys, "argv", ["pretrain.py"])
    with pytest.raises(Terminated):
        start(trainer, tmp_path / "m.pth", Budget(max_steps=8)).run()
    assert f"在第 {step} 步中断" in page_of(tmp_path)
    monkeypatch.setattr(sys, "argv", ["pretrain.py", "--resume"])
    torch.manual_seed(1)
    resume(tmp_path, make_trainer())
    assert timeless_report(tmp_path / "m.pth") == timeless_report(tmp_path / "whole" / "m.pth")
    assert "python pretrain.py\npython pretrain.py --resume</code>" in page_of(tmp_path)


def test_checkpoint_of_an_earlier_version_is_continued(tmp_path):
    """早期的检查点没有报告的素材：前面的梯度和速度空着，损失照样是全程。"""
    torch.manual_seed(1)
    trainer = make_trainer()
    before_step(trainer, 3, lambda: signal.raise_signal(signal.SIGTERM))
    with pytest.raises(Terminated):
        start(trainer, tmp_path / "m.pth", Budget(max_steps=8)).run()
    torch.manual_seed(1)
    run = start(make_trainer(), tmp_path / "m.pth", Budget(max_steps=8))
    load = run.checkpoints.load_newest
    run.checkpoints.load_newest = lambda: (load()[0], {**load()[1], "history": RunHistory()})
    run.prepare(is_resuming=True)
    run.run()
    data = report_data(tmp_path / "m.pth")
    lines = next(chart["lines"] for chart in data["charts"] if "梯度" in chart["title"])
    assert data["axes"]["步"] == [0, 2, 4, 6, 8] and [value is None for value in lines["嵌入"]] == [
        True,
        True,
        False,
        False,
        False,
    ]


def test_history_survives_the_checkpoint(tmp_path):
    run = run_with_report(tmp_path, story=story_of([Sample("悟空", "道", "曰", [[0, 1]])]))
    (path, *_) = list_checkpoints(run.checkpoints.folder)
    recorded = read_checkpoint(path)["history"]
    assert [asdict(item) for item in recorded.observations[:-1]] == [
        asdict(item) for item in run.report.history.observations[:-1]
    ]
    assert recorded.commands == run.report.history.commands


GOOD = RunHistory(["python"], [Observation(4, 2.5, 1, {"嵌入": 0.5}, [Sample("悟", "空", "", [[0, 1]])])]).state()


@pytest.mark.parametrize(
    "spoil",
    [
        lambda state: state.pop("commands"),
        lambda state: state.update(commands="python"),
        lambda state: state.update(more=1),
        lambda state: state["steps"].update(count=5),
        lambda state: state.update(sampling_seconds=float("nan")),
        lambda state: state["gradient_norms"].update(嵌入="1"),
        lambda state: state["observations"][0].update(memory_bytes=None),
        lambda state: state["observations"][0].update(tokens_per_second=float("inf")),
        lambda state: state["observations"][0]["samples"][0].update(copied=[[0, 2]]),
        lambda state: state["observations"][0]["samples"][0].update(copied=[[1, 0]]),
        lambda state: state["observations"][0]["samples"][0].update(text=5),
    ],
)
def test_damaged_history_is_refused(spoil):
    state = json.loads(json.dumps(GOOD))
    assert RunHistory.from_state(json.loads(json.dumps(GOOD))).state() == state
    spoil(state)
    with pytest.raises((ValueError, TypeError, LookupError)):
        RunHistory.from_state(state)


def test_gradient_norms_of_earlier_checkpoints_continue_the_same_lines():
    state = json.loads(json.dumps(GOOD))
    state["observations"][0]["gradient_norms"] = {"嵌入": 0.5, "第 1 块": 0.25}
    assert RunHistory.from_state(state).observations[0].gradient_norms == {"嵌入": 0.5, "第 1 层": 0.25}


def spoiled_run(tmp_path) -> TrainingRun:
    """第三步之后权重变成 nan。"""
    trainer = make_trainer(eval_freq=100)

    def spoil() -> None:
        with torch.no_grad():
            trainer.model.tok_emb.weight.fill_(torch.nan)

    after_step(trainer, 3, spoil)
    return start(trainer, tmp_path / "m.pth", Budget(max_steps=8))


def test_report_tells_why_the_training_stopped(tmp_path):
    with pytest.raises(NotFiniteError):
        spoiled_run(tmp_path).run()
    assert re.search(r'<p class="status">停下了：第 4 步损失为 nan，梯度范数为 nan', page_of(tmp_path))


def test_report_that_cannot_be_written_does_not_hide_the_real_error(tmp_path):
    run = spoiled_run(tmp_path)

    def fail(*_) -> None:
        raise RunError("m.pth.report.html", "写不进去", "腾出空间。")

    run.report.finish = fail
    with pytest.raises(NotFiniteError):
        run.run()


def test_memory_on_a_gpu_is_its_own(monkeypatch):
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: 123)
    assert run_report.memory_in_use(SimpleNamespace(device=torch.device("cuda"))) == 123
