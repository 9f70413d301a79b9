"""explain.py 的网页在真正的浏览器（没有窗口的 Chromium）里：没有错误，拖得动，按得动，不会横着溢出。"""

import json

import pytest
import torch
from page_data import read_data, unpack

from conftest import run
from utils.generation import Sampling
from utils.trace import token_probabilities

PROMPT = "空</script>"


@pytest.fixture(scope="module")
def path(tab, trained, tmp_path_factory):
    path = tmp_path_factory.mktemp("browser") / "explain.html"
    flags = ["--continuation", "道", "--top_k", 40, "--max_new_tokens", 14, "--output", path]
    result = run("explain.py", "--prompt", PROMPT, *flags, cwd=trained)
    assert result.code == 0, result.stderr
    return path


@pytest.fixture(scope="module")
def data(path):
    return read_data(path)


@pytest.fixture
def page(page, path):
    page.goto(path.as_uri())
    return page


def texts(page, selector: str) -> list[str]:
    return page.locator(selector).all_text_contents()


def enter(page, name: str, value: object) -> None:
    """在数字框里清掉原来的，打进一个值，回车。"""
    box = page.locator(f"#input-{name}")
    box.fill("")
    box.press_sequentially(str(value))
    box.press("Enter")


def prefer(page, theme: str) -> None:
    """系统的主题换成 light 或 dark，等到画过一帧：监听的函数都跑过了。"""
    page.emulate_media(color_scheme=theme)
    page.evaluate("new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")


def test_prompt_is_shown_as_text(page, data):
    assert page.text_content("#prompt") == PROMPT
    assert texts(page, "#token-bar button") == [token["label"] for token in data["tokens"]]
    assert page.evaluate("document.querySelectorAll('script').length") == 2


def test_every_source_is_filled_in(page, data):
    assert len(texts(page, "details.source pre")) == page.evaluate("document.querySelectorAll('.source').length")
    assert (
        page.text_content('[data-source="model/attention.py attention_map"] pre')
        == (data["sources"]["model/attention.py attention_map"])
    )


def test_javascript_samples_exactly_as_python(page, data):
    logits = unpack(data["next"]["logits"])[None]
    seen = torch.tensor([[token["id"] for token in data["tokens"]]])
    choices = [
        Sampling(temperature, top_k, top_p, penalty)
        for temperature in (0.0, 0.3, 1.0, 1.7)
        for top_k, top_p in ((None, None), (1, None), (7, None), (None, 0.6), (20, 0.9), (100_000, 1e-9))
        for penalty in (1.0, 1.4, 0.7, 1e300)
    ]
    expected = torch.cat([token_probabilities(logits, seen, choice) for choice in choices])
    settings = json.dumps([vars(choice) for choice in choices])
    probabilities = "tokenProbabilities(tensor(data.next.logits).values, ids, sampling)"
    # 几万个数，写成一串文字比一个个地传快得多
    result = page.evaluate(f"JSON.stringify({settings}.map((sampling) => {probabilities}))")
    torch.testing.assert_close(torch.tensor(json.loads(result), dtype=torch.float64), expected, atol=1e-12, rtol=1e-9)


def test_javascript_attention_equals_the_definition(page, data):
    seq = len(data["tokens"])
    mask = torch.ones(seq, seq, dtype=torch.bool).triu(1)
    for layer, packed in enumerate(data["attention"]["scores"]):
        expected = unpack(packed).masked_fill(mask, -torch.inf).softmax(dim=-1)
        rows = f"ids.map((_, query) => attentionRow({layer}, head, query).weights)"
        result = page.evaluate(f"Array.from({{ length: data.config.num_heads }}, (_, head) => {rows})")
        torch.testing.assert_close(torch.tensor(result), expected, atol=1e-6, rtol=1e-5)


