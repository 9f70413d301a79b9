"""许多篇文档怎样分成训练和验证两部分：切在两篇之间，验证部分的任何一篇都没有训练过。"""

from bisect import bisect_right
from dataclasses import dataclass
from itertools import accumulate

from utils.data_loader import split_point
from utils.document_file import DocumentFile, Stretch, is_jsonl
from utils.documents import DocumentCollection

MAX_VALIDATE_CHARACTERS = 2_000_000  # 语料再大，这么多字也足够量准损失；最后要在整个验证部分上算一遍


@dataclass(frozen=True)
class Place:
    """某个文件里的一段。"""

    file: DocumentFile
    stretch: Stretch

    @property
    def ends_document(self) -> bool:
        """这一段的结尾是不是文档之间。"""
        return is_jsonl(self.file.path) or self.stretch.documents == 1


def split_documents(collection: DocumentCollection) -> tuple[list[Place], list[Place]]:
    """-> (训练, 验证)：验证是最后的一成，至多 MAX_VALIDATE_CHARACTERS 字，切口挪到最近的两篇之间。

    最近的也太远（验证部分会不到一半，或多出一倍）时，纯文本就切在一篇当中，JSONL 切在最近的两行之间。
    """
    places = [Place(file, stretch) for file in collection.files for stretch in file.stretches]
    ends = list(accumulate(place.stretch.characters for place in places))
    total = ends[-1]
    wanted = min(total - split_point(total), MAX_VALIDATE_CHARACTERS)
    target = total - wanted
    borders = [index for index, place in enumerate(places) if place.ends_document]
    nearest = min(borders, key=lambda index: abs(ends[index] - target))
    if wanted / 2 <= total - ends[nearest] <= wanted * 2:
        return places[: nearest + 1], places[nearest + 1 :]
    index = bisect_right(ends, target)
    place = places[index]
    if is_jsonl(place.file.path) and place.stretch.documents == 1 and index:  # 很长的一篇，不能从中间切开
        return places[:index], places[index:]
    before, after = place.file.cut(place.stretch, target - (ends[index] - place.stretch.characters))
    first, second = ([Place(place.file, stretch)] if stretch.characters else [] for stretch in (before, after))
    return places[:index] + first, second + places[index + 1 :]
