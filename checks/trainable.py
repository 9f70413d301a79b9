"""检查 model/trainable.py：各种方式该训练几个参数，参照是手算的个数。"""

from checks.building import tiny_config
from checks.comparison import Suspect, fact_check
from model.classifier import Classifier
from model.lora import LoRAConfig
from model.trainable import set_trainable

USES = ("lora",)
LABELS = ["垃圾", "正常"]
RANK = 2
HEAD = 33 * len(LABELS)
FINAL_NORM = 2 * 32
BLOCK = 2 * 64 + 4 * (32 * 32 + 32) + 2 * 32 * 128 + 128 + 32
ADAPTERS = RANK * 2 * (4 * 64 + 2 * 160)
ALL = 300 * 32 + 16 * 32 + 2 * BLOCK + FINAL_NORM + HEAD
EXPECTED = {
    "head": HEAD + FINAL_NORM,
    "last_block": HEAD + FINAL_NORM + BLOCK,
    "all": ALL,
    "lora": ADAPTERS + HEAD,
}


def _counts() -> dict[str, float]:
    found = {}
    for mode in EXPECTED:
        model = Classifier(tiny_config(), LABELS)
        set_trainable(model, mode, LoRAConfig(RANK, 4.0))
        found[mode] = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    return found


CHECKS = [
    fact_check(
        "可训练的参数个数",
        _counts,
        EXPECTED,
        [
            Suspect("head：漏了 final_norm", {"head": HEAD, "last_block": HEAD + BLOCK}),
            Suspect("head：漏了输出层", {"head": FINAL_NORM, "last_block": FINAL_NORM + BLOCK}),
            Suspect("head：没有冻结其余的参数", {"head": ALL, "last_block": ALL}),
            Suspect("last_block：最后一个块没有解冻", {"last_block": HEAD + FINAL_NORM}),
            Suspect("last_block：只训练了块，漏了头", {"last_block": BLOCK}),
            Suspect("last_block：解冻了所有的块", {"last_block": HEAD + FINAL_NORM + 2 * BLOCK}),
            Suspect("lora：分类的头没有解冻，它是新的，也要训练", {"lora": ADAPTERS}),
            Suspect("lora：原来的参数没有冻结", {"lora": ALL + ADAPTERS}),
            Suspect("lora：没有加适配器", {"lora": ALL}),
        ],
        tolerance=0.0,
    ),
]
