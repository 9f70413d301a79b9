"""谁可以引用谁（CONTRIBUTING.md）：utils 不引用 model，model 只引用 torch 和自己的文件。程序的函数都写明类型。"""

import ast
import sys

import pytest

from conftest import ROOT

ALLOWED = {"model": {"model", "torch"}, "utils": {"utils", "torch"}}
PROJECT = {"benchmarks", "checks", "model", "tests", "utils", *(path.stem for path in ROOT.glob("*.py"))}


def imported(source: str) -> set[str]:
    """引用了哪些包，只看第一段名字；函数里面的也算。"""
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add(node.module.split(".")[0])
    return names


@pytest.mark.parametrize("package", ALLOWED)
def test_packages_only_import_what_they_may(package):
    for path in ROOT.glob(f"{package}/**/*.py"):
        forbidden = PROJECT - ALLOWED[package]
        if package == "model":
            forbidden |= imported(path.read_text(encoding="utf-8")) - ALLOWED[package] - sys.stdlib_module_names
        assert not imported(path.read_text(encoding="utf-8")) & forbidden, path


def test_an_import_inside_a_function_is_seen():
    assert imported("import a.b\ndef f():\n    from c.d import e") == {"a", "c"}


@pytest.mark.parametrize("path", sorted(ROOT.glob("*.py")), ids=lambda path: path.name)
def test_every_function_of_a_program_tells_its_types(path):
    functions = [node for node in ast.walk(ast.parse(path.read_text("utf-8"))) if isinstance(node, ast.FunctionDef)]
    for function in functions:
        arguments = (*function.args.args, *function.args.kwonlyargs)
        assert function.returns is not None and all(argument.annotation for argument in arguments), function.name
        if function.name.startswith(("train", "load", "build", "open")):
            assert ast.get_docstring(function), function.name


def test_no_test_file_imports_another():
    """共用的放在 conftest.py、builders.py 等文件里：每个测试文件可以单独读，单独改。"""
    for path in (ROOT / "tests").glob("*.py"):
        assert not [name for name in imported(path.read_text(encoding="utf-8")) if name.startswith("test_")], path
