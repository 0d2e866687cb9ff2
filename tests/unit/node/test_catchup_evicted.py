"""Readers that are behind, while channels are evicted and trimmed under them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from broker.model.errors import error
from broker.node import catchup
from broker_native.delta import TableDelta
from tests.reference.pipeline import payloads
from tests.unit.node.test_catchup import Station, sequences

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from broker.model.errors import BrokerError
    from broker_native.fanout import Subscription

LATER_S = 4_000_000_000


@pytest.fixture
async def station(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Station]:
    """A station whose readers ask the log for all that they have missed, however little it is."""
    monkeypatch.setattr(catchup, "NEAR_MAX", 0)
    station = Station()
    yield station
    station.log.gate.set()
    station.catchup.close()


def evict(station: Station) -> int:
    """Evict everything that may go, and return how many channels went; the log knows the names from now on."""
    core = station.core
    before = core.tails.evicted
    station.writer.publisher.line.holder = station.writer
    for name in core.tails.names():
        station.log.names[core.tails.stored_id(name)] = name
    for slot in station.writer.slots.values():
        station.writer.publisher.bind(slot, None)
    station.writer.slots.clear()
    core.evict(core.applied_number, LATER_S, core.tails.slots)
    return core.tails.evicted - before


def stored(station: Station, name: bytes) -> bytes:
    """What the log has of a channel."""
    delta = TableDelta()
    for value in station.pipeline.journal.replay():
        delta.add(value)
    channel = delta.find_name(name)
    assert channel
    return delta.find_channel(channel)


def watch_trimmed(station: Station) -> list[tuple[bytes, int]]:
    """Write down what subscribers are told of trims."""
    told: list[tuple[bytes, int]] = []

    def on_trimmed(subscription: Subscription, name: bytes, first: int) -> None:
        told.append((name, first))

    station.reader.on_trimmed = on_trimmed  # type: ignore[attr-defined]
    return told


def trim(station: Station, name: bytes, first: int) -> None:
    answers: list[BrokerError | None] = []
    station.core.trim(name, first, answers.append)
    station.pipeline.commit()
    assert answers == [None]


async def test_a_reader_by_the_bus_gets_what_memory_does_not_know(station: Station) -> None:
    for name in (b"s.x", b"s.y", b"a.x"):
        station.publish(name, name)
    assert evict(station) == 3
    following = station.follow_bus(b"s.*")
    assert payloads(await station.live(following)) == [b"s.x", b"s.y"]
    assert sorted(channel for asked in station.log.named for channel in asked) == [1, 2, 3]


async def test_what_was_evicted_and_is_published_again_comes_to_a_live_pattern(station: Station) -> None:
    station.publish(b"s.x", b"1")
    following = station.follow_bus(b"s.>", place=(station.core.applied_number, 2**32 - 1))
    assert following.live
    entries = {name: None for name in station.core.tails.names()}
    assert entries == {b"s.x": None}
    assert evict(station) == 1
    assert not station.core.install_each([stored(station, b"s.x")])
    station.publish(b"s.x", b"2")
    deliveries = station.reader.deliveries()
    assert payloads(deliveries) == [b"2"]
    assert deliveries[0].chunk.first == 2


async def test_the_seam_asks_the_log_for_names_on_the_reader_thread(station: Station) -> None:
    """Between the last slice and the join comes a group of a channel that is evicted at once."""
    station.publish(b"s.x", b"1")
    station.log.gate.clear()
    following = station.follow_bus(b"s.*")
    await station.until(lambda: bool(station.log.asked))
    station.publish(b"s.new", b"2")
    station.publish(b"a.new", b"3")
    evict(station)
    station.log.gate.set()
    assert payloads(await station.live(following)) == [b"1", b"2"]


async def test_names_that_cannot_be_read_lose_the_reader(station: Station) -> None:
    station.publish(b"s.x", b"1")
    evict(station)

    def fail(ids: list[int]) -> list[bytes | None]:
        raise error("STORAGE_CORRUPT", "a page")

    station.log.names_of = fail  # type: ignore[method-assign]
    station.follow_bus(b"s.*")
    await station.until(lambda: bool(station.lost))
    assert "STORAGE_CORRUPT" in str(station.lost[0][1])


async def test_literals_are_held_from_admission_to_leave(station: Station) -> None:
    station.publish(b"s.x", b"1")
    station.log.gate.clear()
    following = station.follow(b"s.x", b"s.none", after={b"s.x": 0})
    evict(station)
    assert sorted(station.core.tails.names()) == [b"s.none", b"s.x"]
    station.log.gate.set()
    assert payloads(await station.live(following)) == [b"1"]
    evict(station)
    assert sorted(station.core.tails.names()) == [b"s.none", b"s.x"]
    station.catchup.leave(following)
    evict(station)
    assert station.core.tails.names() == []


@pytest.mark.parametrize("when", ["before", "while"])
async def test_what_was_trimmed_under_a_reader_is_told(station: Station, when: str) -> None:
    told = watch_trimmed(station)
    for number in range(1, 7):
        station.publish(b"s.x", b"%d" % number)
    if when == "before":
        trim(station, b"s.x", 4)
        following = station.follow(b"s.x", after={b"s.x": 1})
    else:
        station.log.gate.clear()
        following = station.follow(b"s.x", after={b"s.x": 1}, credit=1)
        await station.until(lambda: bool(station.log.asked))
        trim(station, b"s.x", 4)
        station.log.gate.set()
        await station.until(lambda: following.subscription.credit <= 0)
        following.subscription.credit += 1 << 20
        station.catchup.step(following)
    got = sequences(await station.live(following))
    assert got in ([4, 5, 6], [2, 4, 5, 6])
    assert told == [(b"s.x", 4)]


async def test_a_reader_of_what_was_trimmed_whole_becomes_live(station: Station) -> None:
    told = watch_trimmed(station)
    for number in range(1, 4):
        station.publish(b"s.x", b"%d" % number)
    trim(station, b"s.x", 4)
    following = station.follow(b"s.x", after={b"s.x": 0})
    assert await station.live(following) == []
    assert told == [(b"s.x", 4)]
    station.publish(b"s.x", b"4")
    assert sequences(station.reader.deliveries()) == [4]


async def test_a_gap_in_what_the_log_has_is_told(station: Station) -> None:
    """Rows below the first sequence may be gone before or after the channel says so; either is told once."""
    told = watch_trimmed(station)
    for number in range(1, 5):
        station.publish(b"s.x", b"%d" % number)
    read: Callable[..., list[tuple[int, int, bytes]]] = station.log.journal.read_channel
    station.log.journal.read_channel = lambda *asked: read(*asked)[2:]  # type: ignore[method-assign]
    following = station.follow(b"s.x", after={b"s.x": 0})
    assert sequences(await station.live(following)) == [3, 4]
    assert told == [(b"s.x", 3)]


# --- By the bus: what is not archived yet was trimmed or removed ----------------------------------------------------


def drop(station: Station, name: bytes) -> None:
    answers: list[BrokerError | None] = []
    station.core.drop(name, answers.append)
    station.pipeline.commit()
    assert answers == [None]


def let_go(station: Station) -> None:
    """Let the writer name no channel any more, so that channels may be removed."""
    for slot in station.writer.slots.values():
        station.writer.publisher.bind(slot, None)
    station.writer.slots.clear()


@pytest.mark.parametrize("evicted", [False, True])
@pytest.mark.parametrize("filters", [(b"s.*",), (b"s.x", b"s.y")])
async def test_a_reader_by_the_bus_is_told_what_was_trimmed(
    station: Station, filters: tuple[bytes, ...], evicted: bool
) -> None:
    told = watch_trimmed(station)
    station.publish(b"s.x", b"1", b"2", b"3")
    station.publish(b"s.y", b"other")
    station.publish(b"s.x", b"4", b"5")
    trim(station, b"s.x", 3)
    if evicted:
        assert evict(station) == 2
    if b"s.x" in filters:
        for name, channel in zip(filters, station.log.resolve(list(filters)), strict=True):
            assert not station.core.install_each([channel] if station.core.missing([name]) else [])
    following = station.follow_bus(*filters)
    assert payloads(await station.live(following)) == [b"3", b"other", b"4", b"5"]
    assert told == [(b"s.x", 3)]


async def test_a_trim_while_a_slice_is_read_by_the_bus_counts(station: Station) -> None:
    told = watch_trimmed(station)
    for number in range(1, 7):
        station.publish(b"s.x", b"%d" % number)
    station.log.gate.clear()
    following = station.follow_bus(b"s.*")
    await station.until(lambda: bool(station.log.asked))
    trim(station, b"s.x", 5)
    station.log.gate.set()
    assert payloads(await station.live(following)) == [b"5", b"6"]
    assert told == [(b"s.x", 5)]


async def test_what_was_trimmed_whole_is_told_to_a_reader_by_the_bus_once_for_each_trim(station: Station) -> None:
    told = watch_trimmed(station)
    station.publish(b"s.x", b"1")
    station.publish(b"s.x", b"2")
    trim(station, b"s.x", 3)
    following = station.follow_bus(b"s.*")
    assert await station.live(following) == []
    assert told == [(b"s.x", 3)]
    station.publish(b"s.x", b"3")
    assert payloads(station.reader.deliveries()) == [b"3"]


@pytest.mark.parametrize("again", [False, True])
@pytest.mark.parametrize("evicted", [False, True])
async def test_a_reader_by_the_bus_gets_nothing_of_a_removed_channel(
    station: Station, again: bool, evicted: bool
) -> None:
    """Its name may be another channel's by now."""
    told = watch_trimmed(station)
    station.publish(b"s.x", b"removed")
    station.publish(b"s.y", b"kept")
    removed = station.core.tails.stored_id(b"s.x")
    let_go(station)
    drop(station, b"s.x")
    if again:
        station.publish(b"s.x", b"another")
    if evicted:
        evict(station)
    station.log.names[removed] = b"s.x"  # the archive has it still
    following = station.follow_bus(b"s.*")
    assert payloads(await station.live(following)) == [b"kept", b"another"][: 1 + again]
    assert told == []


