"""十八个字节合并五次：每一行是词表大一个之后的分法。片段由 train_tokenizer 学出，与正文手算的个数相同。"""

from docs.pictures.svg import BLUE, GREEN, GREY, LIGHT, ORANGE, Picture
from utils.text_utils import train_tokenizer

TEXT, NUM_MERGES = "石猴石猴石头", 5
LEFT, BYTE, STEP = 78, 30, 46


def draw() -> Picture:
    picture = Picture(720, 376, "分词：从字节出发，反复合并最常相邻的一对")
    for index, character in enumerate(TEXT):
        picture.text(LEFT + BYTE * 3 * (index + 0.5), 30, character, size=20)
    picture.text(LEFT - 10, 30, "合并次数", size=13, color=GREY, anchor="end")
    picture.text(LEFT + 18 * BYTE + 14, 30, "token 数", size=13, color=GREY, anchor="start")
    for x, color, label in ((180, BLUE, "不成字的字节"), (330, ORANGE, "这次学会的"), (470, GREEN, "早已学会的字")):
        picture.rect(x, 344, 16, 16, fill=LIGHT[color], stroke=color, radius=4)
        picture.text(x + 24, 352, label, size=13, color=GREY, anchor="start")
    previous = set()
    for num_merges in range(NUM_MERGES + 1):
        tokenizer = train_tokenizer(TEXT, 256 + num_merges + 1)
        pieces = [tokenizer.token_bytes(token_id) for token_id in tokenizer.encode(TEXT)]
        _row(picture, 60 + STEP * num_merges, num_merges, pieces, set(pieces) - previous if num_merges else set())
        previous = set(pieces)
    return picture


def _row(picture: Picture, top: float, num_merges: int, pieces: list[bytes], new: set[bytes]) -> None:
    """一行片段，宽度与字节数成正比；刚学会的是橙色，完整的字是绿色，其余是字节。"""
    picture.text(LEFT - 22, top + 17, str(num_merges), color=GREY)
    picture.text(LEFT + 18 * BYTE + 40, top + 17, str(len(pieces)), bold=True)
    x = LEFT
    for piece in pieces:
        width, label = BYTE * len(piece), _label(piece)
        color = ORANGE if piece in new else GREEN if not label.isascii() else BLUE
        picture.rect(x + 1.5, top, width - 3, 34, fill=LIGHT[color], stroke=color, radius=5)
        picture.text(x + width / 2, top + 17, label, size=12 if label.isascii() else 16, mono=label.isascii())
        x += width


def _label(piece: bytes) -> str:
    """完整的字写字，半个字写字节。"""
    try:
        return piece.decode("utf-8")
    except UnicodeDecodeError:
        return piece.hex(" ")
