"""Walks over groups and chunks against what their twin parses: where chunks stand, which are wanted, what is cut."""

from __future__ import annotations

import itertools
import struct
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from broker_native import groups as native
from tests.reference import groups as twin
from tests.reference.frames import GONE, Record, build_record, records_of

if TYPE_CHECKING:
    from collections.abc import Callable

some_records = st.builds(
    Record,
    payload=st.binary(max_size=30),
    time_us=st.integers(0, 2**32 - 1),
    publisher=st.none() | st.binary(max_size=5),
    number=st.none() | st.integers(0, 2**64 - 1),
    priority=st.none() | st.integers(0, 3),
    expiry_s=st.none() | st.integers(1, 2**32 - 1),
    key=st.none() | st.binary(min_size=1, max_size=5),
    headers=st.none() | st.just(b"\x80"),
)
gone_runs = st.builds(
    Record,
    time_us=st.integers(0, 2**32 - 1),
    gone=st.tuples(st.integers(1, 5), st.sampled_from([1, 2, 3, 1_000, 2**31])),
)


def chunk_of(channel: int, first: int, records: list[Record], **more: int) -> twin.Chunk:
    count = sum(record.run for record in records)
    return twin.Chunk(channel, 1 << 40, first, count, b"".join(map(build_record, records)), **more)


some_chunks = st.builds(
    chunk_of,
    channel=st.integers(1, 3),
    first=st.integers(1, 1 << 40),
    records=st.lists(some_records | gone_runs, min_size=1, max_size=6).filter(
        lambda records: sum(record.run for record in records) < 2**32
    ),
    time_us=st.integers(0, 2**64 - 1),
    expiry_s=st.integers(0, 2**64 - 1),
)
some_groups = st.builds(
    twin.Group,
    number=st.integers(1, 2**64 - 1),
    predecessor=st.integers(0, 2**64 - 2),
    entries=st.lists(st.builds(twin.Entry, st.integers(0, 2**16 - 1), st.binary(max_size=9)), max_size=3).map(tuple),
    chunks=st.lists(some_chunks, max_size=5).map(tuple),
)


@settings(max_examples=60, deadline=None)
@given(group=some_groups)
def test_chunks_stand_where_the_twin_finds_them(group: twin.Group) -> None:
    value = twin.build_group(group)
    assert native.chain_of(value) == twin.parse_group(value).chain
    start = native.chunks_start(value)
    sizes = [len(twin.build_chunk(chunk)) for chunk in group.chunks]
    offsets = [*itertools.accumulate(sizes, initial=start)]
    assert [native.chunk_offset(value, index) for index in range(len(sizes) + 1)] == offsets
    assert offsets[-1] == len(value)
    with pytest.raises(IndexError):
        native.chunk_offset(value, len(sizes) + 1)


@settings(max_examples=60, deadline=None)
@given(group=some_groups, wanted=st.frozensets(st.integers(1, 3)))
def test_wanted_chunks_come_with_their_index(group: twin.Group, wanted: frozenset[int]) -> None:
    value = twin.build_group(group)
    expected = [(i, twin.build_chunk(chunk)) for i, chunk in enumerate(group.chunks) if chunk.channel in wanted]
    assert native.chunks_in(value, native.chunks_start(value), wanted) == expected


@settings(max_examples=60, deadline=None)
@given(group=some_groups, channel=st.integers(1, 3), data=st.data())
def test_chunks_of_a_channel_past_a_sequence(group: twin.Group, channel: int, data: st.DataObject) -> None:
    own = [chunk for chunk in group.chunks if chunk.channel == channel]
    edges = [edge + by for chunk in own for edge in (chunk.first, chunk.last) for by in (-1, 0, 1)]
    after = data.draw(st.sampled_from([0, *edges]))
    value = twin.build_group(group)
    expected = [
        (index, twin.build_chunk(chunk))
        for index, chunk in enumerate(group.chunks)
        if chunk.channel == channel and chunk.last > after
    ]
    assert native.chunks_of(value, native.chunks_start(value), channel, after) == expected


@given(chunk=some_chunks)
def test_head_of_a_chunk(chunk: twin.Chunk) -> None:
    assert native.chunk_head(twin.build_chunk(chunk)) == (chunk.channel, chunk.epoch, chunk.first, chunk.count)


# --- Cutting -------------------------------------------------------------------------------------------------------


def sequences_of(chunk: twin.Chunk) -> list[tuple[int, int, Record]]:
    """Return (first sequence, last sequence, record) of each record."""
    found, at = [], chunk.first
    for record in records_of(chunk):
        found.append((at, at + record.run - 1, record))
        at += record.run
    return found


def cut_by_twin(chunk: twin.Chunk, after: int) -> twin.Chunk:
    left = []
    for first, last, record in sequences_of(chunk):
        if last > after:
            shorter = record
            if record.gone is not None:
                shorter = replace(record, gone=(record.gone[0], last - max(first, after + 1) + 1))
            left.append(build_record(shorter))
    return replace(chunk, first=after + 1, count=chunk.last - after, records=b"".join(left))


@given(chunk=some_chunks, data=st.data())
def test_a_cut_leaves_what_is_past_it(chunk: twin.Chunk, data: st.DataObject) -> None:
    edges = {edge + by for first, last, _ in sequences_of(chunk) for edge in (first, last) for by in (-2, -1, 0, 1)}
    inside = sorted(edge for edge in edges if chunk.first <= edge < chunk.last)
    assume(inside)
    after = data.draw(st.sampled_from(inside))
    packed = twin.build_chunk(chunk)
    cut = native.chunk_cut(packed, after)
    assert twin.parse_chunk(cut) == cut_by_twin(chunk, after), "and its checksum is its own"
    assert twin.build_chunk(chunk) == packed, "the chunk itself is shared and stays as it is"


