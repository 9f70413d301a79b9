"""三种任务是同一个模型、同一个循环，不同的只是损失算在哪些位置。"""

from docs.pictures.svg import BLUE, GREEN, GREY, LIGHT, ORANGE, PURPLE, Picture
from utils.instruction_tuning import encode_turns
from utils.prompt_template import TEMPLATES, Turn

CELL, LEFT = 46, 128
END = 0


class Letters:
    """一个字一个 token 的分词器。"""

    end_of_text_id = END

    def encode(self, text: str) -> list[int]:
        return [ord(character) for character in text]


def draw() -> Picture:
    picture = Picture(720, 460, "预训练、指令微调、分类：损失算在哪些位置")
    text = "悟空一棒打散妖云，笑"
    draw_task(picture, 30, "预训练", list(text[:-1]), list(text[1:]), BLUE)

    token_ids, is_answer = encode_turns([Turn("首字？悟空", "悟")], TEMPLATES["zh"], Letters())
    shown = ["结束" if token_id == END else chr(token_id).replace("\n", "↵") for token_id in token_ids]
    targets = [word if counts else None for word, counts in zip(shown, is_answer, strict=True)]
    draw_task(picture, 168, "指令微调", shown[:-1], targets[1:], GREEN)

    message = list("免息贷款，秒到账")
    draw_task(picture, 306, "分类", message, [None] * (len(message) - 1) + ["垃圾"], ORANGE)
    picture.text(360, 440, "有颜色的位置计损失；灰色的位置照样算，但目标是 IGNORE_INDEX，不计", size=13, color=GREY)
    return picture


def draw_task(picture: Picture, top: float, name: str, inputs: list[str], targets: list[str | None], color) -> None:
    """上面一排是读到的 token，中间是模型，下面一排是各位置的目标，None 是不计损失。"""
    width = CELL * len(inputs)
    picture.text(20, top + 52, name, size=16, bold=True, anchor="start", color=color)
    picture.text(LEFT - 10, top + 14, "读到", size=12, color=GREY, anchor="end")
    picture.text(LEFT - 10, top + 95, "目标", size=12, color=GREY, anchor="end")
    picture.rect(LEFT, top + 40, width, 26, fill=LIGHT[PURPLE], stroke=PURPLE, radius=5)
    picture.text(LEFT + width / 2, top + 53, "同一个模型", size=13, color=PURPLE)
    for index, (given, wanted) in enumerate(zip(inputs, targets, strict=True)):
        x = LEFT + index * CELL
        picture.rect(x + 2, top, CELL - 4, 28, fill=LIGHT[GREY], stroke=GREY, radius=4)
        picture.text(x + CELL / 2, top + 14, given, size=15)
        if wanted is None:
            picture.rect(x + 2, top + 82, CELL - 4, 28, stroke=LIGHT[GREY], radius=4)
            picture.text(x + CELL / 2, top + 96, "不计", size=12, color="#b0b7bf")
        else:
            picture.rect(x + 2, top + 82, CELL - 4, 28, fill=LIGHT[color], stroke=color, radius=4)
            picture.text(x + CELL / 2, top + 96, wanted, size=15 if len(wanted) == 1 else 14, color=color, bold=True)
            picture.line([(x + CELL / 2, top + 66), (x + CELL / 2, top + 81)], color=color, arrow=True)
