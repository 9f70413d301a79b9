"""utils/cli.py：中文的帮助、一行的错误、每种取值的检查。"""

import argparse
import importlib
import re
import sys
from pathlib import Path

import pytest
from reader import PROGRAMS

from utils import cli
from utils.console import display_width
from utils.errors import UserError

MAX_INT = 2**63 - 1


def make_parser() -> cli.ArgumentParser:
    parser = cli.ArgumentParser("说明文字。")
    parser.add_argument("--epochs", "--rounds", type=cli.positive_int, default=3, help="几轮（默认 %(default)s）")
    parser.add_argument("--model_path", type=cli.file_path, help="写到哪里")
    parser.add_argument("--compile", action="store_true", help="先编译")
    parser.add_argument("--prompts", nargs="+", help="几句提示")
    return parser


def refuse(parser: argparse.ArgumentParser, *arguments: str) -> str:
    with pytest.raises(UserError) as error:
        parser.parse_args(list(arguments))
    assert error.value.exit_code == 2
    return str(error.value)


def test_help_is_chinese_and_shows_defaults(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    with pytest.raises(SystemExit) as end:
        make_parser().parse_args(["--help"])
    text = capsys.readouterr().out
    assert end.value.code == 0
    assert text.startswith("用法：") and "说明文字。" in text and "\n参数：\n" in text
    assert re.search(r"-h, --help +显示这份帮助", text) and "几轮（默认 3）" in text
    assert "--model_path 值" in text  # 取值一律写作“值”，开关没有取值
    assert re.search(r"--compile +先编译", text)
    assert not re.search(r"usage|options|show this|default|EPOCHS|MODEL_PATH", text)


def test_positional_argument_keeps_its_own_name(capsys):
    parser = make_parser()
    parser.add_argument("dataset", metavar="数据集", help="下载哪一个")
    with pytest.raises(SystemExit):
        parser.parse_args(["-h"])
    text = capsys.readouterr().out
    assert "\n位置参数：\n" in text and re.search(r"数据集 +下载哪一个", text)


def test_usage_shows_what_may_be_left_out_or_repeated(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    parser = make_parser()
    parser.add_argument("modules", metavar="模块", nargs="*")
    with pytest.raises(SystemExit):
        parser.parse_args(["-h"])
    usage = capsys.readouterr().out.split("\n\n")[0]
    assert usage.endswith(" [模块 ...]") and "[--prompts 值 ...]" in usage and "[--compile]" in usage


def program_help(program: str, columns: int, monkeypatch, capsys) -> str:
    """python program --help 在 columns 格宽的终端里的样子。"""
    module = importlib.import_module(PROGRAMS[program])
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setattr(sys, "argv", [program, "--help"])
    with pytest.raises(SystemExit):
        module.parse_args()
    return capsys.readouterr().out


@pytest.mark.parametrize(
    ("program", "columns"), [*((name, 80) for name in PROGRAMS), ("pretrain.py", 60), ("pretrain.py", 100)]
)
def test_help_fits_the_terminal_and_keeps_words_whole(program, columns, monkeypatch, capsys):
    text, wide = (program_help(program, width, monkeypatch, capsys) for width in (columns, 1000))
    assert [line for line in text.splitlines() if display_width(line) > columns] == []
    words = re.findall(r"[\w./:=-]+", text, re.ASCII)
    assert words and set(words) <= set(re.findall(r"[\w./:=-]+", wide, re.ASCII))  # 一个也没有拆开


def test_help_is_in_two_straight_columns(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "50")
    parser = cli.ArgumentParser("说明。")
    parser.add_argument("--model_path", help="权重保存到哪里，" * 5)
    parser.add_argument("--a_name_that_is_far_too_long", help="说明" * 20)
    with pytest.raises(SystemExit):
        parser.parse_args(["-h"])
    lines = capsys.readouterr().out.split("参数：\n")[1].splitlines()
    assert "  --a_name_that_is_far_too_long 值" in lines
    starts = [display_width(re.match(r"(?:  -\S+.*?  |) *", line)[0]) for line in lines]
    assert len(lines) > 6 and len(set(starts) - {starts[lines.index("  --a_name_that_is_far_too_long 值")]}) == 1


def test_good_arguments_are_converted():
    args = make_parser().parse_args(["--epochs", "7", "--model_path", "a/模型.pth", "--compile"])
    assert (args.epochs, args.model_path, args.compile, args.prompts) == (7, Path("a/模型.pth"), True, None)
    assert make_parser().parse_args([]).epochs == 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--epoch", "3"], "错误：--epoch：无法识别的参数。是否想写 --epochs？"),
        (["--model-path=a"], "错误：--model-path：无法识别的参数。是否想写 --model_path？"),
        (["a/model.pth"], "错误：a/model.pth：无法识别的参数。是否想写 --model_path a/model.pth？"),
        (["语料.txt"], "错误：语料.txt：无法识别的参数。用 --help 查看全部参数。"),  # 这个程序没有 --data_path
        (["--zzz"], "错误：--zzz：无法识别的参数。用 --help 查看全部参数。"),
        (["多余"], "错误：多余：无法识别的参数。用 --help 查看全部参数。"),
        ([""], '错误：""：无法识别的参数。用 --help 查看全部参数。'),
    ],
)
def test_unknown_argument_gets_a_suggestion(arguments, message):
    assert refuse(make_parser(), *arguments) == message


