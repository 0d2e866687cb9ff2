"""Reading back: every slice size, the seam between sealed and active segments, and readers beside the writer."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from broker.log import reader
from broker.log.segment import SEQUENCE_MAX, Segment
from tests.reference.chains import Chain
from tests.reference.groups import parse_chunk
from tests.unit.log.support import KIB, Opened, last_sequence, opened

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

UNLIMITED = 1 << 40


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Opened, Chain]]:
    """A log with sealed segments, an active one, rare channels, groups without chunks and large chunks."""
    chain = Chain()
    with opened(tmp_path_factory.mktemp("log")) as one:
        for number in range(150):
            if number % 10 == 3:
                one.append(chain)
            if number in (20, 70, 71, 140):
                one.append(chain, [(100, [bytes([number]) * 20_000]), (101, [b"rare"]), (100, [b"x"])])
            one.fill(chain, 1)
        assert one.log.wait_sealed(10)
        assert one.log.stats()["sealed"] >= 3
        yield one, chain


@given(channel=st.sampled_from([1, 2, 3, 7, 100, 101, 999]), after=st.integers(0, 400), size=st.integers(0, 60 * KIB))
@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_channel_slices(stored: tuple[Opened, Chain], channel: int, after: int, size: int) -> None:
    one, chain = stored
    expected = chain.channel(channel, after)
    found = one.log.read_channel(channel, after, size)
    assert found == expected[: len(found)]
    assert bool(found) == bool(expected)
    assert len(found) <= 1 or sum(len(chunk) for _, _, chunk in found) <= size
    if len(found) < len(expected):
        taken = sum(len(chunk) for _, _, chunk in found)
        assert taken + len(expected[len(found)][2]) > size


@given(
    channel=st.sampled_from([1, 2, 7, 100, 101, 999]),
    before=st.integers(1, 700),
    count=st.integers(0, 400),
    size=st.integers(0, 60 * KIB),
)
@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_channel_slices_backwards(
    stored: tuple[Opened, Chain], channel: int, before: int, count: int, size: int
) -> None:
    one, chain = stored
    wanted = [found for found in chain.channel(channel, max(before - 1 - count, 0)) if first_of(found) < before]
    wanted = wanted if count else []
    found = one.log.read_channel_back(channel, before, count, size)
    assert found == wanted[len(wanted) - len(found) :]
    assert bool(found) == bool(wanted)
    taken = sum(len(chunk) for _, _, chunk in found)
    assert len(found) <= 1 or taken <= size
    assert len(found) == len(wanted) or taken + len(wanted[-len(found) - 1][2]) > size
    ahead = one.log.read_channel(channel, max(before - 1 - count, 0), UNLIMITED, before)
    assert ahead == [found for found in chain.channel(channel, max(before - 1 - count, 0)) if first_of(found) < before]


def first_of(found: tuple[int, int, bytes]) -> int:
    return parse_chunk(found[2]).first


@given(channel=st.sampled_from([1, 7, 100, 101]), at=st.integers(0, 1 << 30), by=st.integers(-1, 1))
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_sequences_by_time(stored: tuple[Opened, Chain], channel: int, at: int, by: int) -> None:
    one, chain = stored
    chunks = [parse_chunk(chunk) for _, _, chunk in chain.channel(channel)]
    time_us = chunks[at % len(chunks)].time_us + by
    end = chunks[-1].last + 1
    expected = next((chunk.first for chunk in chunks if chunk.time_us >= time_us), end)
    assert one.log.sequence_at(channel, 1, end, time_us) == expected
    assert one.log.sequence_at(channel, end, end, time_us) == end
    half = end // 2
    assert one.log.sequence_at(channel, half, end, time_us) == max(expected, half)
    assert one.log.sequence_at(channel, 1, half, time_us) == min(expected, half)


def test_a_whole_channel_crosses_the_seam(stored: tuple[Opened, Chain]) -> None:
    one, chain = stored
    for channel in (1, 5, 100, 101):
        for bytes_max in (0, 1, KIB, UNLIMITED):
            assert one.all_of_channel(channel, bytes_max) == chain.channel(channel)


def test_a_slice_that_ends_inside_a_segment_does_not_go_on_in_the_next(tmp_path: Path) -> None:
    """The large chunk has no room, the small one after it would have."""
    chain = Chain()
    with opened(tmp_path) as one:
        one.append(chain, [(1, [b"small"])])
        one.append(chain, [(1, [bytes(50 * KIB)])])
        one.append(chain, [(2, [bytes(30 * KIB)])])
        one.append(chain, [(1, [b"small"])])
        assert one.log.stats()["segments"] == 2
        for bytes_max in (0, 1_000, 51 * KIB, 52 * KIB):
            assert one.all_of_channel(1, bytes_max) == chain.channel(1)
        assert len(one.log.read_channel(1, 0, KIB)) == 1


def test_slices_that_go_on_look_at_no_segment_before(
    stored: tuple[Opened, Chain], monkeypatch: pytest.MonkeyPatch
) -> None:
    one, chain = stored
    looked: list[int] = []
    find = Segment.find

    def count(self: Segment, channel: int, after: int, bytes_max: int, before: int = SEQUENCE_MAX) -> object:
        looked.append(self.ordinal)
        return find(self, channel, after, bytes_max, before)

    monkeypatch.setattr(Segment, "find", count)
    first = one.log.read_channel(2, 0, 3 * KIB)
    looked.clear()
    second = one.log.read_channel(2, last_sequence(first), 3 * KIB)
    assert first + second == chain.channel(2)[: len(first) + len(second)]
    assert looked in ([1], [1, 2])


def test_ends_are_forgotten_and_nothing_is_lost(stored: tuple[Opened, Chain], monkeypatch: pytest.MonkeyPatch) -> None:
    one, chain = stored
    monkeypatch.setattr(reader, "ENDS_MAX", 1)
    for channel in (1, 2, 100):
        assert one.all_of_channel(channel, KIB) == chain.channel(channel)


def test_a_reader_near_the_head_looks_at_few_segments(
    stored: tuple[Opened, Chain], monkeypatch: pytest.MonkeyPatch
) -> None:
    one, chain = stored
    head = chain.channel(1)[-1][2]
    looked: list[int] = []
    find = Segment.find

    def count(self: Segment, channel: int, after: int, bytes_max: int, before: int = SEQUENCE_MAX) -> object:
        looked.append(self.ordinal)
        return find(self, channel, after, bytes_max, before)

    monkeypatch.setattr(Segment, "find", count)
    assert len(one.log.read_channel(1, parse_chunk(head).last - 1, KIB)) == 1
    assert len(set(looked)) == 1


def all_slices(one: Opened, bytes_max: int, wanted: set[int] | None) -> list[tuple[int, int, bytes]]:
    """Read everything in slices, checking each slice's bound and place."""
    place = (0, 0)
    chunks: list[tuple[int, int, bytes]] = []
    while True:
        found, after = one.log.read_groups(*place, bytes_max, wanted)
        assert len(found) <= 1 or sum(len(chunk) for _, _, chunk in found) <= bytes_max
        assert after >= place
        assert all(place < (group, index) or place == (0, 0) for group, index, _ in found)
        assert all((group, index) <= after for group, index, _ in found)
        if after == place:
            assert not found
            return chunks
        chunks += found
        place = after


