"""学习率先升后降；一圈里的六件事。"""

from docs.pictures.svg import BLUE, GREEN, GREY, ORANGE, Axes, Picture
from utils.optimizers import learning_rate_factor

STEPS, WARMUP = 200, 20
ACTIONS = ["取一批", "猜：前向", "损失", "梯度：反向", "裁剪", "挪一步"]


def draw() -> Picture:
    picture = Picture(720, 400, "训练的一圈，和学习率在整个训练里的样子")
    for index, action in enumerate(ACTIONS):
        left = 20 + index * 116
        picture.box(left, 30, 100, 40, action, color=ORANGE if action == ACTIONS[-1] else BLUE)
        if index:
            picture.line([(left - 16, 50), (left - 1, 50)], color=GREY, arrow=True)
    picture.line([(650, 70), (650, 92), (70, 92), (70, 71)], color=GREY, arrow=True)
    picture.text(360, 106, "回到开头，走下一步；这一步挪多远，看下面的学习率", size=13, color=GREY)

    axes = Axes(picture, 70, 160, 600, 180, (0, STEPS), (0, 1.05))
    ticks = {step: str(step) for step in (0, 20, 50, 100, 150, 200)}
    axes.frame("步数", "学习率 ÷ 设定的最大值", ticks, {0: "0", 0.5: "0.5", 1: "1"})
    schedule = [(step, learning_rate_factor(step, WARMUP, step / STEPS)) for step in range(STEPS + 1)]
    axes.curve(schedule[: WARMUP + 1], color=ORANGE, width=3)
    axes.curve(schedule[WARMUP:], color=GREEN, width=3)
    picture.text(150, 285, "预热：先试探着走", size=13, color=ORANGE, anchor="start")
    picture.text(430, 215, "衰减：越走越小，才停得下来", size=13, color=GREEN, anchor="start")
    return picture