def test_abbreviation_is_not_accepted():
    assert "是否想写 --compile？" in refuse(make_parser(), "--compil")


def test_errors_of_argparse_are_translated():
    parser = make_parser()
    group = parser.add_mutually_exclusive_group()
    group.add_argument("--fast", action="store_true")
    group.add_argument("--slow", action="store_true")
    for arguments, message in (
        (["--model_path"], "错误：--model_path：后面缺少取值。取值以 - 开头时写成 --model_path=取值。"),
        (["--model_path", "-x"], "错误：--model_path：后面缺少取值。取值以 - 开头时写成 --model_path=取值。"),
        (["--prompts"], "错误：--prompts：后面至少要有一个取值。用 --help 查看说明。"),
        (["--compile=yes"], "错误：--compile：不接受取值，收到 'yes'。用 --help 查看说明。"),
        (["--fast", "--slow"], "错误：--slow：不能与 --fast 同时使用。用 --help 查看说明。"),
        (["--epochs", "0"], "错误：--rounds：必须是 ≥1 的整数，收到 0。用 --help 查看说明。"),
    ):
        assert refuse(parser, *arguments) == message


def test_missing_required_argument_is_named():
    parser = make_parser()
    parser.add_argument("--url", required=True)
    assert refuse(parser) == "错误：命令行：缺少必填参数 --url。用 --help 查看说明。"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model_path", "a", "--model_path=b"], "错误：--model_path：给了两次。只留一个。"),
        (["--prompts", "a", "--prompts", "b"], "错误：--prompts：给了两次。几个取值写在一个 --prompts 后面。"),
        (["--epochs", "3", "--rounds", "3"], "错误：--rounds：给了两次（--epochs、--rounds 是同一个参数）。只留一个。"),
    ],
)
def test_argument_given_twice_is_refused_not_dropped(arguments, message):
    assert refuse(make_parser(), *arguments) == message


def test_parser_can_be_used_twice_and_repeatable_arguments_repeat():
    parser = make_parser()
    parser.add_argument("--set", action="append")
    for _ in range(2):
        assert parser.parse_args(["--epochs", "3", "--set", "a", "--set", "b"]).set == ["a", "b"]


def test_argument_that_needs_another_is_refused_alone():
    parser = make_parser()
    parser.only_with("--model_path", "--prompts")
    parser.only_with("--epochs 4", "--compile", "--model_path")
    message = refuse(parser, "--prompts", "a")
    assert message == "错误：--prompts：只与 --model_path 同用。加上 --model_path，或去掉 --prompts。"
    message = refuse(parser, "--model_path", "a")
    assert message == "错误：--model_path：只与 --epochs 4 同用。加上 --epochs 4，或去掉 --model_path。"
    assert parser.parse_args(["--prompts", "a", "--model_path", "a", "--epochs", "4"]).epochs == 4
    assert parser.parse_args([]).epochs == 3


@pytest.mark.parametrize(
    ("program", "arguments", "companion"),
    [
        ("chat.py", "--input 悟空", "--instruction"),
        ("generate.py", "--encoding gb18030", "--check_copy"),
        *(
            (f"finetune_{task}.py", arguments, "--trainable lora")
            for task in ("classifier", "instruction")
            for arguments in ("--lora_rank 8", "--lora_alpha 16", "--lora_projections all")
        ),
    ],
)
def test_programs_refuse_arguments_that_would_do_nothing(program, arguments, companion, monkeypatch):
    name, value = arguments.split()
    monkeypatch.setattr(sys, "argv", [program, name, value])
    with pytest.raises(UserError) as error:
        importlib.import_module(PROGRAMS[program]).parse_args()
    assert str(error.value) == f"错误：{name}：只与 {companion} 同用。加上 {companion}，或去掉 {name}。"


@pytest.mark.parametrize("program", ["finetune_classifier.py", "finetune_instruction.py"])
@pytest.mark.parametrize("name", ["--stride", "--sample_prompt"])
def test_fine_tuning_leaves_out_what_only_pretraining_uses(program, name, monkeypatch):
    monkeypatch.setattr(sys, "argv", [program, name, "5"])
    with pytest.raises(UserError, match=f"{name}：无法识别的参数"):
        importlib.import_module(PROGRAMS[program]).parse_args()


