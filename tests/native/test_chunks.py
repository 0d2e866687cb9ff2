"""`broker_native.chunks` against its twin: merging, cutting and taking out what has expired."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker_native.chunks import chunk_expire, chunk_sequence_at, merge_chunks
from tests.native.starve import refusals
from tests.reference import chunks as twin
from tests.reference.frames import Record, build_record
from tests.reference.groups import Chunk, build_chunk

CHANNEL = 9
TIME_US = 1_767_225_600_000_000
HOUR_US = 3_600_000_000

records = st.builds(
    Record,
    payload=st.binary(max_size=40),
    time_us=st.integers(0, 3_000_000),
    publisher=st.none() | st.binary(max_size=5),
    number=st.none() | st.integers(0, 2**64 - 1),
    priority=st.none() | st.integers(0, 3),
    expiry_s=st.none() | st.integers(1, 5),
    key=st.none() | st.binary(min_size=1, max_size=5),
    headers=st.none() | st.just(b"\x80"),
)
gones = st.builds(Record, time_us=st.integers(0, 100), gone=st.tuples(st.sampled_from([1, 2, 77]), st.integers(1, 9)))


def chunk_of(epoch: int, first: int, time_us: int, content: list[Record]) -> bytes:
    """Return a chunk; the times of its records ascend."""
    times = sorted(record.time_us for record in content)
    placed = [replace(record, time_us=at) for record, at in zip(content, times, strict=True)]
    items = []
    sequence = first
    for record in placed:
        items.append(twin.Item(sequence, epoch, time_us + record.time_us, record))
        sequence += record.run
    expiries = [item.expires_s for item in items if item.expires_s]
    return build_chunk(
        Chunk(
            CHANNEL, epoch, first, sequence - first, b"".join(map(build_record, placed)), time_us,
            min(expiries, default=0),
        )
    )  # fmt: skip


@st.composite
def histories(draw: st.DrawFn) -> list[bytes]:
    """Consecutive chunks of one channel, of an epoch or two, close together and hours apart."""
    made: list[bytes] = []
    first, time_us, epoch = draw(st.integers(1, 50)), TIME_US, 5
    for content in draw(st.lists(st.lists(records | gones, min_size=1, max_size=6), max_size=6)):
        made.append(chunk_of(epoch, first, time_us, content))
        first += sum(record.run for record in content)
        time_us += 3_000_000 + draw(st.sampled_from([0, 1, HOUR_US, 2 * HOUR_US]))
        epoch += draw(st.sampled_from([0, 0, 0, 1]))
    return made


@given(histories(), st.sampled_from([0, 57, 200, 1900, 1 << 20]), st.integers(0, 120), st.integers(0, 120))
def test_merged_and_cut_as_the_twin(made: list[bytes], bytes_max: int, after: int, until: int) -> None:
    assert merge_chunks(made, bytes_max, after, until) == twin.merge(made, bytes_max, after, until)


@given(histories())
def test_whatever_is_merged_says_the_same(made: list[bytes]) -> None:
    merged = merge_chunks(made, 1 << 20)
    assert [item for chunk in merged for item in twin.items_of(chunk)] != [] or not made
    for before, after in zip(all_items(made), all_items(merged), strict=True):
        assert replace(before, record=replace(before.record, time_us=0)) == replace(
            after, record=replace(after.record, time_us=0)
        )


def all_items(made: list[bytes]) -> list[twin.Item]:
    return [item for chunk in made for item in twin.items_of(chunk)]


@given(histories(), st.integers(0, 20))
def test_what_has_expired_is_gone(made: list[bytes], seconds: int) -> None:
    now_s = TIME_US // 1_000_000 + seconds
    for chunk in made:
        assert chunk_expire(chunk, now_s) == twin.expire(chunk, now_s)


@given(histories(), st.integers(-2, 3_000_001))
def test_the_sequence_of_a_time(made: list[bytes], after_us: int) -> None:
    for chunk in made:
        times = {item.time_us for item in twin.items_of(chunk)}
        for time_us in {TIME_US + after_us, *(time_us + by for time_us in times for by in (-1, 0, 1))}:
            assert chunk_sequence_at(chunk, time_us) == twin.sequence_at(chunk, time_us)


def test_a_chunk_in_which_nothing_has_expired_is_itself() -> None:
    chunk = chunk_of(1, 1, TIME_US, [Record(b"x", expiry_s=5), Record(b"y")])
    assert chunk_expire(chunk, TIME_US // 1_000_000 + 4) is chunk


def test_a_time_that_does_not_fit_begins_another_chunk() -> None:
    far = (1 << 32) - 1
    for apart_us, count in ((far, 1), (far + 1, 2)):
        made = [chunk_of(1, 1, TIME_US, [Record(b"x")]), chunk_of(1, 2, TIME_US + apart_us, [Record(b"y")])]
        merged = merge_chunks(made, 1 << 20)
        assert len(merged) == count
        assert merged == twin.merge(made, 1 << 20)


@pytest.mark.parametrize(
    "chunk",
    [
        b"",
        bytes(56),
        chunk_of(1, 1, TIME_US, [Record(b"x")])[:-1],
        build_chunk(Chunk(CHANNEL, 1, 1, 2, build_record(Record(b"x")), TIME_US, 1)),
        build_chunk(Chunk(CHANNEL, 1, 1, 1, build_record(Record(b"x")) + b"\0", TIME_US, 1)),
        build_chunk(Chunk(CHANNEL, 1, 1, 1, build_record(Record(b"x"), size=99), TIME_US, 1)),
        build_chunk(Chunk(CHANNEL, 1, 1, 1, build_record(Record(gone=(1, 2))), TIME_US, 1)),
        build_chunk(Chunk(CHANNEL, 1, 1, 1, build_record(Record(gone=(1, 0))), TIME_US, 1)),
        build_chunk(Chunk(CHANNEL, 1, 1, 1, build_record(Record(b"abc"), flags=0x8000), TIME_US, 1)),
    ],
)
def test_what_is_no_chunk_is_refused(chunk: bytes) -> None:
    with pytest.raises(ValueError, match="chunk"):
        merge_chunks([chunk], 1 << 20)
    with pytest.raises(ValueError, match="chunk"):
        chunk_expire(chunk, 2)


@pytest.mark.parametrize(
    "chunk",
    [
        b"",
        chunk_of(1, 1, TIME_US, [Record(b"x")])[:-1],
        build_chunk(Chunk(CHANNEL, 1, 1, 2, build_record(Record(b"x")), TIME_US, 1)),
        build_chunk(Chunk(CHANNEL, 1, 1, 1, build_record(Record(gone=(1, 2))), TIME_US, 1)),
    ],
)
def test_no_time_is_looked_for_in_what_is_no_chunk(chunk: bytes) -> None:
    with pytest.raises(ValueError, match="chunk"):
        chunk_sequence_at(chunk, 1 << 62)


def test_fields_that_overrun_their_record_never_expire() -> None:
    for flags, payload in ((0x8, b"abc"), (0x9, b"\xff"), (0x9, b""), (0xA, b"1234567"), (0xC, b"")):
        chunk = build_chunk(Chunk(CHANNEL, 1, 1, 1, build_record(Record(payload), flags=flags), TIME_US, 1))
        assert chunk_expire(chunk, 1 << 40)[56:] == chunk[56:]


def test_want_of_memory_leaves_nothing_behind() -> None:
    made = [chunk_of(1, 1, TIME_US, [Record(bytes(3000), expiry_s=1), Record(b"x")])]
    assert refusals(lambda: lambda: merge_chunks(made, 1 << 20)) > 2
    assert refusals(lambda: lambda: chunk_expire(made[0], 1 << 40)) > 0
