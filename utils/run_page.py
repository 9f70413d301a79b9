"""训练报告的网页：数据和模板拼成一个自足的 HTML 文件，不联网也能看。画图的是 report_page/ 里的脚本。"""

import json
from bisect import bisect_right
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from html import escape
from pathlib import Path
from string import Template
from typing import Any

from utils.evaluation_set import best_of
from utils.run_history import RunHistory, Sample
from utils.step_history import smooth
from utils.train_utils import Evaluation

FOLDER = Path(__file__).parent / "report_page"
AXES = {"token": "tokens", "时间": "seconds", "步": "step"}
BY_TIME = ("max_minutes",)  # 设了它，重复时步数可能不同


@dataclass(frozen=True)
class PageData:
    """网页上的全部内容。"""

    title: str
    status: str
    records: list[Evaluation]
    result: dict[str, Any]  # 练完之后测得的，见 RunFiles.write_result；还没有就是空的
    num_samples: int  # 每次评估看验证部分的几个样本
    history: RunHistory
    facts: dict[str, str]
    model: dict[str, Any]
    settings: dict[str, Any]
    environment: dict[str, Any]
    fingerprints: dict[str, str]


def render_page(page: PageData) -> bytes:
    """-> UTF-8 的 HTML；一切文字都经过转义。"""
    read = {path.name: path.read_text(encoding="utf-8") for path in FOLDER.iterdir()}
    html = Template(read["page.html"]).substitute(
        title=escape(page.title),
        status=escape(page.status),
        style=read["page.css"],
        script=read["charts.js"] + read["page.js"],
        summary=_summary(page),
        samples=_samples(page),
        facts=_table(page.facts),
        model=_table(page.model),
        settings=_table(page.settings),
        environment=_table({**page.environment, **{f"{key}指纹": value for key, value in page.fingerprints.items()}}),
        commands=_commands(page),
        log=_log(page.records),
        data=script_json(chart_data(page.records, page.history)),
    )
    return html.encode("utf-8", "replace")  # 命令行和样文里可能有孤立的代理字符


def script_json(value: Any) -> str:
    """放进 <script> 里的 JSON；< 写成 \\u003c，里面就不会出现 </script>。"""
    return json.dumps(value, allow_nan=False).replace("<", "\\u003c")


def chart_data(records: list[Evaluation], history: RunHistory) -> dict:
    """{axes: {名字: 各次评估的横坐标}, steps: {名字: 逐步的横坐标}, best: 验证损失最低的是第几次, charts: [图]}

    图里 lines 的各条线与 axes 一一对应，steps 的与 steps 一一对应；at 是各次评估时走到了 steps 的第几个点。
    """
    seen = {observation.step: observation for observation in history.observations}
    watched = [seen.get(record.step) for record in records]

    def column(name: str) -> list:
        return [getattr(record, name) for record in records]

    def observed(name: str, scale: float = 1.0) -> list:
        values = [getattr(item, name) if item else None for item in watched]
        return [value if value is None else value * scale for value in values]

    parts = list(dict.fromkeys(part for item in history.observations for part in item.gradient_norms))
    norms = {part: [item.gradient_norms.get(part) if item else None for item in watched] for part in parts}
    every = history.steps.column("loss")
    training = {"每一步": _rounded(every), "训练": _rounded(smooth(every))}
    pale = "每一步" if history.steps.width == 1 else f"每 {history.steps.width} 步的平均"
    unit = f"{loss_unit(records)}；浅色是{pale}，深色是它平滑之后的"
    charts = [_chart("损失", unit, {"验证": column("validate_loss")}, training)]
    if records and records[0].validate_accuracy is not None:
        accuracies = {"训练": column("train_accuracy"), "验证": column("validate_accuracy")}
        charts.append(_chart("准确率", "", accuracies, form="percent"))
    charts += [
        _chart("学习率", "", {}, {"学习率": _rounded(history.steps.column("learning_rate"))}),
        _chart("各部分的梯度范数", "裁剪之前，对数刻度", norms, form="log"),
        _chart("速度", "token/s，评估不算", {"速度": observed("tokens_per_second")}),
        _chart("内存", "MB", {"内存": observed("memory_bytes", 1e-6)}),
    ]
    axes, steps = ({axis: of(name) for axis, name in AXES.items()} for of in (column, history.steps.column))
    at = [bisect_right(steps["步"], record.step) - 1 for record in records]
    best = records.index(best_of(records))
    return {"axes": axes, "steps": steps, "at": at, "best": best, "charts": charts}


def _rounded(values: list[float]) -> list[float]:
    """五位有效数字，画图足够，网页小一半。"""
    return [float(f"{value:.5g}") for value in values]


def loss_unit(records: list[Evaluation]) -> str:
    """分类的损失一条算一次，有准确率；别的一个 token 算一次。"""
    return "nat/token" if not records or records[0].validate_accuracy is None else "nat/条"


def _chart(title: str, unit: str, lines: dict[str, list], steps: dict | None = None, form: str = "linear") -> dict:
    return {"title": title, "unit": unit, "lines": lines, "steps": steps or {}, "form": form}