async def test_a_channel_that_is_removed_while_a_slice_is_read_by_the_bus_is_left_out(station: Station) -> None:
    station.publish(b"s.x", b"removed")
    station.publish(b"s.y", b"kept")
    let_go(station)
    read = station.log.journal.read_groups
    station.log.gate.clear()

    def slowly(*asked: object) -> object:
        found = read(*asked)  # type: ignore[arg-type]
        station.log.gate.wait(10)
        return found

    station.log.read_groups = slowly  # type: ignore[method-assign, assignment]
    following = station.follow_bus(b"s.*")
    drop(station, b"s.x")
    station.log.gate.set()
    assert payloads(await station.live(following)) == [b"kept"]


async def test_the_seam_asks_the_log_what_an_evicted_channel_begins_with(station: Station) -> None:
    """What the newest groups have of it was trimmed, and then it was evicted, while a slice was read."""
    told = watch_trimmed(station)
    station.publish(b"s.x", b"1")
    station.log.gate.clear()
    following = station.follow_bus(b"s.*")
    await station.until(lambda: bool(station.log.asked))
    station.publish(b"s.x", b"2")
    station.publish(b"s.x", b"3")
    trim(station, b"s.x", 3)
    evict(station)
    station.log.gate.set()
    assert payloads(await station.live(following)) == [b"3"]
    assert told == [(b"s.x", 3)]
    assert b"s.x" in station.log.resolved