@pytest.mark.parametrize(
    ("check", "accepted", "refused", "kind"),
    [
        (cli.positive_int, {"1": 1, "42": 42, " 7 ": 7, "9" * 30: MAX_INT}, ["0", "-1", "1.0", "1e3"], "≥1 的整数"),
        (cli.non_negative_int, {"0": 0, "5": 5, "9" * 30: MAX_INT}, ["-1", "0.0"], "≥0 的整数"),
        (cli.seed_int, {"0": 0, str(MAX_INT): MAX_INT}, ["-1", str(MAX_INT + 1)], "0 到 2^63-1 的整数"),
        (cli.positive_float, {"1e-9": 1e-9, "3": 3.0}, ["0", "-1"], ">0 的有限数"),
        (cli.non_negative_float, {"0": 0.0, "0.5": 0.5}, ["-1e-9"], "≥0 的有限数"),
        (cli.probability, {"1": 1.0, "0.1": 0.1}, ["0", "1.0001", "-0.1"], "(0, 1] 内的数"),
        (cli.fraction, {"0": 0.0, "0.999": 0.999}, ["1", "-0.1"], "[0, 1) 内的数"),
    ],
    ids=["positive_int", "non_negative_int", "seed", "positive_float", "non_negative_float", "probability", "fraction"],
)
def test_number_outside_its_range_is_shown(check, accepted, refused, kind):
    for text, value in accepted.items():
        assert check(text) == value and type(check(text)) is type(value)
    for text in (*refused, "abc", "nan", "inf", "-inf", "9" * 5000 + "x"):
        with pytest.raises(argparse.ArgumentTypeError) as error:
            check(text)
        assert str(error.value) == f"必须是 {kind}，收到 {text}"
    with pytest.raises(argparse.ArgumentTypeError, match='收到 ""$'):
        check("")


def test_number_too_long_for_python_is_refused():
    with pytest.raises(argparse.ArgumentTypeError, match="必须是 ≥1 的整数"):
        cli.positive_int("9" * 5000)


@pytest.mark.parametrize(
    ("check", "words"), [(cli.device_name, "auto cpu cuda mps"), (cli.dtype_name, "auto float32 bfloat16")]
)
def test_word_must_be_one_of_the_list(check, words):
    assert [check(word) for word in words.split()] == words.split()
    for wrong, shown in (("CPU", "CPU"), ("gpu", "gpu"), ("", '""')):
        with pytest.raises(argparse.ArgumentTypeError) as error:
            check(wrong)
        assert str(error.value) == f"应为 {' | '.join(words.split())} 之一，收到 {shown}"


def test_nearly_right_word_gets_a_suggestion_instead_of_the_help():
    parser = make_parser()
    parser.add_argument("--optimizer", type=cli.one_of("adamw", "muon"))
    expected = "错误：--optimizer：应为 adamw | muon 之一，收到 adam，是否想写 adamw？"
    assert refuse(parser, "--optimizer", "adam") == expected


def test_encoding_must_be_a_text_encoding():
    assert [cli.text_encoding(name) for name in ("UTF8", "GB18030", "big5")] == ["utf-8", "gb18030", "big5"]
    for name in ("utf-9", "base64", "rot13", "a\0b"):  # base64 和 rot13 是 Python 的编解码器，却不是文本编码
        with pytest.raises(argparse.ArgumentTypeError, match="不认识的编码"):
            cli.text_encoding(name)


def test_path_and_text_must_not_be_empty():
    assert cli.file_path("语料.txt") == Path("语料.txt") and cli.plain_text(" ") == " "
    for text in ("", "a\0b"):
        with pytest.raises(argparse.ArgumentTypeError, match="不能是空的路径"):
            cli.file_path(text)
    with pytest.raises(argparse.ArgumentTypeError, match="不能为空"):
        cli.plain_text("")
    assert cli.visible_text(" 悟空\n") == "悟空"
    with pytest.raises(argparse.ArgumentTypeError, match="不能为空"):
        cli.visible_text(" \n")


def test_projections_are_the_ones_lora_knows():
    from model.lora import PROJECTIONS

    assert cli.LORA_PROJECTIONS == tuple(PROJECTIONS)


@pytest.mark.parametrize("program", ["finetune_classifier.py", "finetune_instruction.py"])
def test_trainable_choices_are_the_ones_the_model_knows(program, monkeypatch):
    """程序不等 torch，自己写着有哪几种；分类的要全，指令微调的没有新的头，少两种。"""
    from model.trainable import TRAINABLE

    modes = [mode for mode in TRAINABLE if program == "finetune_classifier.py" or mode in ("all", "lora")]
    monkeypatch.setattr(sys, "argv", [program, "--trainable", "没有"])
    with pytest.raises(UserError, match=re.escape(f"--trainable：应为 {' | '.join(modes)} 之一，收到 没有")):
        importlib.import_module(PROGRAMS[program]).parse_args()