def test_sliders_change_the_bars_as_python_says(page, data):
    logits = unpack(data["next"]["logits"])[None]
    seen = torch.tensor([[token["id"] for token in data["tokens"]]])
    start = texts(page, "#candidates .bar-text")

    def expected_first(sampling):
        best = token_probabilities(logits, seen, sampling)[0].max().item()
        return f"{100 * best:.1f}%"

    assert start[0].startswith(expected_first(Sampling(0.8, 40)))
    page.focus('input[aria-label="温度"]')
    for _ in range(10):  # 一格是 0.02
        page.keyboard.press("ArrowRight")
    assert page.evaluate("document.querySelector('#input-temperature').value") == "1"
    assert texts(page, "#candidates .bar-text")[0].startswith(expected_first(Sampling(1.0, 40)))
    assert page.text_content("#flags") == f"{data['command']} --temperature 1 --top_k 40"

    for name, value in (("top_k", 5), ("top_p", 0.7), ("repetition_penalty", 1.5)):
        enter(page, name, value)
    sampling = Sampling(1.0, 5, 0.7, 1.5)
    assert texts(page, "#candidates .bar-text")[0].startswith(expected_first(sampling))
    kept = (token_probabilities(logits, seen, sampling) > 0).sum().item()
    assert page.text_content("#next-readout").startswith(f"还能抽到 {kept} 个 token")

    page.click("#draw")
    drawn = [int(row.split("抽中 ")[1].split(" ")[0]) for row in texts(page, "#candidates .bar-text")]
    assert sum(drawn) == 100 and not any(drawn[kept:])
    page.click("#reset")
    assert texts(page, "#candidates .bar-text") == start


def test_impossible_penalty_changes_nothing(page):
    before = texts(page, "#candidates .bar-text")
    for value in ("-1", "1e999", "x", "0"):
        enter(page, "repetition_penalty", value)
        assert texts(page, "#candidates .bar-text") == before, value


def test_noise_floor_is_drawn_under_every_neighbour_and_said(page, data):
    noise = data["embedding"]["noise"]
    shares = page.evaluate(
        "[...document.querySelectorAll('#neighbours .outline')].map((line) => +line.style.getPropertyValue('--share'))"
    )
    assert shares == [pytest.approx(noise, abs=1e-4)] * len(data["embedding"]["neighbours"][0])
    assert f"最近的一个平均也有 {noise:.3f}" in page.text_content("#noise-note")


def test_layers_heads_and_tokens_are_counted_from_one(page, data):
    layers, tokens = data["config"]["num_layers"], len(data["tokens"])
    numbered = [f"第 {number} 层" for number in range(1, layers + 1)]
    titles = page.evaluate("[...document.querySelectorAll('#token-bar button')].map((node) => node.title)")
    assert [title.split("，")[0] for title in titles] == [f"第 {number} 个" for number in range(1, tokens + 1)]
    assert texts(page, "#heads .row-name") == texts(page, "#cache .row-name") == numbered
    assert texts(page, "#lens-table tbody th") == ["嵌入", *numbered[:-1], f"{numbered[-1]}＝回答"]
    sublayers = [f"{name}的{part}" for name in numbered for part in ("注意力", "前馈")]
    assert texts(page, "#stream-table tbody th") == ["嵌入", *sublayers]
    page.evaluate("select({ position: 4, key: 0, layer: 0, head: 0, site: 2 })")
    assert page.text_content("#map-title").startswith("第 1 层第 1 头") and page.text_content("#norm-title").startswith(
        "归一化：第 2 层"
    )
    assert "（第 5 个）看" in page.text_content("#map-readout") and "（第 1 个）" in page.text_content("#map-readout")
    assert "键在第 1 个，不晚于第 5 个" in page.text_content("#pair")


def test_arrow_keys_choose_a_token_everywhere(page, data):
    last = len(data["tokens"]) - 1
    page.focus('#token-bar [tabindex="0"]')
    page.keyboard.press("Home")
    page.keyboard.press("ArrowRight")
    assert page.evaluate("[state.position, document.activeElement.textContent]") == [1, data["tokens"][1]["label"]]
    assert "，第 2 个，" in page.text_content("#embedding-strips .caption")
    assert page.evaluate("document.querySelector('.token-card.selected .token-id').textContent") == str(
        data["tokens"][1]["id"]
    )
    page.keyboard.press("End")
    page.keyboard.press("ArrowRight")
    assert page.evaluate("state.position") == last


