"""断电可以在任何一刻：直接覆盖会两头落空，先写临时文件再改名总有一份完好的。"""

from docs.pictures.svg import BLUE, GREEN, GREY, LIGHT, RED, Picture

LEFT, STEP = 116, 116
STAGES = ("写", "fsync", "读回比较", "改名", "同步文件夹")


def draw() -> Picture:
    picture = Picture(720, 424, "直接覆盖，和先写临时文件再改名")
    picture.text(20, 28, "直接覆盖", size=16, bold=True, anchor="start")
    bar(
        picture,
        62,
        "model.pth",
        [(0, 1, "旧的", GREEN), (1, 3, "写到一半：旧的没了，新的还没有", RED), (3, 5, "新的", BLUE)],
    )
    picture.line([(LEFT + 2 * STEP, 48), (LEFT + 2 * STEP, 61)], color=RED, arrow=True, width=2)
    picture.text(LEFT + 2 * STEP, 40, "此时断电：什么都没有了", size=13, color=RED)

    picture.line([(20, 122), (700, 122)], color="#e4e7eb")
    picture.text(20, 150, "先写临时文件，再改名", size=16, bold=True, anchor="start")
    for index, stage in enumerate(STAGES):
        center = LEFT + (index + 0.5) * STEP
        picture.box(center - 48, 176, 96, 32, stage, color=GREY, size=13)
        if index:
            picture.line([(center - STEP + 48, 192), (center - 49, 192)], color=GREY, arrow=True)
    bar(picture, 234, "临时文件", [(0, 1, "写到一半", RED), (1, 3, "写完了，等着核对", BLUE)])
    bar(picture, 290, "model.pth", [(0, 3.5, "旧的，完好", GREEN), (3.5, 5, "新的，完好", BLUE)])
    picture.line([(LEFT + 3 * STEP, 252), (LEFT + 3.5 * STEP, 252), (LEFT + 3.5 * STEP, 289)], color=BLUE, arrow=True)
    picture.text(LEFT + 3.5 * STEP + 10, 262, "os.replace：一瞬间换过来", size=12, color=BLUE, anchor="start")
    for index in range(5):
        x = LEFT + (index + 0.5) * STEP
        state, color = ("剩下旧的", GREEN) if index < 3 else ("旧的或新的", BLUE) if index == 3 else ("剩下新的", BLUE)
        picture.line([(x, 362), (x, 327)], color=color, arrow=True, dashed=True)
        picture.text(x, 374, state, size=13, color=color)
    picture.text(20, 374, "此时断电", size=13, color=GREY, anchor="start")
    picture.text(360, 404, "时间从左到右。任何一刻停下，model.pth 都是完好的一份", size=13, color=GREY)
    return picture


def bar(picture: Picture, top: float, name: str, parts: list[tuple[float, float, str, str]]) -> None:
    """一个文件在时间里的样子：(从第几步, 到第几步, 状态, 颜色)。"""
    picture.text(LEFT - 12, top + 18, name, size=13, anchor="end", mono=name.isascii())
    for start, end, state, color in parts:
        picture.rect(LEFT + start * STEP, top, (end - start) * STEP, 36, fill=LIGHT[color], stroke=color, radius=4)
        picture.text(LEFT + (start + end) / 2 * STEP, top + 18, state, size=13, color=color)