def _summary(page: PageData) -> str:
    """最要紧的几个数。"""
    last = page.records[-1]
    cards = {
        **(_result_cards(page.result) or _evaluation_cards(page)),
        "训练过": (f"{last.tokens:,}", f"token，{last.epoch} 轮"),
        "用时": (format_clock(last.seconds), "时:分:秒，中断的不算"),
    }
    return "".join(
        f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd><p>{escape(note)}</p></div>"
        for name, (value, note) in cards.items()
    )


def _result_cards(result: dict[str, Any]) -> dict[str, tuple[str, str]]:
    """练完之后测得的，与屏幕上最后说的是同样的数。"""
    which = f"第 {result.get('step', 0):,} 步的权重"
    forms = {
        "validate_loss": ("验证损失", ".3f", f"nat/token，整个验证部分，{which}"),
        "nats_per_char": ("折合每个字", ".3f", "nat/字（nats/char），换了词表也能比"),
        "bits_per_byte": ("折合每个字节", ".3f", "bit/字节（bits/byte）"),
        "test_accuracy": ("测试准确率", ".2%", which),
        "exact_match_before": ("微调之前完全答对", ".1%", "整个留出部分"),
        "exact_match": ("完全答对", ".1%", f"整个留出部分，{which}"),
    }
    return {name: (format(result[key], form), note) for key, (name, form, note) in forms.items() if key in result}


def _evaluation_cards(page: PageData) -> dict[str, tuple[str, str]]:
    """还没有练完：各次评估里最好的和最后的。"""
    last, best = page.records[-1], best_of(page.records)
    unit, sample = loss_unit(page.records), f"评估看 {page.num_samples:,} 个样本"
    cards = {
        "最低的验证损失": (f"{best.validate_loss:.3f}", f"{unit}，第 {best.step:,} 步，{sample}"),
        "最后的训练损失": (f"{last.train_loss:.3f}", f"{unit}，第 {last.step:,} 步，{sample}"),
    }
    if last.validate_accuracy is not None:
        cards["验证准确率"] = (f"{last.validate_accuracy:.1%}", f"第 {last.step:,} 步")
    return cards


def format_clock(seconds: float) -> str:
    """如 0:03:20。"""
    minutes, seconds = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{seconds:02d}"


def _samples(page: PageData) -> str:
    """写过样文的每一步一条，从早到晚。"""
    losses = {record.step: record.validate_loss for record in page.records}
    items = [
        f"<li><h3>第 {item.step:,} 步<small>这次评估的验证损失 {losses[item.step]:.3f}</small></h3>"
        f"{''.join(map(_sample, item.samples))}</li>"
        for item in page.history.observations
        if item.samples and item.step in losses
    ]
    if not items:
        return "<p class=note>训练太短，没有写样文。</p>"
    is_checked = any(sample.copied is not None for item in page.history.observations for sample in item.samples)
    note = "同样的开头和随机种子，变的只有权重。" + "<mark>这样的</mark>是与训练的文字一字不差的片段。" * is_checked
    return f"<p class=note>{note}</p><ol class=samples>{''.join(items)}</ol>"


def _sample(sample: Sample) -> str:
    cuts = [0, *(position for span in sample.copied or [] for position in span), len(sample.text)]
    pieces = [escape(sample.text[start:end]) for start, end in zip(cuts, cuts[1:], strict=False)]
    text = "".join(f"<mark>{piece}</mark>" if index % 2 else piece for index, piece in enumerate(pieces))
    notes = [f"应为：{sample.expected}"] if sample.expected else []
    notes += [f"原文照抄率 {sample.copy_rate:.1%}"] if sample.copied is not None else []
    note = f"<footer>{escape('；'.join(notes))}</footer>" if notes else ""
    return f"<blockquote><span class=prompt>{escape(sample.prompt)}</span>{text}{note}</blockquote>"


def _table(values: dict[str, Any]) -> str:
    rows = (f"<tr><th>{escape(name)}</th><td>{escape(_show(value))}</td></tr>" for name, value in values.items())
    return f"<table>{''.join(rows)}</table>"


def _show(value: Any) -> str:
    """给人看的设置。"""
    if value is None:
        return "未指定"
    if isinstance(value, bool):
        return "是" if value else "否"
    return f"{value:,}" if isinstance(value, int) else str(value)


def _commands(page: PageData) -> str:
    commands = "\n".join(page.history.commands)
    notes = ["依次运行；中断的时刻不影响结果。"] if len(page.history.commands) > 1 else []
    if any(page.settings.get(name) for name in BY_TIME):
        notes.append("按时间停止的训练，步数随机器的快慢而变，不会逐位相同。")
    return f"<pre><code>{escape(commands)}</code></pre>" + "".join(f"<p class=note>{note}</p>" for note in notes)


def _log(records: Iterable[Evaluation]) -> str:
    """每次评估一行，与日志文件相同；全是空的列不要，验证的样本没有换过时也不写是哪一组。"""
    rows = [asdict(record) for record in records]
    names = [item.name for item in fields(Evaluation) if any(row[item.name] is not None for row in rows)]
    if len({row["measured_on"] for row in rows}) == 1:
        names.remove("measured_on")
    head = "".join(f"<th>{escape(name)}</th>" for name in names)
    body = "".join(f"<tr>{''.join(f'<td>{escape(_cell(row[name]))}</td>' for name in names)}</tr>" for row in rows)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _cell(value: Any) -> str:
    if value is None or isinstance(value, str):
        return value or ""
    return f"{value:,}" if isinstance(value, int) else f"{value:.6g}"
