"""finetune_classifier.py 和 classify.py 从头到尾：像用户那样从命令行运行。"""

import json
import re

import pytest
import torch
from builders import make_texts

from conftest import last_of_each, refuse, report_data, run
from utils.labeled_text import read_labeled_texts, split_records
from utils.model_file import read_model_file

RESULT = re.compile(r"测试准确率 (\d+\.\d\d)%（第 (\d+) 步的权重）")


@pytest.fixture(scope="module")
def folder(trained, tmp_path_factory):
    """有预训练好的 model.pth 和 spam.csv 的文件夹。"""
    folder = tmp_path_factory.mktemp("classifier")
    (folder / "model.pth").write_bytes((trained / "model.pth").read_bytes())
    lines = [f"{label},{text.replace('，', ' ')}" for label, text in make_texts(300)]
    (folder / "spam.csv").write_text("label,text\n" + "\n".join(lines), encoding="utf-8")
    return folder


def finetune(folder, *args, **options):
    flags = ("--data_path", "spam.csv", "--epochs", 4, "--learning_rate", 0.005, "--eval_freq", 10)
    return run("finetune_classifier.py", *last_of_each(*flags, *args), cwd=folder, **options)


@pytest.fixture(scope="module")
def tuned(folder):
    result = finetune(folder)
    assert result.code == 0, result.stderr
    return result


def test_accuracy_is_reported_per_label_and_drawn(folder, tuned):
    accuracy = float(RESULT.search(tuned.stdout)[1])
    assert accuracy > 95
    assert re.search(r"数据：spam.csv，训练 210、验证 30、测试 60 条", tuned.stdout)
    assert re.search(r"垃圾  \d+\.\d%  \d+\.\d%  [01]\.\d{3}  20", tuned.stdout)
    result = json.loads((folder / "classifier.pth.result.json").read_bytes())
    assert f"{result['test_accuracy']:.2%}" in tuned.stdout and set(result["labels"]) == {"垃圾", "正常"}
    assert re.search(rf"垃圾  \S+  \S+  {result['labels']['垃圾']['f1']:.3f}  20", tuned.stdout)
    assert (folder / "classifier.pth.confusion.png").read_bytes().startswith(b"\x89PNG")
    assert (folder / "classifier.pth.loss.png").read_bytes().startswith(b"\x89PNG")
    records = [json.loads(line) for line in (folder / "classifier.pth.log.jsonl").read_text("utf-8").splitlines()]
    assert records[0]["validate_accuracy"] < records[-1]["validate_accuracy"] <= 1


def test_report_judges_the_same_messages_again_and_again(folder, tuned):
    page = (folder / "classifier.pth.report.html").read_text(encoding="utf-8")
    for part in (
        "<h1>分类微调报告：classifier.pth</h1>",
        "训练完成",
        "垃圾 70、正常 140（训练部分）",
        "--eval_freq 10</code>",
    ):
        assert part in page, part
    last = page.rpartition("<li>")[2].partition("</ol>")[0]  # 训练完的样子：两个标签各两条
    judged = re.findall(r" → </span>(..)（\d+\.\d%）<footer>应为：(..)</footer>", last)
    assert len(judged) == 4 and {expected for _, expected in judged} == {"正常", "垃圾"}
    assert sum(guess == expected for guess, expected in judged) >= 3
    data = report_data(folder / "classifier.pth")
    assert [chart["title"] for chart in data["charts"]][:2] == ["损失", "准确率"]


def test_labels_and_vocabulary_travel_in_the_model_file(folder, tuned):
    file = read_model_file(folder / "classifier.pth")
    assert file.labels == ["垃圾", "正常"] and file.tokenizer == read_model_file(folder / "model.pth").tokenizer


def test_classify_answers_once_and_in_a_dialogue(folder, tuned):
    once = run("classify.py", "--text", "免费领取 点击链接 中奖", cwd=folder)
    assert once.code == 0 and re.fullmatch(r"垃圾（\d+\.\d%）\n", once.stdout)
    spaced = run("classify.py", "--text", " 免费领取 点击链接 中奖\n", cwd=folder)
    assert spaced.stdout == once.stdout  # 训练时也去掉了首尾的空白
    piped = run("classify.py", cwd=folder, stdin="回家吃饭 谢谢你\n\n加微信 贷款 中奖\nexit\n")
    answers = re.findall(r"模型: (\S+)（", piped.stdout)
    assert (piped.code, answers) == (0, ["正常", "垃圾"])
    assert set(piped.stderr.splitlines()) == {"提示：文字超过上下文长度，只看开头 16 个 token"}


@pytest.mark.parametrize("mode", ["head", "last_block", "lora"])
def test_every_way_of_training_gives_a_plain_file(folder, tuned, mode):
    result = finetune(folder, "--trainable", mode, "--output_path", f"{mode}.pth", "--epochs", 1, "--balance")
    assert result.code == 0, result.stderr
    assert (
        read_model_file(folder / f"{mode}.pth").weights.keys()
        == read_model_file(folder / "classifier.pth").weights.keys()
    )
    assert run("classify.py", "--model_path", f"{mode}.pth", "--text", "谢谢你", cwd=folder).code == 0


