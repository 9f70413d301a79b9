"""检查 model/classifier.py：参照是语言模型的参照，换一个带偏置的头。"""

import math
from dataclasses import dataclass

from checks.building import Tensors, linear_shapes, tiny_config
from checks.comparison import Check, Suspect, fact_check
from checks.language_model import INIT_STD, SUSPECTS, Model, load, model_inputs
from model.classifier import Classifier
from model.language_model import LanguageModel

USES = ("language_model",)
LABELS = ["垃圾", "正常", "不知道"]
PARTS = ("tok_emb", "position", "trf_blocks", "final_norm")


@dataclass(frozen=True)
class Classify:
    """语言模型的主干，三个标签的头；每一步都可以改错。"""

    biased: bool = True
    body: Model = Model(tiny_config(tie_weights=False))

    def __call__(self, inputs: Tensors) -> Tensors:
        return self.body(inputs if self.biased else {k: v for k, v in inputs.items() if k != "out_head.bias"})


def _inputs() -> Tensors:
    return model_inputs(tiny_config(), **linear_shapes("out_head", len(LABELS), 32))


def _ours(inputs: Tensors) -> Tensors:
    classifier, token_ids = load(Classifier(tiny_config(), LABELS), inputs), inputs["token_ids"]
    return {"forward": classifier(token_ids), "next_logits": classifier.next_logits(token_ids)}


def _facts() -> dict[str, float]:
    model = LanguageModel(tiny_config())
    model.tokenizer_state = {"type": "gpt2"}
    classifier = Classifier.from_language_model(model, LABELS)
    wide = Classifier(tiny_config(emb_dim=512), LABELS * 100).out_head
    state = classifier.get_extra_state()
    shared = {f"{name} 用原来的": getattr(classifier, name) is getattr(model, name) for name in PARTS}
    return shared | {
        "分词器随模型走": state["tokenizer"] == model.tokenizer_state,
        "标签随模型走": state.get("labels") == LABELS,
        "头的标准差（÷ 0.02）": wide.weight.std().item() / INIT_STD,
        "头的偏置最大": wide.bias.abs().max().item() if wide.bias is not None else 0.0,
    }


EXPECTED = {f"{name} 用原来的": 1 for name in PARTS} | {
    "分词器随模型走": 1,
    "标签随模型走": 1,
    "头的标准差（÷ 0.02）": 1,
    "头的偏置最大": 0,
}
CHECKS = [
    Check(
        "Classifier",
        _inputs,
        _ours,
        lambda **changes: Classify(**changes),
        [
            Suspect("头没有加偏置", {"biased": False}),
            *(Suspect(s.guess, {"body": Model(tiny_config(tie_weights=False), **s.changes)}) for s in SUSPECTS),
        ],
    ),
    fact_check(
        "主干是原来的，头是新的",
        _facts,
        EXPECTED,
        [
            *(Suspect(f"{name} 没有用语言模型的", {f"{name} 用原来的": 0}) for name in PARTS),
            Suspect("分词器没有带过来", {"分词器随模型走": 0}),
            Suspect("标签没有写进 get_extra_state", {"标签随模型走": 0}),
            Suspect(
                "头没有初始化：还是 nn.Linear 的默认值",
                {"头的标准差（÷ 0.02）": 1 / math.sqrt(3 * 512) / INIT_STD, "头的偏置最大": 1 / math.sqrt(512)},
            ),
            Suspect("头的初始化标准差不对：应为 0.02", {"头的标准差（÷ 0.02）": 1 / math.sqrt(3 * 512) / INIT_STD}),
            Suspect("头的偏置没有清零", {"头的偏置最大": 1 / math.sqrt(512)}),
        ],
        tolerance=0.02,
    ),
]