@pytest.mark.parametrize("bytes_max", [0, 1, 700, 5 * KIB, UNLIMITED])
@pytest.mark.parametrize("wanted", [None, {1, 100}, {101}, {999}, set()])
def test_group_slices(stored: tuple[Opened, Chain], bytes_max: int, wanted: set[int] | None) -> None:
    one, chain = stored
    expected = [item for item in chain.bus() if wanted is None or parse_chunk(item[2]).channel in wanted]
    assert all_slices(one, bytes_max, wanted) == expected


@pytest.mark.parametrize("scan_bytes_max", [1, 10 * KIB])
def test_a_scan_is_bounded_whatever_is_wanted(
    stored: tuple[Opened, Chain], monkeypatch: pytest.MonkeyPatch, scan_bytes_max: int
) -> None:
    one, _ = stored
    monkeypatch.setattr(reader, "SCAN_BYTES_MAX", scan_bytes_max)
    found, place = one.log.read_groups(0, 0, UNLIMITED, {999})
    assert not found
    assert 1 <= place[0] < 20
    assert all_slices(one, UNLIMITED, {101}) == stored[1].channel(101)


def test_every_place_can_be_gone_on_from(stored: tuple[Opened, Chain]) -> None:
    one, chain = stored
    bus = chain.bus()
    for at in range(0, len(bus), 7):
        group, index, _ = bus[at]
        found, _ = one.log.read_groups(group, index, 20 * KIB, None)
        assert found == bus[at + 1 : at + 1 + len(found)]
        assert found or at + 1 == len(bus)
    end = (chain.last, 99)
    assert one.log.read_groups(*end, KIB, None) == ([], end)
    assert one.log.read_groups(chain.last + 5, 0, KIB, None) == ([], (chain.last + 5, 0))


def test_times(stored: tuple[Opened, Chain]) -> None:
    """Group n has the time 1,000,000 + 1,000 n."""
    one, chain = stored
    assert one.log.time_to_group(0) == 1
    for number in range(1, chain.last + 1):
        assert one.log.time_to_group(1_000_000 + 1_000 * number) == number
        assert one.log.time_to_group(1_000_001 + 1_000 * number) == number + 1


def test_times_that_stand_still(tmp_path: Path) -> None:
    chain = Chain()
    with opened(tmp_path) as one:
        for number in range(60):
            chain.time_us = 1_000 * (number // 7)
            one.append(chain, [(1, [bytes(3_000)])])
        for second in range(10):
            expected = next((n + 1 for n in range(60) if 1_000 * (n // 7) + 1_000 >= second * 1_000), 61)
            assert one.log.time_to_group(second * 1_000) == expected


def test_readers_beside_the_writer_and_the_sealer(tmp_path: Path) -> None:
    """Readers that follow the head while segments fill, are sealed and reopened see every chunk once, in order."""
    chain, stop, failures = Chain(), threading.Event(), []

    def follow_channel(one: Opened, channel: int) -> None:
        seen: list[tuple[int, int, bytes]] = []
        stopped = False
        while not stopped:
            stopped = stop.is_set()
            while found := one.log.read_channel(channel, last_sequence(seen), 5 * KIB):
                seen += found
        if seen != chain.channel(channel):
            failures.append(f"channel {channel}")

    def follow_bus(one: Opened) -> None:
        seen: list[tuple[int, int, bytes]] = []
        place, stopped = (0, 0), False
        while not stopped or place[0] < chain.last:
            stopped = stop.is_set()
            found, place = one.log.read_groups(*place, 20 * KIB, None)
            seen += found
        if seen != chain.bus():
            failures.append("bus")

    with opened(tmp_path, segment_bytes=32 * KIB) as one:
        threads = [threading.Thread(target=follow_channel, args=(one, channel)) for channel in (1, 2)]
        threads.append(threading.Thread(target=follow_bus, args=(one,)))
        for thread in threads:
            thread.start()
        try:
            one.fill(chain, 300)
            assert one.log.wait_sealed(20)
        finally:
            stop.set()
            for thread in threads:
                thread.join(30)
        assert not failures
        assert one.log.stats()["sealed"] > 10
