"""训练词表用的文字：训练部分的全部；太长时均匀地取若干段，所以再大的语料也只占这么多内存。"""

from contextlib import closing

from utils.document_file import DocumentReader
from utils.document_split import Place
from utils.text_file import TextFile

VOCABULARY_CHARACTERS = 3_000_000  # 训练词表最多用这么多字：再多，词表几乎不变，内存却要涨几百 MB
VOCABULARY_PIECES = 100  # 训练部分更长时，均匀地取这么多段


def text_from_file(source: TextFile, boundary: int) -> str:
    """取自第 boundary 个字符之前；太长时取的各段合起来是 VOCABULARY_CHARACTERS 字。"""
    if boundary <= VOCABULARY_CHARACTERS:
        return "".join(source.pieces(0, boundary))
    starts = [boundary * index // VOCABULARY_PIECES for index in range(VOCABULARY_PIECES)]
    length = VOCABULARY_CHARACTERS // VOCABULARY_PIECES
    return "".join(piece for start in starts for piece in source.pieces(start, start + length))


def text_from_documents(places: list[Place]) -> str:
    """同上，取自许多篇文档：各段均匀地分成若干组，每组取开头；文档之间换行。"""
    count = min(VOCABULARY_PIECES, len(places))
    is_short = sum(place.stretch.characters for place in places) <= VOCABULARY_CHARACTERS
    quota = VOCABULARY_CHARACTERS if is_short else VOCABULARY_CHARACTERS // count
    groups = [places[len(places) * index // count : len(places) * (index + 1) // count] for index in range(count)]
    with closing(DocumentReader()) as reader:
        return "".join(_beginning(reader, group, quota) for group in groups)


def _beginning(reader: DocumentReader, places: list[Place], quota: int) -> str:
    """开头的大约 quota 个字。"""
    texts, size = [], 0
    for place in places:
        for pieces, ends in reader.documents(place.file, place.stretch):
            for piece in pieces:
                texts.append(piece[: quota - size])
                size += len(texts[-1])
                if size >= quota:
                    return "".join(texts)
            if ends:
                texts.append("\n")
    return "".join(texts)
