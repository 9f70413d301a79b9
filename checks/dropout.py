"""检查 model/dropout.py：掩码是随机的，比较的是几个统计量，参照由概率的定义算出。"""

import torch

from checks.comparison import Check, Suspect, fact_check
from model.dropout import Dropout, dropout

USES = ()
RATE = 0.2
SIZE = 400_000
STATISTICS = {
    "丢弃的比例": RATE,
    "留下的数乘以": 1 / (1 - RATE),
    "梯度乘以": 1 / (1 - RATE),
    "梯度与输出丢在同处": 1,
}
NO_DROPOUT = {"丢弃的比例": 0, "留下的数乘以": 1, "梯度乘以": 1}


def _statistics() -> dict[str, float]:
    x = torch.ones(SIZE, requires_grad=True)
    y = dropout(x, RATE)
    gradient = torch.autograd.grad(y.sum(), x)[0] if y.requires_grad else torch.zeros(SIZE)
    return {
        "丢弃的比例": (y == 0).double().mean(),
        "留下的数乘以": y[y != 0].double().mean(),
        "梯度乘以": gradient[gradient != 0].double().mean().nan_to_num(),
        "梯度与输出丢在同处": ((gradient == 0) == (y == 0)).double().mean(),
    }


def _scaled(keep: float, factor: float) -> dict[str, float]:
    return {"丢弃的比例": 1 - keep, "留下的数乘以": factor, "梯度乘以": factor}


def _shared_mask() -> dict[str, float]:
    """几个数一起丢：相邻的数、不同的行、前后两次都该各抽各的签。"""
    kept = (dropout(torch.ones(SIZE), 0.5) != 0).double().view(-1, 4) * 2 - 1
    again = (dropout(torch.ones(SIZE), 0.5) != 0).double().view(-1, 4) * 2 - 1
    rows = kept.view(2, -1)
    return {
        "相邻两数的相关": (kept[:, 0] * kept[:, 1]).mean(),
        "两行的相关": (rows[0] * rows[1]).mean(),
        "前后两次的相关": (kept * again).mean(),
    }


def _modes() -> dict[str, float]:
    x = torch.ones(1000)
    return {
        "评估时丢弃": bool((Dropout(0.5).eval()(x) != x).any()),
        "训练时丢弃": bool((Dropout(0.5).train()(x) == 0).any()),
        "概率 0 时丢弃": bool((Dropout(0.0).train()(x) != x).any()),
    }


CHECKS: list[Check] = [
    fact_check(
        "dropout 的比例和缩放",
        _statistics,
        STATISTICS,
        [
            Suspect("没有除以保留概率 1 - p", _scaled(1 - RATE, 1.0)),
            Suspect("应除以保留概率 1 - p，写成了乘以", _scaled(1 - RATE, 1 - RATE)),
            Suspect("应除以保留概率 1 - p，写成了除以 p", _scaled(1 - RATE, 1 / RATE)),
            Suspect("应除以保留概率 1 - p，写成了乘以 1 + p", _scaled(1 - RATE, 1 + RATE)),
            Suspect("丢和留弄反了：丢弃的比例成了 1 - p", _scaled(RATE, 1 / (1 - RATE))),
            Suspect("丢和留弄反了，缩放也按 p 算", _scaled(RATE, 1 / RATE)),
            Suspect("没有丢弃，也没有缩放", NO_DROPOUT),
            Suspect("没有丢弃，只有缩放", _scaled(1, 1 / (1 - RATE))),
            Suspect(
                "输出对而梯度不对：是不是用了 detach()、.data 或 no_grad()",
                {"梯度乘以": 0, "梯度与输出丢在同处": RATE},
            ),
        ],
        tolerance=5e-3,
    ),
    fact_check(
        "每个数各抽各的签",
        _shared_mask,
        {"相邻两数的相关": 0, "两行的相关": 0, "前后两次的相关": 0},
        [
            Suspect("每次的随机数都一样：不要在里面设种子", {"前后两次的相关": 1}),
            Suspect("相邻的数共用了一个随机数", {"相邻两数的相关": 1}),
            Suspect("各行共用了一张掩码", {"两行的相关": 1}),
        ],
        tolerance=2e-2,
    ),
    fact_check(
        "训练时丢，评估时不丢",
        _modes,
        {"评估时丢弃": 0, "训练时丢弃": 1, "概率 0 时丢弃": 0},
        [
            Suspect("评估时还在丢：没有看 self.training", {"评估时丢弃": 1}),
            Suspect("训练时没有丢", {"训练时丢弃": 0}),
            Suspect("训练和评估弄反了", {"评估时丢弃": 1, "训练时丢弃": 0}),
        ],
        tolerance=0.1,
    ),
]
