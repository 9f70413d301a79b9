"""分类模型：同一个主干，换一个头。最后一个 token 读过了全文，由它的向量判断标签。"""

import dataclasses

import torch
from torch import nn

from model.config import ModelConfig
from model.language_model import INIT_STD, LanguageModel


class Classifier(LanguageModel):
    """(batch, seq) -> (batch, seq, num_labels)：每个位置都有分数，只用最后一个真正的 token 的。

    因果注意力只看前面，后面补的 token 影响不到它。标签随模型文件走。
    """

    def __init__(self, cfg: ModelConfig, labels: list[str]):
        super().__init__(dataclasses.replace(cfg, tie_weights=False))
        self.set_labels(labels)

    @classmethod
    def from_language_model(cls, model: LanguageModel, labels: list[str]) -> "Classifier":
        """主干用 model 的权重（同一处内存），头是新的。"""
        with torch.device("meta"):  # 不为换下的主干占内存
            classifier = cls(model.cfg, labels)
        for name in ("tok_emb", "position", "trf_blocks", "final_norm"):
            setattr(classifier, name, getattr(model, name))
        classifier.set_labels(labels)
        classifier.tokenizer_state = model.tokenizer_state
        return classifier

    def set_labels(self, labels: list[str]) -> None:
        """换上给 labels 打分的头。"""
        self.labels = labels
        self.out_head = nn.Linear(self.cfg.emb_dim, len(labels))
        nn.init.normal_(self.out_head.weight, std=INIT_STD)
        nn.init.zeros_(self.out_head.bias)

    def get_extra_state(self) -> dict:
        return {**super().get_extra_state(), "labels": self.labels}
