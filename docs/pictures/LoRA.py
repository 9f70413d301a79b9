"""冻结的大矩阵旁边，一条窄窄的路：先压到 r 维，再放回来。各矩阵按比例画。"""

from torch import nn

from docs.pictures.svg import BLUE, GREEN, GREY, LIGHT, ORANGE, Picture
from model.lora import LoRAConfig, LoRALinear

WIDTH, RANK = 192, 8


def draw() -> Picture:
    layer = LoRALinear(nn.Linear(WIDTH, WIDTH, bias=False), LoRAConfig(rank=RANK, alpha=16.0))
    frozen, trained = layer.weight.numel(), layer.lora_A.numel() + layer.lora_B.numel()
    picture = Picture(720, 440, "LoRA：冻结的权重加上低秩的修正")
    picture.box(24, 196, 62, 48, "x", f"{WIDTH} 维", color=GREY, size=17)
    picture.box(634, 196, 62, 48, "y", f"{WIDTH} 维", color=GREY, size=17)

    picture.rect(264, 40, WIDTH, WIDTH, fill=LIGHT[BLUE], stroke=BLUE)
    picture.text(360, 112, "W", size=34, color=BLUE, bold=True)
    picture.text(360, 150, f"{WIDTH} × {WIDTH} = {frozen:,} 个数", size=13, color=BLUE)
    picture.text(360, 172, "冻结，一动不动", size=13, color=BLUE)
    picture.line([(86, 212), (150, 212), (150, 136), (263, 136)], color=BLUE, arrow=True)
    picture.line([(456, 136), (570, 136), (570, 203)], color=BLUE, arrow=True)

    picture.rect(196, 326, WIDTH, RANK, fill=ORANGE)
    picture.text(292, 306, f"A：{RANK} × {WIDTH}", size=14, color=ORANGE, bold=True)
    picture.text(292, 352, "从随机数开始", size=12, color=GREY)
    picture.line([(86, 228), (150, 228), (150, 330), (195, 330)], color=ORANGE, arrow=True)
    picture.line([(388, 330), (455, 330)], color=ORANGE, arrow=True)
    picture.text(421, 316, f"{RANK} 维", size=13, color=ORANGE)
    picture.rect(456, 238, RANK, WIDTH, fill=ORANGE)
    picture.text(474, 268, f"B：{WIDTH} × {RANK}", size=14, color=ORANGE, bold=True, anchor="start")
    picture.text(474, 290, "从 0 开始", size=12, color=GREY, anchor="start")
    picture.line([(464, 330), (570, 330), (570, 237)], color=ORANGE, arrow=True)
    picture.text(580, 290, "× α/r", size=14, color=ORANGE, anchor="start")

    picture.circle(570, 220, 16, fill=LIGHT[GREEN], stroke=GREEN)
    picture.text(570, 220, "+", size=20, color=GREEN)
    picture.line([(586, 220), (633, 220)], color=GREEN, arrow=True)
    share = f"训练的只有 A 和 B：{trained:,} 个数，是 W 的 {trained / frozen:.1%}"
    picture.text(292, 398, share, size=14, color=ORANGE)
    picture.text(292, 421, "矩阵按比例画：边长 192，厚 8", size=12, color=GREY)
    return picture