def test_arrow_keys_move_in_the_map_the_heads_and_the_lens(page, data):
    page.evaluate("select({ position: 3, key: 2, layer: 0, head: 0 })")
    page.focus("#map")
    page.keyboard.press("ArrowUp")
    page.keyboard.press("ArrowLeft")
    assert page.evaluate("[state.position, state.key]") == [2, 1]
    before = page.text_content("#map-readout")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    assert "在将来，看不见" in page.text_content("#map-readout") != before
    assert "换成 −∞" in page.text_content("#pair") and "exp(−∞) = 0" in page.text_content("#pair")

    page.focus("#heads .selected")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowRight")
    assert page.evaluate("[state.layer, state.head]") == [1, 1]
    assert page.text_content("#map-title") == "第 2 层第 2 头的注意力图"

    page.focus("#lens-table .selected")
    page.keyboard.press("ArrowUp")
    assert page.evaluate("state.lensLayer") == data["config"]["num_layers"] - 1
    guesses = data["lens"]["ids"][1][2]
    assert texts(page, "#lens-detail .bar-name") == [data["labels"][str(token_id)] for token_id in guesses]


def test_hovering_shows_where_a_token_looks_and_who_looks_at_it(page, data):
    page.evaluate("select({ layer: 0, head: 0 })")
    seq = len(data["tokens"])
    mask = torch.ones(seq, seq, dtype=torch.bool).triu(1)
    weights = unpack(data["attention"]["scores"][0])[0].masked_fill(mask, -torch.inf).softmax(dim=-1)

    def shades(name):
        return page.evaluate(
            f"[...document.querySelectorAll('#{name} .word')].map((word) => +word.style.cssText.slice(5, 10))"
        )

    def expect(position):
        assert shades("looks-at") == pytest.approx(weights[position].sqrt().tolist(), abs=6e-4)
        assert shades("looked-by") == pytest.approx(weights[:, position].sqrt().tolist(), abs=6e-4)

    expect(seq - 1)
    page.hover("#looks-at .word:nth-child(2)")
    expect(1)
    page.hover("#map-title")
    expect(seq - 1)
    page.hover("#map")
    assert "看" in page.text_content("#map-readout")
    page.click("#looked-by .word:nth-child(3)")
    assert page.evaluate("state.position") == 2


def test_row_of_steps_adds_up(page):
    cells = [float(cell.replace("−", "-").replace("∞", "inf")) for cell in texts(page, "#row-table td")]
    numbers = [cells[start : start + 5] for start in range(0, len(cells), 5)]
    root = page.evaluate("Math.sqrt(data.config.head_dim)")
    powers = sum(row[3] for row in numbers)
    for product, scaled, masked, power, weight in numbers:
        assert scaled == pytest.approx(product / root, abs=0.01)
        assert masked == scaled or masked == float("-inf")
        assert weight == pytest.approx(power / powers, abs=0.003)


def test_generation_goes_step_by_step_and_the_cache_grows(page, data):
    steps = data["generation"]["steps"]
    used = "document.querySelectorAll('#cache .used, #cache .new').length"
    layers, context = data["config"]["num_layers"], data["config"]["context_length"]
    assert page.evaluate(used) == layers * steps[0]["num_tokens"]
    page.click("#next-step")
    assert page.text_content("#step-name") == f"第 2 步，共 {len(steps)} 步"
    assert page.evaluate(used) == layers * steps[1]["num_tokens"]
    total = steps[1]["num_tokens"] * data["generation"]["bytes_per_token"]
    assert f"= {total:,} 字节" in page.text_content("#cache-readout")
    page.focus('#written [tabindex="0"]')
    page.keyboard.press("End")
    assert steps[-1]["num_tokens"] > context and "整段重算" in page.text_content("#cache-readout")
    assert page.evaluate(used) == 0


