"""GPT-2 124M 从头到尾，每个部件有多少参数：条的长短就是个数。"""

from docs.pictures.svg import BLUE, GREEN, GREY, LIGHT, ORANGE, PURPLE, Picture
from model.config import ModelConfig, count_parameters

GPT2 = ModelConfig(
    vocab_size=50257, context_length=1024, emb_dim=768, num_heads=12, num_layers=12, drop_rate=0.1, qkv_bias=True
)
# 部件，方框的纵坐标，颜色，条后面的话
ROWS = [
    ("token 嵌入", 50, GREEN, "50,257 × 768"),
    ("位置嵌入", 102, PURPLE, "1,024 × 768"),
    ("注意力", 172, BLUE, "12 ×（4 × 768² + 偏置）"),
    ("前馈", 224, ORANGE, "12 ×（8 × 768² + 偏置）"),
    ("归一化", 294, GREY, "25 × 1,536，其中 24 个在块里"),
    ("输出层", 346, GREEN, "与 token 嵌入是同一个矩阵"),
]
LEFT, WIDTH, HEIGHT = 80, 120, 36
BAR_LEFT, BAR_WIDTH = 262, 250  # 最长的一条


def draw() -> Picture:
    counts = count_parameters(GPT2)
    picture = Picture(720, 430, f"GPT-2 124M 的 {GPT2.num_parameters:,} 个参数在哪里")
    middle = LEFT + WIDTH / 2
    picture.text(middle, 20, "token 编号", size=13)
    picture.text(middle, 414, "下一个 token 的分数", size=13)
    picture.text(BAR_LEFT, 20, f"一共 {GPT2.num_parameters:,} 个参数", size=14, anchor="start", bold=True)
    picture.rect(LEFT - 16, 158, WIDTH + 32, 116, fill=LIGHT[GREY], stroke=GREY, radius=8)
    picture.text(LEFT + WIDTH + 34, 216, "× 12", size=14, bold=True)
    ends = [30, *(top for _, top, _, _ in ROWS), 404]
    for start, end in zip(ends, ends[1:], strict=False):
        begin = start if start == 30 else start + HEIGHT
        picture.line([(middle, begin), (middle, end - 1)], color=GREY, arrow=True)
    for name, top, color, size in ROWS:
        picture.box(LEFT, top, WIDTH, HEIGHT, name, color=color)
        _draw_bar(picture, top, counts[name], max(counts.values()), color=color, size=size)
    picture.line([(LEFT, 364), (36, 364), (36, 68), (LEFT - 1, 68)], color=GREEN, dashed=True, arrow=True)
    for index, character in enumerate("共用"):
        picture.text(20, 198 + 18 * index, character, size=13, color=GREEN)
    return picture


def _draw_bar(picture: Picture, top: float, count: int, longest: int, *, color: str, size: str) -> None:
    """一个部件的条，右边是个数、份额和怎样算出来的。"""
    place = BAR_LEFT
    if count:
        length = max(2, count / longest * BAR_WIDTH)
        picture.rect(BAR_LEFT, top + 6, length, HEIGHT - 12, fill=color)
        place += length + 10
    share = count / GPT2.num_parameters
    words = f"{count:,}（{share:.{1 if share > 0.001 else 2}%}）" if count else "0"
    picture.text(place, top + 10, words, size=13, anchor="start")
    picture.text(place, top + 28, size, size=12, anchor="start", color=GREY)
