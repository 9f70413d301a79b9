"""写八个字：不用缓存每步重算全部，用缓存每步只算新的。"""

from docs.pictures.svg import BLUE, GREY, LIGHT, ORANGE, WHITE, Picture

TOKENS = "齐天大圣到此一游"
CELL = 32


def draw() -> Picture:
    picture = Picture(720, 420, "不用缓存与用缓存，每一步要算哪些 token")
    left = draw_steps(picture, 66, "不用缓存：每步从头算", lambda step, token: token <= step)
    right = draw_steps(picture, 420, "用缓存：每步只算新的", lambda step, token: token == step)
    picture.text(66 + 128, 366, f"1 + 2 + … + 8 = {left} 个 token 通过各层", size=14, color=ORANGE)
    picture.text(420 + 128, 366, f"{right} 个 token 通过各层", size=14, color=ORANGE)
    for x, color, meaning in ((196, ORANGE, "这一步算它的键和值"), (396, BLUE, "从缓存里读它的键和值")):
        picture.rect(x, 391, 14, 14, fill=color if color == ORANGE else LIGHT[color], stroke=color, radius=2)
        picture.text(x + 22, 398, meaning, size=13, color=GREY, anchor="start")
    return picture


def draw_steps(picture: Picture, left: float, title: str, is_computed) -> int:
    """一步一行，一个 token 一列；返回一共算了几个。"""
    picture.text(left + CELL * len(TOKENS) / 2, 28, title, size=16, bold=True)
    count = 0
    for step, _ in enumerate(TOKENS):
        top = 80 + step * CELL
        picture.text(left - 8, top + CELL / 2, f"第 {step + 1} 步", size=12, color=GREY, anchor="end")
        for token, character in enumerate(TOKENS[: step + 1]):
            x, computed = left + token * CELL, is_computed(step, token)
            count += computed
            fill, stroke = (ORANGE, ORANGE) if computed else (LIGHT[BLUE], BLUE)
            picture.rect(x + 1, top + 1, CELL - 2, CELL - 2, fill=fill, stroke=stroke, radius=3)
            picture.text(x + CELL / 2, top + CELL / 2, character, size=15, color=WHITE if computed else BLUE)
    picture.text(left + CELL * len(TOKENS) / 2, 58, "从左到右是 token，从上到下是时间", size=12, color=GREY)
    return count