def test_small_adapter_and_base_answer_like_the_merged_model(folder, tuned):
    result = finetune(folder, "--trainable", "lora", "--output_path", "l.pth", "--epochs", 1)
    assert "适配器：l.pth.lora" in result.stdout
    assert 3 * (folder / "l.pth.lora").stat().st_size < (folder / "l.pth").stat().st_size
    apart = ("--model_path", "model.pth", "--adapter_path", "l.pth.lora")
    answers = {
        run("classify.py", *flags, cwd=folder, stdin="谢谢\n中奖\n").stdout
        for flags in (("--model_path", "l.pth"), apart)
    }
    assert len(answers) == 1 and "正常（" in answers.pop()
    refuse(
        folder,
        "classify.py",
        ["--model_path", "l.pth", "--adapter_path", "l.pth.lora"],
        "l.pth：已经是分类模型，不用再加适配器",
    )
    refuse(folder, "classify.py", ["--model_path", "model.pth", "--adapter_path", "l.pth"], "l.pth：已损坏或不是适配器")


def test_best_weights_of_lora_are_the_ones_judged(folder, tuned):
    """学习率太大，越练越差：最好的不是最后一步，报的应是文件里合并过的权重的准确率。"""
    flags = ("--trainable", "lora", "--keep", "best", "--learning_rate", 3, "--eval_freq", 1, "--max_steps", 4)
    result = finetune(folder, *flags, "--output_path", "best.pth")
    assert result.code == 0, result.stderr
    accuracy, step = RESULT.search(result.stdout).groups()
    assert int(step) == read_model_file(folder / "best.pth").origin["step"] < 4
    test = split_records(read_labeled_texts(folder / "spam.csv"), seed=123).test
    lines = "".join(f"{record.text}\n" for record in test)
    judged = run("classify.py", "--model_path", "best.pth", cwd=folder, stdin=lines)
    guesses = re.findall(r"模型: (\S+)（", judged.stdout)
    right = sum(guess == record.label for guess, record in zip(guesses, test, strict=True))
    assert float(accuracy) == pytest.approx(100 * right / len(test), abs=0.01)


def test_frozen_weights_stay_as_they_were(folder, tuned):
    finetune(folder, "--trainable", "head", "--output_path", "frozen.pth", "--epochs", 1)
    base, head = (read_model_file(folder / name).weights for name in ("model.pth", "frozen.pth"))
    changed = {name for name in head if name not in base or not torch.equal(base[name], head[name])}
    assert changed == {"out_head.weight", "out_head.bias", "final_norm.weight", "final_norm.bias"}


def test_interrupted_run_resumes(folder, tuned):
    base = torch.load(folder / "model.pth", weights_only=True)
    base["trf_blocks.0.attn.W_query.weight"] += 1
    torch.save(base, folder / "other.pth")
    first = finetune(folder, "--output_path", "again.pth", "--max_steps", 7)
    second = finetune(folder, "--output_path", "again.pth", "--resume")
    assert first.code == second.code == 0 and "从第 7 步继续" in second.stdout
    other = finetune(folder, "--output_path", "again.pth", "--resume", "--trainable", "head")
    assert other.code == 2 and "trainable 是 all，现在是 head" in other.stderr
    lines = (folder / "spam.csv").read_text(encoding="utf-8").replace("垃圾,", "广告,")
    (folder / "renamed.csv").write_text(lines, encoding="utf-8")
    flags = ("--output_path", "again.pth", "--resume", "--data_path", "renamed.csv", "--allow_data_change")
    renamed = finetune(folder, *flags)  # 头学的是原来的标签
    assert renamed.code == 2 and "标签 是 垃圾、正常，现在是 广告、正常" in renamed.stderr
    start = finetune(folder, "--output_path", "again.pth", "--resume", "--model_path", "other.pth")
    assert start.code == 2 and "起点的指纹 是 " in start.stderr


def test_bad_input_is_one_line(folder, tuned):
    (folder / "one.csv").write_text("label,text\n" + "\n".join(f"好,{i}" for i in range(30)), encoding="utf-8")
    refuse(folder, "finetune_classifier.py", ["--data_path", "one.csv"], "one.csv：只有一种标签（好）")
    refuse(folder, "finetune_classifier.py", ["--data_path", "none.csv"], "none.csv：找不到数据文件")
    refuse(
        folder,
        "finetune_classifier.py",
        ["--data_path", "spam.csv", "--model_path", "no.pth"],
        "no.pth",
        "找不到模型文件",
    )
    refuse(folder, "finetune_classifier.py", ["--trainable", "some"], "--trainable", "head | last_block | all | lora")
    refuse(folder, "classify.py", ["--model_path", "model.pth"], "model.pth：不是分类模型")
    refuse(folder, "classify.py", ["--model_path", "no.pth"], "请先运行 finetune_classifier.py")
    refuse(folder, "generate.py", ["--model_path", "classifier.pth"], "classifier.pth：是分类模型，不能续写")


def test_dry_run_tells_memory_and_time_and_writes_nothing(folder):
    before = sorted(path.name for path in folder.iterdir())
    result = finetune(folder, "--dry_run", "--trainable", "lora", "--output_path", "dry.pth")
    assert result.code == 0 and "内存：一批" in result.stdout and "训练：" in result.stdout, result.stderr
    assert sorted(path.name for path in folder.iterdir()) == before
    refuse(
        folder,
        "finetune_classifier.py",
        ["--trainable", "lora", "--lora_rank", 100_000, "--data_path", "spam.csv"],
        "--lora_rank",
        "emb_dim=32",
    )


def test_long_text_is_answered_with_a_hint(folder, tuned):
    result = run("classify.py", "--text", "贷款" * 500, cwd=folder)
    assert result.code == 0 and result.stdout.startswith(("垃圾（", "正常（"))
    assert result.stderr == "提示：文字超过上下文长度，只看开头 16 个 token\n"


def test_dropout_of_the_flag_is_the_one_used(folder):
    result = finetune(folder, "--drop_rate", 0.5, "--output_path", "dropped.pth", "--max_steps", 2)
    assert result.code == 0 and read_model_file(folder / "dropped.pth").config["drop_rate"] == 0.5
