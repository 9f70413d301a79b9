"""verify.py 和 checks/：对的代码全部相同；写错的查得出，也说得出错在哪里。"""

import importlib
import itertools
import re
import shutil

import pytest
from patched_project import PatchedProject
from sabotages import SABOTAGES

from checks.comparison import Check, compare, difference, measure
from checks.runner import MODULES
from conftest import ROOT, run
from utils.console import display_width
from verify import WIDTH

CHECKS = [(name, check) for name in MODULES for check in importlib.import_module(f"checks.{name}").CHECKS]
IDS = [f"{name}-{check.name}" for name, check in CHECKS]
EVERY_SABOTAGE = [(name, *sabotage) for name, sabotages in SABOTAGES.items() for sabotage in sabotages]


@pytest.fixture(scope="module")
def project(tmp_path_factory) -> PatchedProject:
    return PatchedProject(tmp_path_factory.mktemp("project"))


def explain(project: PatchedProject, name: str, old: str, new: str, path: str | None = None) -> str:
    """改一处之后，verify.py 对模块 name 的全部说明；没有查出就是空的。"""
    with project.replaced(path or f"model/{name}.py", old, new):
        checks = importlib.import_module("checks.runner").run_checks((name,))
        results = [result for _, found in checks for result in found if not result.passed]
    return "\n".join(f"{result.problem} {result.trace} {result.guess}" for result in results)


@pytest.mark.parametrize(("name", "check"), CHECKS, ids=IDS)
def test_our_model_equals_the_reference(name, check):
    assert compare(check).passed


@pytest.mark.parametrize("name", MODULES)
def test_every_module_is_sabotaged_in_many_ways(project, name):
    for old, new, said in SABOTAGES[name]:
        assert said in (found := explain(project, name, old, new)) and found, f"{new!r} 应说“{said}”：{found}"


def test_every_file_of_the_model_is_checked():
    files = {path.stem for path in (ROOT / "model").glob("*.py")} - {"__init__", "config"}
    assert files == set(MODULES) == set(SABOTAGES)
    assert all(len(sabotages) >= 8 for sabotages in SABOTAGES.values())


@pytest.mark.parametrize(("name", "check"), CHECKS, ids=IDS)
def test_suspects_differ_from_the_reference_and_from_one_another(name, check: Check):
    """与参照分不开的错法不可能猜中；彼此分不开的会猜错，除非说的是同一件事。"""

    def measured(changes: dict):
        try:
            return measure(check.build_reference(**changes), check.inputs())
        except RuntimeError:  # 这种错法在这里的形状下算不了
            return None

    correct = measured({})
    wrong = [(suspect.guess, found) for suspect in check.suspects if (found := measured(suspect.changes))]
    for guess, found in wrong:
        assert not same(found, correct, check), guess
    for (guess, first), (other, second) in itertools.combinations(wrong, 2):
        assert guess == other or not same(first, second, check), f"{guess} = {other}"


def same(first, second, check: Check) -> bool:
    pairs = ((first.outputs, second.outputs), (first.gradients, second.gradients))
    return all(difference(*pair) <= 2 * check.tolerance for pair in pairs)


def test_two_mistakes_at_once_are_both_named(project):
    old = " / math.sqrt(keys.shape[-1])\n    mask = causal_mask("
    said = explain(project, "attention", old, "\n    mask = ~causal_mask(")
    assert "没有除以 √head_dim；掩码反了" in said


def test_mistake_in_a_part_is_blamed_on_the_part(project):
    said = explain(project, "transform_block", "self.bias, self.eps)", "self.bias, 1e-2)", "model/layer_norm.py")
    assert "它用到的 layer_norm 与参照不同，先改那里：python verify.py layer_norm" in said


def test_unknown_mistake_says_so_and_shows_the_worst_number(project):
    said = explain(project, "feed_forward", "0.044715 * x", "0.06 * x")
    assert re.search(r"输出\[\d+\] 是 \S+，应为 \S+  猜不出；从差得最远的那个数找起", said)


def test_syntax_error_is_reported_with_its_place(project):
    said = explain(project, "attention", "def causal_mask(num_queries", "def causal_mask(num_queries:")
    assert said.startswith("SyntaxError：") and "model/attention.py 第 " in said


def test_program_says_all_is_well():
    result = run("verify.py", cwd=ROOT)
    assert result.code == 0 and result.stderr == ""
    assert f"{len(CHECKS)} 项检查，{len(CHECKS)} 项相同" in result.stdout
    assert max(display_width(line) for line in result.stdout.splitlines()) <= WIDTH


def test_program_checks_only_what_is_asked():
    result = run("verify.py", "dropout", "layer_norm", cwd=ROOT)
    names = [line.split()[0] for line in result.stdout.splitlines()[1:-1]]
    assert result.code == 0 and set(names) == {"layer_norm", "dropout"}


@pytest.fixture
def copy(project, tmp_path):
    """可以运行 verify.py 的一份，改坏也不要紧。"""
    shutil.copytree(project.folder, tmp_path / "copy")
    shutil.copy(ROOT / "verify.py", tmp_path / "copy")
    return tmp_path / "copy"


def test_program_reports_mistakes_without_a_traceback(copy):
    path = copy / "model" / "attention.py"
    text = path.read_text(encoding="utf-8").replace(
        "masked_fill(~mask, -math.inf)", "masked_fill(~mask, math.infinity)"
    )
    path.write_text(text, encoding="utf-8")
    number = text[: text.index("math.infinity")].count("\n") + 1
    result = run(copy / "verify.py", "attention", cwd=copy)
    assert result.code == 1 and "Traceback" not in result.stdout + result.stderr
    assert re.search(r"错误：model/：有 \d 项与参照不同。先改最上面的一处，再运行一遍。", result.stderr)
    assert "AttributeError：math 没有 infinity 这个属性" in result.stdout
    assert f"model/attention.py 第 {number} 行" in result.stdout
    assert max(display_width(line) for line in result.stdout.splitlines()) <= WIDTH


def test_program_refuses_an_unknown_module():
    result = run("verify.py", "atention", cwd=ROOT)
    assert result.code == 2 and "收到 atention，是否想写 attention？\n" in result.stderr


def test_program_works_without_transformers(copy):
    (copy / "sitecustomize.py").write_text("import sys; sys.modules['transformers'] = None\n", encoding="utf-8")
    result = run(copy / "verify.py", "language_model", cwd=copy, env={"PYTHONPATH": str(copy)})
    assert result.code == 0 and "没有装 transformers，略去与它的 GPT-2 的比较。" in result.stdout
    assert "transformers 的 GPT-2 " not in result.stdout
