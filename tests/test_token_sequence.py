"""utils/token_sequence.py：与真的连成一个张量时一样。"""

import random

import pytest
import torch

from utils.token_sequence import TokenSequence

SIZES = (5, 0, 1, 7, 3)
WHOLE = torch.arange(sum(SIZES), dtype=torch.int32).to(torch.uint16)


@pytest.fixture
def sequence() -> TokenSequence:
    return TokenSequence(list(WHOLE.split(SIZES)))


def test_every_slice_equals_that_of_the_whole(sequence):
    assert len(sequence) == len(WHOLE)
    for start in range(len(WHOLE) + 2):
        for stop in [*range(len(WHOLE) + 3), None]:
            assert sequence[start:stop].tolist() == WHOLE[start:stop].tolist(), (start, stop)
    assert sequence[-4:].tolist() == WHOLE[-4:].tolist()
    assert sequence[:10][3:8][1:].tolist() == WHOLE[4:8].tolist()


def test_taken_out_as_int64(sequence):
    for part in (sequence, sequence[0:3], sequence[4:4]):
        assert part.long().dtype == torch.long


def test_split_gives_blocks_of_the_size(sequence):
    assert [block.tolist() for block in sequence.split(6)] == [block.tolist() for block in WHOLE.split(6)]
    assert list(TokenSequence([]).split(6)) == [] and len(TokenSequence([])) == 0


def test_slice_copies_nothing():
    token_ids = torch.arange(100, dtype=torch.int32)
    view = TokenSequence([token_ids[:50], token_ids[50:]])[10:90]
    token_ids += 1
    assert view.tolist() == list(range(11, 91))


def test_many_parts(sequence):
    chance = random.Random(1)
    whole = torch.randint(0, 65_536, (3000,), dtype=torch.int32)
    cuts = sorted(chance.choices(range(3001), k=200))
    parts = [whole[start:stop] for start, stop in zip([0, *cuts], [*cuts, 3000], strict=True)]
    for _ in range(300):
        start = chance.randrange(3000)
        assert torch.equal(TokenSequence(parts)[start : start + 65].long(), whole[start : start + 65].long())