def test_long_text_scrolls_in_its_own_box_to_the_chosen_token(page):
    page.set_viewport_size({"width": 360, "height": 900})
    for name, change in (
        ("written", "step: data.generation.steps.length - 1"),
        ("loss-text", "lossAt: data.loss.ids.length - 1"),
    ):
        page.evaluate(f"find({name!r}).style.maxHeight = '40px'")
        page.evaluate(f"find({name!r}).append(...Array.from({{ length: 200 }}, () => element('span', {{}}, '字')))")
        page.evaluate(f"state.lossAt = -1; select({{ {change} }})")
        inside = """(() => { const box = find("NAME").getBoundingClientRect();
        const word = find("NAME").querySelector(".selected").getBoundingClientRect();
        return word.top >= box.top - 1 && word.bottom <= box.bottom + 1; })()"""
        assert page.evaluate(inside.replace("NAME", name)), name


def test_residual_stream_and_norm_follow_the_chosen_row(page, data):
    page.focus('#stream-table [tabindex="0"]')
    for _ in range(2 * data["config"]["num_layers"]):
        page.keyboard.press("ArrowDown")
    assert page.text_content("#norm-title") == "归一化：输出层之前的 final_norm"
    length = unpack(data["stream"]["norms"])[-1, -1].item()
    assert page.text_content("#stream-table .selected td:last-child") == f"{length:.2f}"


def test_loss_is_explained_with_its_numbers(page, data):
    losses = unpack(data["loss"]["log_sums"]) - unpack(data["loss"]["right"])
    assert f"= {losses[0]:.3f} nat" in page.text_content("#loss-detail")
    assert f"= {losses.mean():.3f} nat/token" in page.text_content("#loss-detail")


def test_small_and_negative_numbers_read_well(page):
    expressions = ["exactPercent(0.25)", "exactPercent(0)", "exactPercent(2.5e-6)", "exactPercent(1e-12)"]
    expressions += ["subtrahend(number(-1.5))", "subtrahend(number(1.5))"]
    found = page.evaluate(f"[{', '.join(expressions)}]")
    assert page.evaluate("[about(12.34), about(64087.2)]") == ["12.3", "64,087"]
    assert found == ["25.0%", "0%", "0.00025%", "1.0e-10%", "(−1.50)", "1.50"]
    page.evaluate("tensor(data.loss.right).values.fill(-5); tensor(data.loss.log_sums).values.fill(7)")
    page.evaluate("explainLoss(state.lossAt)")
    assert "p = exp(−5.000 − 7.000) = 0.00061%" in page.text_content("#loss-detail")
    assert "7.000 − (−5.000) = 12.000 nat" in page.text_content("#loss-detail")


def test_both_themes_and_the_button(page):
    colour = "getComputedStyle(document.body).backgroundColor"
    light = page.evaluate(colour)
    prefer(page, "dark")
    dark = page.evaluate(colour)
    assert light != dark
    page.click("#theme")
    assert page.evaluate(colour) == light
    prefer(page, "light")
    page.click("#theme")
    assert page.evaluate(colour) == dark  # 自己选过就不再跟随系统
    prefer(page, "dark")
    prefer(page, "light")
    assert page.evaluate(colour) == dark


def luminance(colour: str) -> float:
    channels = [int(part) / 255 for part in colour[4:-1].split(", ")]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_text_has_enough_contrast(page):
    """正文和次要文字与背景的对比度 (WCAG 2.1)：至少 4.5。"""
    for theme in ("light", "dark"):
        prefer(page, theme)
        colours = page.evaluate(
            "['body', '.hint', '.readout', 'h2', '.token-id', '.source summary', '.source .function']"
            ".map((selector) => getComputedStyle(document.querySelector(selector)).color)"
            ".concat(getComputedStyle(document.body).backgroundColor)"
        )
        *values, background = map(luminance, colours)
        for value in values:
            assert (max(value, background) + 0.05) / (min(value, background) + 0.05) >= 4.5, theme


def test_nothing_overflows_sideways(page):
    def check_widths() -> None:
        for width in (360, 768, 1280):
            page.set_viewport_size({"width": width, "height": 900})
            assert page.evaluate("document.documentElement.scrollWidth") <= width
            contents = page.evaluate("getComputedStyle(document.querySelector('.contents')).display")
            assert contents == ("block" if width >= 1000 else "none")
            assert page.evaluate("document.querySelector('#map').clientWidth") <= width

    check_widths()
    page.evaluate("document.querySelectorAll('details').forEach((details) => { details.open = true; })")
    check_widths()
