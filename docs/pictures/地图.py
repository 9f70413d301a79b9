"""课程的地图：一段文字走过整个模型，再去训练或写字；每一站标着讲它的那一章。"""

from docs.pictures.svg import BLUE, GREEN, GREY, INK, LIGHT, ORANGE, PURPLE, WHITE, Picture

# 课程的各章，次序就是号码；docs/README.md 的表与它相同
CHAPTERS = (
    *("分词", "嵌入与位置", "注意力", "多头", "前馈与激活", "归一化与残差", "语言模型与参数量"),
    *("损失与困惑度", "反向传播与优化器", "学习率与训练循环", "评估与过拟合", "采样", "KV缓存"),
    *("微调", "LoRA", "数值精度与速度", "可靠性"),
)
TRAINING = (("损失：猜得有多差", "损失与困惑度"), ("梯度：往哪边挪", "反向传播与优化器"))
TRAINING += (("挪一步，再来一圈", "学习率与训练循环"), ("没见过的文字上怎样", "评估与过拟合"))
WRITING = (("按分数抽一个 token", "采样"), ("接在后面，再猜下一个", "KV缓存"))


def draw() -> Picture:
    picture = Picture(720, 670, "从文字到损失和续写，每一步在哪一章")
    for x, lines, color in (
        (24, ("文字", "齐天大圣"), GREY),
        (290, ("token", "一串编号"), BLUE),
        (556, ("向量", "每个 token 一个"), BLUE),
    ):
        picture.box(x, 24, 140, 54, *lines, color=color, size=15)
    for x, chapter in ((227, "分词"), (493, "嵌入与位置")):
        picture.line([(x - 63, 62), (x + 62, 62)], color=GREY, arrow=True)
        tag(picture, x, 42, chapter)
    draw_block(picture)
    picture.line([(676, 196), (676, 378), (655, 378)], color=GREY, arrow=True)
    picture.box(594, 358, 60, 40, "归一化", color=GREY, size=13)
    picture.line([(594, 378), (571, 378)], color=GREY, arrow=True)
    picture.box(486, 354, 84, 48, "输出层", "与每个 token 比", color=BLUE, size=13)
    picture.line([(486, 378), (451, 378)], color=GREY, arrow=True)
    picture.box(270, 352, 180, 52, "logits", "词表里每个 token 一个分数", color=BLUE, size=15)
    tag(picture, 160, 378, "语言模型与参数量")
    draw_use(picture, (24, 376), "训练：对照真正的下一个", TRAINING, ORANGE)
    draw_use(picture, (420, 276), "写字：不知道下一个", WRITING, GREEN)
    picture.line([(330, 404), (330, 418), (212, 418), (212, 433)], color=GREY, arrow=True)
    picture.line([(390, 404), (390, 418), (558, 418), (558, 433)], color=GREY, arrow=True)
    picture.text(436, 588, "学一件新的事", size=13, color=GREY, anchor="start")
    tag(picture, 560, 588, "微调")
    tag(picture, 640, 588, "LoRA")
    picture.text(436, 616, "算得快", size=13, color=GREY, anchor="start")
    tag(picture, 600, 616, "数值精度与速度")
    picture.text(436, 644, "断不掉，坏不了", size=13, color=GREY, anchor="start")
    tag(picture, 600, 644, "可靠性")
    return picture


def draw_block(picture: Picture) -> None:
    """一个块：残差流一直向右，注意力和前馈各从它读、往它上面加；后面还叠着几个同样的块。"""
    picture.line([(626, 78), (626, 104), (60, 104), (60, 196), (80, 196)], color=GREY)
    for offset in (10, 5, 0):
        picture.rect(76 + offset, 128 - offset, 580, 200, fill=LIGHT[PURPLE], stroke=PURPLE, radius=8)
    picture.text(96, 150, "同样的块，叠 N 层", size=14, color=PURPLE, bold=True, anchor="start")
    picture.line([(60, 196), (676, 196)], color=INK, width=2)
    for start, name, about, chapters in (
        (100, "注意力", "token 之间交换信息", ("注意力", "多头")),
        (386, "前馈", "每个 token 自己想", ("前馈与激活",)),
    ):
        end = start + 244
        picture.line([(start, 196), (start, 250), (start + 15, 250)], color=PURPLE, arrow=True)
        picture.box(start + 16, 230, 60, 40, "归一化", color=GREY, size=13)
        picture.line([(start + 76, 250), (start + 91, 250)], color=PURPLE, arrow=True)
        picture.box(start + 92, 226, 132, 48, name, about, color=PURPLE)
        picture.line([(start + 224, 250), (end, 250), (end, 207)], color=PURPLE, arrow=True)
        picture.circle(end, 196, 10, fill=WHITE, stroke=INK)
        picture.text(end, 196, "+", size=16)
        for index, chapter in enumerate(chapters):
            tag(picture, start + 158 + (index - (len(chapters) - 1) / 2) * 88, 298, chapter)
    tag(picture, 366, 150, "归一化与残差")
    picture.text(440, 150, "残差流：只加，不换", size=12, color=GREY, anchor="start")


def draw_use(picture: Picture, span: tuple[float, float], title: str, rows, color: str) -> None:
    """分数的一种用处：几步从上到下，右边是讲它的章。"""
    left, width = span
    picture.rect(left, 434, width, 44 + 42 * len(rows), stroke=color, radius=8)
    picture.text(left + 14, 454, title, size=14, color=color, bold=True, anchor="start")
    for index, (step, chapter) in enumerate(rows):
        top = 472 + 42 * index
        box_width = 156 if width > 300 else 150
        picture.box(left + 14, top, box_width, 32, step, color=color, size=13)
        if index:
            picture.line([(left + 14 + box_width / 2, top - 10), (left + 14 + box_width / 2, top - 1)], color=color)
        tag(picture, left + 14 + box_width + (width - 14 - box_width) / 2, top + 16, chapter)


def tag(picture: Picture, x: float, y: float, chapter: str) -> None:
    """章的号码和名字，中心在 (x, y)。"""
    number = str(CHAPTERS.index(chapter) + 1)
    width = 34 + sum(13 if character > "⺀" else 8 for character in chapter)
    picture.rect(x - width / 2, y - 12, width, 24, fill=WHITE, stroke=BLUE, radius=12)
    picture.circle(x - width / 2 + 12, y, 12, fill=BLUE)
    picture.text(x - width / 2 + 12, y, number, size=12, color=WHITE, bold=True)
    picture.text(x - width / 2 + 28, y, chapter, size=13, color=BLUE, anchor="start")
