"""`broker_native.ring` against a walk over all groups."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker_native.groups import chunks_of, chunks_start
from broker_native.ring import ChunkRing
from tests.native.starve import refusals
from tests.reference import groups as reference

if TYPE_CHECKING:
    from collections.abc import Callable


def build(number: int, firsts: dict[int, int], channels: list[int]) -> bytes:
    """Return a group with a chunk of one or two records for each of the channels, which go on where they were."""
    chunks: list[reference.Chunk] = []
    for channel in channels:
        first = firsts.get(channel, 1)
        count = 1 + (number + channel) % 2
        chunks.append(reference.chunk_of(channel, 1 << 40, first, [b"x"] * count))
        firsts[channel] = first + count
    return reference.build_group(reference.Group(number + 1, number, chunks=tuple(chunks)))


def walk(values: dict[int, bytes], channel: int, after: int) -> list[tuple[int, int, bytes]]:
    return [
        (number, index, chunk)
        for number, value in values.items()
        for index, chunk in chunks_of(value, chunks_start(value), channel, after)
    ]


def found(ring: ChunkRing, values: dict[int, bytes], channel: int, after: int) -> list[tuple[int, int, bytes]]:
    return [
        (number, index, values[number][offset : offset + size])
        for number, index, offset, size in ring.find(channel, after)
    ]


CHANNEL = st.sampled_from([1, 2, 3, 2**40, 2**64 - 1])


@given(st.lists(st.lists(CHANNEL, max_size=6) | st.integers(1, 4), max_size=30), CHANNEL, st.integers(0, 40))
def test_it_finds_what_a_walk_finds(steps: list[list[int] | int], channel: int, after: int) -> None:
    """A step adds a group, or forgets the oldest few."""
    ring, values, firsts = ChunkRing(), {}, {}  # type: ignore[var-annotated]
    number = 0
    for step in steps:
        if isinstance(step, int):
            for gone in list(values)[:step]:
                del values[gone]
            ring.forget(min(values, default=number))
        else:
            values[number] = build(number, firsts, step)
            ring.add(values[number])
            number += 1
        assert found(ring, values, channel, after) == walk(values, channel, after)
    assert ring.groups_end == number
    assert len(ring) == sum(len(walk(values, each, 0)) for each in (1, 2, 3, 2**40, 2**64 - 1))


def test_groups_may_be_skipped() -> None:
    ring, firsts = ChunkRing(), {}  # type: ignore[var-annotated]
    ring.add(build(0, firsts, [7]))
    ring.forget(5)
    assert (len(ring), ring.groups_end) == (0, 5)
    ring.add(build(1, firsts, [7]))
    assert [(group, index) for group, index, _, _ in ring.find(7, 0)] == [(5, 0)]


@pytest.mark.parametrize("chunks", [0, 1, 1023, 1024, 1025, 5000])
def test_it_grows_and_goes_around(chunks: int) -> None:
    ring, firsts = ChunkRing(), {}  # type: ignore[var-annotated]
    for number in range(chunks):
        ring.add(build(number, firsts, [number % 13]))
        ring.forget(max(0, number - 1500))
    assert len(ring) == min(chunks, 1501)
    assert len(ring.find(5, 0)) == sum(number % 13 == 5 for number in range(max(0, chunks - 1501), chunks))


def test_without_memory_a_group_is_added_as_a_whole_or_not() -> None:
    value, rings = build(0, {}, [7, 7]), []

    def prepare() -> Callable[[], object]:
        rings.append(ChunkRing())
        return lambda: rings[-1].add(value)

    assert refusals(prepare) > 0
    assert [len(ring) for ring in rings] == [0] * (len(rings) - 1) + [2]


def test_nothing_is_found_in_an_empty_one() -> None:
    assert ChunkRing().find(1, 0) == []
