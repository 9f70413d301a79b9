"""做一个模块或几个模块的全部检查；猜不出的，看看是不是别处的错连累的。"""

import dataclasses
import importlib
from collections.abc import Iterator

from checks.comparison import Result, compare
from checks.failure import describe_exception

# 用到别人的排在后面：从上往下改，改好一个，下面的常常也就好了
MODULES = (
    "layer_norm",
    "position",
    "feed_forward",
    "dropout",
    "attention",
    "kv_cache",
    "transform_block",
    "language_model",
    "lora",
    "classifier",
    "trainable",
)
IMPORT = "导入"
SAME_AS_ABOVE = "可能与上面是同一处错"


def run_checks(names: tuple[str, ...]) -> Iterator[tuple[str, list[Result]]]:
    """依次做 names 里各模块的检查。"""
    done = {}
    for name in names:
        yield name, _check_module(name, done)


def _check_module(name: str, done: dict[str, list[Result]]) -> list[Result]:
    """done 记着做过的，不重做。"""
    if name in done:
        return done[name]
    try:
        module = importlib.import_module(f"checks.{name}")
    except Exception as error:  # 学习者的代码可能有语法错，导入时就抛出异常
        problem, trace = describe_exception(error)
        done[name] = [Result(IMPORT, problem=problem, trace=trace)]
        return done[name]
    results = []
    for check in module.CHECKS:
        result = compare(check, max_mistakes=2 if all(earlier.passed for earlier in results) else 1)
        if not (result.passed or result.guess or result.trace):
            result = dataclasses.replace(result, guess=_blame(module.USES, results, done) or result.clue)
        results.append(result)
    done[name] = results
    return results


def _blame(uses: tuple[str, ...], earlier: list[Result], done: dict[str, list[Result]]) -> str:
    """猜不出错法时，看是不是上面的、或用到的模块的错连累的。"""
    for used in uses:
        if not all(result.passed for result in _check_module(used, done)):
            return f"它用到的 {used} 与参照不同，先改那里：python verify.py {used}"
    return "" if all(result.passed for result in earlier) else SAME_AS_ABOVE
