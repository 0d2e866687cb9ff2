"""`broker_native.chunks` against its twin: merging, cutting, taking out what has expired and what is superseded."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from broker_native.chunks import (
    chunk_compact,
    chunk_expire,
    chunk_keys,
    chunk_sequence_at,
    chunks_expire,
    merge_chunks,
)
from tests.native.starve import refusals
from tests.reference import chunks as twin
from tests.reference.frames import Record, build_record
from tests.reference.groups import Chunk, build_chunk, parse_chunk

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


@pytest.mark.parametrize("offset_us", [0, 1, 999_999])
@pytest.mark.parametrize("expiry_s", [1, 2, (1 << 32) - 1])
def test_nothing_expires_before_its_time_or_a_second_after(offset_us: int, expiry_s: int) -> None:
    chunk = chunk_of(1, 1, TIME_US, [Record(b"x", time_us=offset_us, expiry_s=expiry_s)])
    ends_us = TIME_US + offset_us + expiry_s * 1_000_000
    last_s, past_s = (ends_us - 1) // 1_000_000, -(-ends_us // 1_000_000)
    assert chunk_expire(chunk, last_s) is chunk
    (gone,) = twin.items_of(chunk_expire(chunk, past_s))
    assert gone.record.gone == (1, 1)
    assert chunk_expire(chunk_expire(chunk, past_s), 1 << 40) == chunk_expire(chunk, past_s)


def test_a_run_of_what_has_expired_ends_at_what_has_not() -> None:
    content = [Record(b"a", expiry_s=1), Record(b"b", expiry_s=1), Record(b"c"), Record(b"d", expiry_s=1)]
    chunk = chunk_of(1, 7, TIME_US, [*content, Record(gone=(1, 5)), Record(b"e", expiry_s=9)])
    items = twin.items_of(chunk_expire(chunk, TIME_US // 1_000_000 + 1))
    assert [(item.sequence, item.record.gone or item.record.payload) for item in items] == [
        (7, (1, 2)), (9, b"c"), (10, (1, 1)), (11, (1, 5)), (16, b"e"),
    ]  # fmt: skip


@settings(max_examples=30)
@given(histories(), st.integers(0, 20), st.binary(max_size=9))
def test_expired_one_behind_the_other(made: list[bytes], seconds: int, before: bytes) -> None:
    now_s = TIME_US // 1_000_000 + seconds
    value = before + b"".join(made)
    assert chunks_expire(value, len(before), now_s) == b"".join(twin.expire(chunk, now_s) for chunk in made)


@pytest.mark.parametrize("value", [b"x", bytes(56), chunk_of(1, 1, TIME_US, [Record(b"x")])[:-1]])
def test_what_are_no_chunks_is_refused(value: bytes) -> None:
    with pytest.raises(ValueError, match="chunks: none stands at offset 0"):
        chunks_expire(value, 0, 1)


# -- by key ------------------------------------------------------------------------------------------------------------

keyed = st.builds(
    Record,
    payload=st.sampled_from([b"", b"x", b"longer"]),
    time_us=st.integers(0, 3_000_000),
    publisher=st.none() | st.binary(max_size=5),
    number=st.none() | st.integers(0, 2**64 - 1),
    priority=st.none() | st.integers(0, 3),
    expiry_s=st.none() | st.integers(1, 5),
    key=st.none() | st.sampled_from([b"a", b"b", b"c" * 255]),
    headers=st.none() | st.just(b"\x80"),
)


@st.composite
def keyed_histories(draw: st.DrawFn) -> list[bytes]:
    """Consecutive chunks of one channel whose records share few keys."""
    made: list[bytes] = []
    first, time_us = 1, TIME_US
    for content in draw(st.lists(st.lists(keyed | gones, min_size=1, max_size=6), max_size=6)):
        made.append(chunk_of(5, first, time_us, content))
        first += sum(record.run for record in content)
        time_us += 3_000_000
    return made


@settings(max_examples=50)
@given(keyed_histories(), st.dictionaries(st.sampled_from([b"a", b"b", b"c" * 255]), st.integers(1, 40)),
       st.integers(TIME_US - 1, TIME_US + 12_000_000))  # fmt: skip
def test_compacted_as_the_twin(made: list[bytes], latest: dict[bytes, int], deleted_until_us: int) -> None:
    for chunk in made:
        assert chunk_keys(chunk) == twin.keys(chunk)
        compacted = chunk_compact(chunk, latest, deleted_until_us)
        assert compacted == twin.compact(chunk, latest, deleted_until_us)
        assert chunk_compact(compacted, latest, deleted_until_us) is compacted


@settings(max_examples=50)
@given(keyed_histories(), st.integers(TIME_US - 1, TIME_US + 12_000_000))
def test_of_each_key_the_latest_stays_and_everything_without_one(made: list[bytes], deleted_until_us: int) -> None:
    latest = {key: sequence for chunk in made for key, sequence, _, _ in chunk_keys(chunk)}
    before = all_items(made)
    after = all_items([chunk_compact(chunk, latest, deleted_until_us) for chunk in made])
    expected = [
        (item.sequence, item.record.payload)
        for item in before
        if item.record.gone is None
        and (
            item.record.key is None
            or (
                latest[item.record.key] == item.sequence
                and (item.record.payload or item.time_us > deleted_until_us)
            )
        )
    ]  # fmt: skip
    assert [(item.sequence, item.record.payload) for item in after if item.record.gone is None] == expected
    assert sum(item.record.run for item in after) == sum(item.record.run for item in before)


def test_a_chunk_in_which_every_key_is_the_latest_is_itself() -> None:
    chunk = chunk_of(1, 5, TIME_US, [Record(b"x", key=b"a"), Record(b"", key=b"b"), Record(b"y")])
    assert chunk_compact(chunk, {b"a": 5, b"b": 6}, TIME_US - 1) is chunk
    assert chunk_compact(chunk, {}, TIME_US) is chunk
    assert chunk_compact(chunk, {b"a": 4}, TIME_US) is chunk
    assert twin.items_of(chunk_compact(chunk, {b"a": 5, b"b": 6}, TIME_US))[1].record.gone == (2, 1)


@pytest.mark.parametrize("headers", [None, b"\x80"])
def test_a_key_is_deleted_by_no_payload_whatever_else_there_is(headers: bytes | None) -> None:
    chunk = chunk_of(1, 1, TIME_US, [Record(b"", key=b"a", priority=0, expiry_s=1, number=3, headers=headers)])
    assert chunk_keys(chunk) == [(b"a", 1, TIME_US, True)]


def test_fields_that_overrun_their_record_have_no_key() -> None:
    for flags, payload in (
        (0x10, b""), (0x10, b"\1"), (0x10, b"\4\0abc"), (0x11, b"\xff\1\0a"), (0x1A, b"12345678901\1"),
    ):  # fmt: skip
        chunk = build_chunk(Chunk(CHANNEL, 1, 1, 1, build_record(Record(payload), flags=flags), TIME_US))
        assert chunk_keys(chunk) == []
        assert chunk_compact(chunk, {b"a": 9}) is chunk
    for payload in (b"\1\0a", b"\1\0a\1", b"\1\0a\4\0abc"):
        chunk = build_chunk(Chunk(CHANNEL, 1, 1, 1, build_record(Record(payload), flags=0x30), TIME_US))
        assert chunk_keys(chunk) == [(b"a", 1, TIME_US, False)]


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
    with pytest.raises(ValueError, match="chunk"):
        chunk_compact(chunk, {})
    with pytest.raises(ValueError, match="chunk"):
        chunk_keys(chunk)


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
    made = [chunk_of(1, 1, TIME_US, [Record(bytes(3000), key=b"a"), Record(b"x")])]
    assert refusals(lambda: lambda: chunk_compact(made[0], {b"a": 2})) > 0


def test_chunks_of_two_epochs_are_not_merged() -> None:
    made = [chunk_of(1, 1, TIME_US, [Record(b"a")]), chunk_of(2, 2, TIME_US, [Record(b"b")])]
    assert merge_chunks(made, 1 << 20) == made == twin.merge(made, 1 << 20)


def test_a_chunk_covers_no_more_than_it_can_count() -> None:
    """Runs of what is gone may be as long as any, and a chunk counts its sequences with 32 bits."""
    most = (1 << 32) - 1
    made = [
        chunk_of(1, 1, TIME_US, [Record(gone=(5, most - 3))]),
        chunk_of(1, most - 2, TIME_US, [Record(gone=(5, 3)), Record(gone=(5, 2))]),
    ]
    merged = merge_chunks(made, 1 << 20)
    assert merged == twin.merge(made, 1 << 20)
    assert [(chunk.first, chunk.count) for chunk in map(parse_chunk, merged)] == [(1, most), (most + 1, 2)]


@pytest.mark.parametrize(("after", "until"), [(5, 5), (7, 5), (0, 0), (10, 20)])
def test_of_a_run_nothing_is_left_between_the_same_sequences(after: int, until: int) -> None:
    made = [chunk_of(1, 1, TIME_US, [Record(gone=(5, 10))])]
    assert merge_chunks(made, 1 << 20, after, until) == []


def test_what_was_taken_of_a_chunk_is_not_taken_again() -> None:
    """A chunk whose first record begins a chunk of its own, behind what was cut off before it."""
    made = [
        chunk_of(1, 1, TIME_US, [Record(bytes(100)), Record(bytes(100))]),
        chunk_of(1, 3, TIME_US - 5, [Record(bytes(100)), Record(bytes(100))]),
        chunk_of(1, 5, TIME_US, [Record(bytes(100)), Record(bytes(100)), Record(bytes(100))]),
    ]
    for bytes_max in (0, 170, 290, 410, 1 << 20):
        for after in range(8):
            assert merge_chunks(made, bytes_max, after) == twin.merge(made, bytes_max, after)


def test_a_time_that_goes_back_within_a_chunk_is_no_chunk_of_ours() -> None:
    """Times ascend; the front of a chunk would have to be another's, if they did not."""
    content = b"".join(
        build_record(Record(payload, time_us=at, expiry_s=1)) for payload, at in ((b"a", 9), (b"b", 3), (b"c", 1))
    )
    chunk = build_chunk(Chunk(CHANNEL, 1, 1, 3, content, TIME_US, TIME_US // 1_000_000 + 1))
    assert [(part.first, part.count) for part in map(parse_chunk, merge_chunks([chunk], 1 << 20))] == [
        (1, 1), (2, 1), (3, 1),
    ]  # fmt: skip
    content = build_record(Record(b"kept", time_us=9)) + build_record(Record(b"gone", time_us=3, expiry_s=1))
    with pytest.raises(ValueError, match="do not cover"):
        chunk_expire(build_chunk(Chunk(CHANNEL, 1, 1, 2, content, TIME_US, 1)), 1 << 40)


@settings(max_examples=150)
@given(histories(), st.lists(st.tuples(st.integers(0, 1 << 16), st.integers(0, 255)), min_size=1, max_size=4))
def test_whatever_stands_in_a_chunk_nothing_is_read_past_its_end(
    made: list[bytes], changes: list[tuple[int, int]]
) -> None:
    """Records under a right checksum that are none: refused, or taken as what they say."""
    if not made:
        return
    changed = bytearray(made[0])
    for at, byte in changes:
        changed[28 + at % (len(changed) - 28)] = byte
    chunk = bytes(changed)
    for call in (
        lambda: merge_chunks([chunk, *made[1:]], 200),
        lambda: chunk_expire(chunk, 1 << 40),
        lambda: chunk_keys(chunk),
        lambda: chunk_compact(chunk, {b"a": 1 << 40}),
        lambda: chunk_sequence_at(chunk, TIME_US),
    ):
        with suppress(ValueError):
            call()