def test_a_cut_before_the_chunk_is_the_chunk() -> None:
    chunk = twin.build_chunk(chunk_of(1, 10, [Record(b"a"), Record(b"b")]))
    assert native.chunk_cut(chunk, 9) is chunk
    assert native.chunk_cut(chunk, 0) is chunk


@pytest.mark.parametrize("after", [11, 12, 2**63])
def test_a_cut_that_leaves_nothing_is_a_mistake(after: int) -> None:
    chunk = twin.build_chunk(chunk_of(1, 10, [Record(b"a"), Record(b"b")]))
    with pytest.raises(ValueError, match="sequences 10 to 11, cut after"):
        native.chunk_cut(chunk, after)


@pytest.mark.parametrize(
    ("after", "runs"),
    [(10, [2, 1, 5]), (11, [1, 1, 5]), (12, [1, 5]), (13, [5]), (14, [4]), (17, [1])],
)
def test_a_gone_run_that_is_cut_is_shortened(after: int, runs: list[int]) -> None:
    records = [Record(gone=(2, 3)), Record(b"kept", key=b"k"), Record(gone=(4, 5))]
    chunk = chunk_of(1, 10, records, time_us=5, expiry_s=9)
    cut = twin.parse_chunk(native.chunk_cut(twin.build_chunk(chunk), after))
    assert [record.run for record in records_of(cut)] == runs
    assert [record.gone[0] for record in records_of(cut) if record.gone][-1] == 4, "the reason is kept"
    assert (cut.first, cut.last, cut.epoch, cut.time_us, cut.expiry_s) == (after + 1, 18, chunk.epoch, 5, 9)


def test_a_run_of_the_largest_size() -> None:
    chunk = chunk_of(1, 1, [Record(gone=(5, 2**32 - 1))])
    cut = twin.parse_chunk(native.chunk_cut(twin.build_chunk(chunk), 2**32 - 2))
    assert (cut.first, cut.count) == (2**32 - 1, 1)


@pytest.mark.parametrize(
    "spoil",
    [
        pytest.param(lambda chunk: chunk[:-1], id="shorter than it says"),
        pytest.param(lambda chunk: chunk[:40], id="no header"),
        pytest.param(lambda chunk: chunk[:56] + struct.pack("<I", 11) + chunk[60:], id="a record without its header"),
        pytest.param(lambda chunk: chunk[:56] + struct.pack("<I", 1 << 31) + chunk[60:], id="a record past the end"),
        pytest.param(lambda chunk: chunk[:60] + struct.pack("<H", GONE) + chunk[62:], id="a run without its size"),
        pytest.param(lambda chunk: chunk[:32] + struct.pack("<I", 9) + chunk[36:], id="fewer records than it says"),
    ],
)
def test_a_chunk_that_is_none_is_not_walked(spoil: Callable[[bytes], bytes]) -> None:
    chunk = spoil(twin.build_chunk(chunk_of(1, 10, [Record(b"a"), Record(b"b"), Record(b"c")])))
    with pytest.raises(ValueError, match="chunk: "):
        native.chunk_cut(chunk, 17 if chunk[32] == 9 else 11)


# --- Heads ---------------------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(group=some_groups)
def test_heads_of_all_chunks_by_channel(group: twin.Group) -> None:
    value = twin.build_group(group)
    offset = native.chunks_start(value)
    expected: dict[int, list[tuple[int, int, int, int, int]]] = {}
    for index, chunk in enumerate(group.chunks):
        size = len(twin.build_chunk(chunk))
        expected.setdefault(chunk.channel, []).append((index, chunk.first, chunk.count, offset, size))
        offset += size
    assert native.chunk_heads(value, native.chunks_start(value)) == expected


# --- Conflating ----------------------------------------------------------------------------------------------------

CONFLATED = 7


@settings(max_examples=100, deadline=None)
@given(chunk=some_chunks, keep_last=st.booleans())
def test_a_conflated_chunk_covers_the_same(chunk: twin.Chunk, keep_last: bool) -> None:
    records = records_of(chunk)
    packed = twin.build_chunk(chunk)
    conflated = native.chunk_conflate(packed, keep_last)
    if keep_last and len(records) == 1:
        assert conflated is packed
        return
    kept = records[-1:] if keep_last else []
    gone = Record(gone=(CONFLATED, chunk.count - sum(record.run for record in kept)))
    body = b"".join(build_record(record) for record in [gone, *kept])
    expiry_s = chunk.expiry_s if keep_last else 0
    assert twin.parse_chunk(conflated) == replace(chunk, records=body, expiry_s=expiry_s)


@pytest.mark.parametrize("damage", [b"", bytes(56), bytes(200)])
def test_what_is_no_chunk_is_not_conflated(damage: bytes) -> None:
    with pytest.raises(ValueError, match="chunk: "):
        native.chunk_conflate(damage, True)


def test_a_chunk_that_does_not_cover_its_sequences_is_not_conflated() -> None:
    chunk = chunk_of(1, 10, [Record(b"a"), Record(b"b")])
    for count in (1, 3):
        with pytest.raises(ValueError, match="do not cover"):
            native.chunk_conflate(twin.build_chunk(replace(chunk, count=count + (count == 1) * 4)), True)


def test_a_chunk_that_is_one_gone_run() -> None:
    chunk = twin.parse_chunk(native.chunk_gone(1, 2, 3, 4, 5, CONFLATED))
    assert chunk == replace(chunk_of(1, 3, [Record(gone=(CONFLATED, 4))]), epoch=2, time_us=5)
