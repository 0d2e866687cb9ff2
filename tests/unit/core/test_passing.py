"""The newest ephemeral chunks: what the ring has, and whether it reaches back far enough."""

from __future__ import annotations

from broker.core.passing import Passing
from tests.reference.frames import Record, build_record
from tests.reference.groups import Chunk, build_chunk


def chunk(channel: int, first: int) -> bytes:
    return build_chunk(Chunk(channel, 1, first, 1, build_record(Record(bytes(32)))))


def test_what_has_come_since_a_chunk_of_a_turn() -> None:
    passing = Passing(1 << 20)
    chunks = [chunk(2, 1), chunk(1, 1), chunk(2, 2), chunk(1, 2)]
    passing.add(5, chunks[0] + chunks[1] + chunks[2])
    passing.add(6, chunks[3])
    for index in range(4):
        assert [one for _, one in passing.since(5, index)] == chunks[index:]
    assert passing.since(5, 1)[0] == (1, chunks[1])
    assert passing.since(7, 0) == []
    assert [passing.reaches(turn) for turn in (4, 5, 6, 7)] == [False, True, True, True]


def test_the_oldest_turns_make_room_and_the_newest_stays() -> None:
    passing = Passing(250)
    assert passing.reaches(0)
    for turn in range(1, 5):
        passing.add(turn, chunk(1, turn))
    assert [passing.reaches(turn) for turn in (2, 3)] == [False, True]
    passing.add(5, chunk(1, 5) * 5)
    assert (passing.reaches(4), passing.reaches(5)) == (False, True)
    assert len(passing.since(0, 0)) == 5
    assert passing.size_bytes == 500
    passing.clear()
    assert (passing.since(0, 0), passing.size_bytes, passing.reaches(0)) == ([], 0, True)
