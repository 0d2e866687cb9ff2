"""Readers that are behind, on a real loop and a real reader thread, over a journal in memory.

The log answers when the test lets it, so that everything that can happen while a slice is read can be made to happen.
"""

from __future__ import annotations

import asyncio
import itertools
import threading
from typing import TYPE_CHECKING

import pytest

from broker.model.errors import error
from broker.model.levels import Level
from broker.model.limits import Limits
from broker.model.names import matches
from broker.model.profiles import Profile, Profiles
from broker.node import catchup
from broker.node.catchup import (
    INDEX_END,
    KNOWN_MAX,
    QUEUED_BYTES_MAX,
    QUEUED_SHARE,
    SHARE_BYTES,
    SLICE_US_MAX,
    CatchUp,
    Following,
    Wanted,
    WantedThere,
)
from broker_native.delta import TableDelta
from broker_native.groups import chunk_conflate
from tests.reference.frames import DELIVER_EARLY, Delivery, records_of
from tests.reference.journal import Fate, MemoryJournal
from tests.reference.pipeline import PLENTY, Connection, Pipeline, payloads

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Container

    from broker_native.fanout import Subscription


class GatedLog:
    """The journal as readers see it; each slice is read when the test opens the gate, if it is shut."""

    def __init__(self, journal: MemoryJournal) -> None:
        self.journal = journal
        self.gate = threading.Event()
        self.gate.set()
        self.failure: BaseException | None = None
        self.asked: list[tuple[int, ...]] = []
        self.names: dict[int, bytes] = {}
        self.named: list[list[int]] = []
        self.resolved: list[bytes] = []

    @property
    def settled_group(self) -> int:
        return 0

    def resolve(self, names: list[bytes]) -> list[bytes]:
        """What the log has of channels: all that the journal says."""
        self._pass()
        self.resolved += names
        delta = TableDelta()
        for value in self.journal.replay():
            delta.add(value)
        found = [delta.find_name(name) for name in names]
        return [delta.find_channel(channel) if channel and channel > 0 else b"" for channel in found]

    def resolve_lines(self, producers: list[bytes]) -> list[bytes]:
        raise AssertionError(f"nobody asks for the lines of {producers}")

    def names_of(self, ids: list[int]) -> list[bytes | None]:
        self._pass()
        self.named.append(ids)
        return [self.names.get(channel) for channel in ids]

    def read_channel(
        self, channel_id: int, after_sequence: int, bytes_max: int, before_sequence: int = 0
    ) -> list[tuple[int, int, bytes]]:
        self._pass(channel_id, after_sequence, bytes_max)
        return self.journal.read_channel(channel_id, after_sequence, bytes_max, before_sequence)

    def read_channel_back(
        self, channel_id: int, before_sequence: int, count: int, bytes_max: int
    ) -> list[tuple[int, int, bytes]]:
        self._pass(channel_id, before_sequence, count, bytes_max)
        return self.journal.read_channel_back(channel_id, before_sequence, count, bytes_max)

    def sequence_at(self, channel_id: int, first: int, next_sequence: int, time_us: int) -> int:
        self._pass(channel_id, first, next_sequence, time_us)
        return self.journal.sequence_at(channel_id, first, next_sequence, time_us)

    def read_groups(
        self, after_group: int, after_index: int, bytes_max: int, wanted: Container[int] | None
    ) -> tuple[list[tuple[int, int, bytes]], tuple[int, int]]:
        self._pass(after_group, after_index, bytes_max)
        return self.journal.read_groups(after_group, after_index, bytes_max, wanted)

    def time_to_group(self, time_us: int) -> int:
        self._pass(time_us)
        return self.journal.time_to_group(time_us)

    def _pass(self, *asked: int) -> None:
        self.asked.append(asked)
        assert self.gate.wait(10)
        if self.failure is not None:
            raise self.failure


class Station:
    """A pipeline, a reader's connection, and what catches it up."""

    def __init__(self) -> None:
        self.pipeline = Pipeline()
        self.core = self.pipeline.core
        self.log = GatedLog(self.pipeline.journal)
        self.lost: list[tuple[Subscription, BaseException]] = []
        self.kicks = 0
        self.now_us = 0
        self.send_us = 0
        self.sends = 0
        self.catchup = CatchUp(
            self.core,
            self.log,
            asyncio.get_running_loop(),
            self.kick,
            self.send,
            lambda: self.now_us,
            lambda subscription, failure: self.lost.append((subscription, failure)),
        )
        self.writer = Connection(self.core)
        self.reader = Connection(self.core, None)
        self._subscriptions = 0

    def kick(self) -> None:
        self.kicks += 1

    def send(self) -> None:
        self.sends += 1
        self.now_us += self.send_us
        self.core.fanout.flush()

    def publish(self, name: bytes, *payloads: bytes) -> None:
        """Publish and commit."""
        self.writer.publish(name, *payloads)
        self.pipeline.commit()

    def follow(self, *literals: bytes, after: dict[bytes, int] | None = None, credit: int = PLENTY) -> Following:
        """Read literals: those in `after` from there, the others from now on."""
        for name in literals:
            self.core.load(name)
        following = Following(self._subscription(credit), list(literals), [])
        following.after = dict(after or {})
        self.catchup.follow(following)
        return following

    def follow_bus(self, *filters: bytes, place: tuple[int, int] = (0, 0), credit: int = PLENTY) -> Following:
        """Read everything that the filters reach, after a place."""
        literals = [wanted for wanted in filters if b"*" not in wanted and b">" not in wanted]
        patterns = [wanted for wanted in filters if wanted not in literals]
        following = Following(self._subscription(credit), literals, patterns)
        following.place = place
        following.wanted = Wanted(self.core, literals, patterns)
        self.catchup.follow(following)
        return following

    def _subscription(self, credit: int) -> Subscription:
        self._subscriptions += 1
        return self.reader.subscribe(credit=credit, number=self._subscriptions)

    async def until(self, condition: Callable[[], bool]) -> None:
        """Let the loop turn until something has come to pass."""
        for _ in range(5_000):
            if condition():
                return
            await asyncio.sleep(0.001)
        raise AssertionError("it did not come to pass")

    async def live(self, following: Following) -> list[Delivery]:
        """Wait until the reader is live; returns what it got meanwhile."""
        await self.until(lambda: following.live)
        return self.reader.deliveries()


@pytest.fixture
async def station(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Station]:
    """A station whose readers ask the log for all that they have missed, however little it is."""
    monkeypatch.setattr(catchup, "NEAR_MAX", 0)
    station = Station()
    yield station
    station.log.gate.set()
    station.catchup.close()


def sequences(deliveries: list[Delivery]) -> list[int]:
    """Return the sequences of all records, in the order in which they came."""
    return [delivery.chunk.first + n for delivery in deliveries for n, _ in enumerate(records_of(delivery.chunk))]


# --- Literals ------------------------------------------------------------------------------------------------------


async def test_a_literal_from_the_start(station: Station) -> None:
    for number in range(5):
        station.publish(b"s.x", b"%d" % number, b"and")
    following = station.follow(b"s.x", after={b"s.x": 0})
    assert not following.live
    assert sequences(await station.live(following)) == list(range(1, 11))
    station.publish(b"s.x", b"live")
    assert payloads(station.reader.deliveries()) == [b"live"]
    assert station.kicks > 0


async def test_a_literal_from_the_middle_of_a_chunk(station: Station) -> None:
    station.publish(b"s.x", b"1", b"2", b"3", b"4")
    station.publish(b"s.x", b"5")
    following = station.follow(b"s.x", after={b"s.x": 2})
    deliveries = await station.live(following)
    assert payloads(deliveries) == [b"3", b"4", b"5"]
    assert deliveries[0].chunk.first == 3


async def test_a_reader_at_the_head_is_live_at_once(station: Station) -> None:
    station.publish(b"s.x", b"1")
    following = station.follow(b"s.x", after={b"s.x": 1})
    assert following.live
    assert station.log.asked == []


async def test_a_crowd_that_leaves_is_taken_away_by_turns(station: Station, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catchup, "LEAVES_A_TURN", 2)
    crowd = [station.follow(b"s.x") for _ in range(7)]
    left: list[Following] = []
    detach = station.catchup._detach

    def note(following: Following) -> None:
        left.append(following)
        detach(following)

    monkeypatch.setattr(station.catchup, "_detach", note)
    for following in crowd:
        station.catchup.leave(following)
    counts = [len(left)]
    station.publish(b"s.x", b"nobody gets it")
    while len(left) < len(crowd):
        await asyncio.sleep(0)
        counts.append(len(left))
    assert counts == [2, 4, 6, 7]
    assert left == crowd
    assert station.reader.deliveries() == []
    assert not station.core.fanout.detach(crowd[-1].subscription, b"s.x"), "it is detached already"


async def test_who_missed_a_little_gets_it_from_memory(station: Station, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catchup, "NEAR_MAX", 4)
    station.publish(b"s.x", b"1", b"2", b"3")
    station.publish(b"s.y", b"1")
    station.publish(b"s.x", b"4")
    following = station.follow(b"s.x", b"s.y", after={b"s.x": 2, b"s.y": 0})
    assert following.live
    assert payloads(station.reader.deliveries()) == [b"3", b"4", b"1"]
    assert station.log.asked == []
    station.publish(b"s.x", b"5")
    assert payloads(station.reader.deliveries()) == [b"5"]
    far = station.follow(b"s.x", after={b"s.x": 0})
    assert not far.live, "five sequences are more than it may have missed"


async def test_what_is_missing_is_no_more_than_credit_allows(station: Station, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catchup, "NEAR_MAX", 100)
    station.publish(b"s.x", b"1" * 100)
    station.publish(b"s.x", b"2" * 100)
    following = station.follow(b"s.x", after={b"s.x": 0}, credit=200)
    assert not following.live
    assert station.log.asked


async def test_channels_that_start_new_are_live_while_others_catch_up(station: Station) -> None:
    station.publish(b"s.x", b"old")
    station.log.gate.clear()
    following = station.follow(b"s.x", b"s.y", b"e.x", after={b"s.x": 0})
    station.publish(b"s.y", b"new")
    station.writer.publish(b"e.x", b"typing")
    station.pipeline.end_turn()
    assert payloads(station.reader.deliveries()) == [b"new", b"typing"]
    station.log.gate.set()
    assert payloads(await station.live(following)) == [b"old"]


async def test_several_channels_one_after_the_other(station: Station) -> None:
    for name in (b"s.x", b"s.y", b"s.z"):
        station.publish(name, name)
    following = station.follow(b"s.x", b"s.y", b"s.z", after={b"s.x": 0, b"s.y": 0, b"s.z": 1})
    assert sorted(payloads(await station.live(following))) == [b"s.x", b"s.y"]


async def test_what_is_published_meanwhile_comes_once(station: Station) -> None:
    for number in range(3):
        station.publish(b"s.x", b"old %d" % number)
    station.log.gate.clear()
    following = station.follow(b"s.x", after={b"s.x": 0})
    await station.until(lambda: bool(station.log.asked))
    station.publish(b"s.x", b"meanwhile")
    station.log.gate.set()
    deliveries = await station.live(following)
    station.publish(b"s.x", b"live")
    assert sequences(deliveries + station.reader.deliveries()) == [1, 2, 3, 4, 5]


async def test_a_group_that_is_on_the_disk_but_not_applied_comes_once(station: Station) -> None:
    """The commit thread is ahead of the loop: a slice may hold a group that the loop is about to deliver."""
    station.publish(b"s.x", b"1")
    station.writer.publish(b"s.x", b"2")
    station.pipeline.close_group()
    station.pipeline.append()
    following = station.follow(b"s.x", after={b"s.x": 0})
    deliveries = await station.live(following)
    station.pipeline.done()
    assert sequences(deliveries + station.reader.deliveries()) == [1, 2]


async def test_early_records_that_nobody_has_stored_yet(station: Station) -> None:
    station.publish(b"a.x", b"1")
    station.writer.publish(b"a.x", b"2")
    station.pipeline.close_group()
    station.writer.publish(b"a.x", b"3", b"4")
    station.pipeline.end_turn()
    following = station.follow(b"a.x", after={b"a.x": 0})
    deliveries = await station.live(following)
    assert sequences(deliveries) == [1, 2, 3, 4]
    assert [delivery.flags & DELIVER_EARLY for delivery in deliveries] == [0, DELIVER_EARLY, DELIVER_EARLY]
    station.pipeline.append()
    station.pipeline.done()
    station.pipeline.commit()
    assert station.reader.deliveries() == [], "they were delivered early"


async def test_a_position_inside_an_early_chunk(station: Station) -> None:
    station.writer.publish(b"a.x", b"1", b"2", b"3")
    station.pipeline.end_turn()
    following = station.follow(b"a.x", after={b"a.x": 2})
    assert payloads(await station.live(following)) == [b"3"]


async def test_a_channel_that_becomes_ephemeral_meanwhile(station: Station) -> None:
    station.publish(b"s.x", b"1", b"2")
    station.log.gate.clear()
    following = station.follow(b"s.x", after={b"s.x": 0})
    station.core.reload(Profiles([Profile(b">", Level.EPHEMERAL)]))
    station.writer.publish(b"s.x", b"typing")
    station.pipeline.end_turn()
    station.log.gate.set()
    assert payloads(await station.live(following)) == [b"1", b"2"]
    station.writer.publish(b"s.x", b"typing more")
    station.pipeline.end_turn()
    assert payloads(station.reader.deliveries()) == [b"typing more"]


# --- Bus positions -------------------------------------------------------------------------------------------------


async def test_a_pattern_from_the_start_in_commit_order(station: Station) -> None:
    for name in (b"s.x", b"a.x", b"s.y", b"s.x"):
        station.publish(name, name)
    following = station.follow_bus(b"s.*", b"a.x")
    deliveries = await station.live(following)
    assert payloads(deliveries) == [b"s.x", b"a.x", b"s.y", b"s.x"]
    places = [(delivery.group, delivery.index) for delivery in deliveries]
    assert places == sorted(set(places))
    station.publish(b"s.z", b"live")
    assert payloads(station.reader.deliveries()) == [b"live"]


async def test_a_pattern_from_a_place(station: Station) -> None:
    for number in range(4):
        station.writer.publish(b"s.x", b"x%d" % number)
        station.writer.publish(b"s.y", b"y%d" % number)
        station.pipeline.commit()
    following = station.follow_bus(b"s.>", place=(3, 0))
    assert payloads(await station.live(following)) == [b"y1", b"x2", b"y2", b"x3", b"y3"]


async def test_a_pattern_from_now_joins_at_once(station: Station) -> None:
    station.publish(b"s.x", b"old")
    following = station.follow_bus(b"s.>", place=(station.core.applied_number, INDEX_END))
    assert following.live
    assert station.log.asked == []
    station.publish(b"s.x", b"new")
    assert payloads(station.reader.deliveries()) == [b"new"]


async def test_filters_that_overlap_catch_up_and_deliver_once(station: Station) -> None:
    station.publish(b"s.x", b"1")
    following = station.follow_bus(b"s.x", b"s.*", b">")
    deliveries = await station.live(following)
    station.publish(b"s.x", b"2")
    assert payloads(deliveries + station.reader.deliveries()) == [b"1", b"2"]


async def test_a_pattern_and_a_group_that_is_not_applied(station: Station) -> None:
    station.publish(b"a.x", b"1")
    station.writer.publish(b"a.x", b"early")
    station.writer.publish(b"s.x", b"synced")
    station.pipeline.close_group()
    station.pipeline.append()
    following = station.follow_bus(b">")
    deliveries = await station.live(following)
    station.pipeline.done()
    assert payloads(deliveries + station.reader.deliveries()) == [b"1", b"early", b"synced"]


async def test_a_place_in_a_group_that_failed(station: Station) -> None:
    station.publish(b"s.x", b"1")
    station.writer.publish(b"s.x", b"void")
    void = station.pipeline.close_group().number
    station.pipeline.fail(Fate.SURVIVES)
    station.pipeline.recover()
    station.publish(b"s.x", b"2")
    following = station.follow_bus(b">", place=(void, 0))
    assert payloads(await station.live(following)) == [b"2"]


# --- Flow ----------------------------------------------------------------------------------------------------------


async def test_slices_wait_for_credit(station: Station) -> None:
    size = 56 + 12 + 1_000
    for number in range(6):
        station.publish(b"s.x", b"%d" % number + bytes(999))
    following = station.follow(b"s.x", after={b"s.x": 0}, credit=2 * size)
    await station.until(lambda: following.subscription.credit <= 0)
    assert not following.busy
    assert not following.live
    assert sequences(station.reader.deliveries()) == [1, 2]
    following.subscription.credit += 3 * size
    station.catchup.step(following)
    await station.until(lambda: following.subscription.credit <= 0)
    assert sequences(station.reader.deliveries()) == [3, 4, 5]
    following.subscription.credit += 2 * size
    station.catchup.step(following)
    assert sequences(await station.live(following)) == [6]
    assert not following.subscription.slow


async def test_what_has_expired_does_not_come_from_memory(station: Station, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catchup, "NEAR_MAX", 100)
    station.writer.publish(b"s.x", b"old", b"older", expiry_s=10)
    station.pipeline.commit()
    station.publish(b"s.x", b"new")
    before = station.follow(b"s.x", after={b"s.x": 0})
    assert before.live
    assert payloads(station.reader.deliveries()) == [b"old", b"older", b"new"]
    station.core.tails.now_us = 11_000_000
    station.log.asked.clear()
    behind = station.follow(b"s.x", after={b"s.x": 1})
    assert behind.live
    assert station.log.asked == []
    records = [record for one in station.reader.deliveries() for record in records_of(one.chunk)]
    assert [(record.gone, record.payload) for record in records] == [((1, 1), b""), (None, b"new")]


async def test_what_is_kept_by_key_comes_from_the_log_alone(station: Station, monkeypatch: pytest.MonkeyPatch) -> None:
    """Retention has taken what a newer message of its key replaces, and memory knows nothing of it."""
    monkeypatch.setattr(catchup, "NEAR_MAX", 100)
    station.core.reload(Profiles([Profile(b"s.kept", keep="latest_per_key"), Profile(b">")]))
    read_channel = station.log.read_channel

    def compacted(channel: int, after: int, bytes_max: int, before: int = 0) -> list[tuple[int, int, bytes]]:
        found = read_channel(channel, after, bytes_max, before)
        return [(group, at, chunk_conflate(chunk, keep_last=group == found[-1][0])) for group, at, chunk in found]

    monkeypatch.setattr(station.log, "read_channel", compacted)
    for name in (b"s.kept", b"s.all"):
        for payload in (b"1", b"2", b"3"):
            station.publish(name, payload)
    kept = station.follow(b"s.kept", after={b"s.kept": 0})
    records = [record for one in await station.live(kept) for record in records_of(one.chunk)]
    assert [record.payload for record in records if not record.gone] == [b"3"]
    station.log.asked.clear()
    whole = station.follow(b"s.all", after={b"s.all": 0})
    assert whole.live
    assert payloads(station.reader.deliveries()) == [b"1", b"2", b"3"]
    assert station.log.asked == []


async def test_a_channel_that_may_have_been_kept_by_key_comes_from_the_log(
    station: Station, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its profile is gone, so nobody knows."""
    monkeypatch.setattr(catchup, "NEAR_MAX", 100)
    station.publish(b"s.x", b"1")
    station.core.profiles = Profiles([Profile(b"other.>", keep="latest_per_key")])
    following = station.follow(b"s.x", after={b"s.x": 0})
    assert not following.live
    assert payloads(await station.live(following)) == [b"1"]
    assert len(station.log.asked) == 1


async def test_no_slice_while_the_connection_is_full(station: Station) -> None:
    station.publish(b"s.x", b"1")
    station.reader.outbox.pause()
    station.reader.outbox.ordered_frame(bytes(QUEUED_BYTES_MAX + 1))
    following = station.follow(b"s.x", after={b"s.x": 0})
    assert not following.busy
    assert station.log.asked == []
    station.reader.outbox.close()
    station.reader.outbox.transport = station.reader
    station.reader.outbox.resume()
    station.catchup.step(following)
    assert payloads(await station.live(following)) == [b"1"]


async def test_goes_on_after_a_flush_that_no_transport_paused(station: Station) -> None:
    station.publish(b"s.x", b"1")
    station.reader.outbox.ordered_frame(bytes(QUEUED_BYTES_MAX + 1))
    following = station.follow(b"s.x", after={b"s.x": 0})
    assert not following.busy
    station.catchup.flushed()
    assert not following.busy, "nothing was sent yet"
    station.core.fanout.flush()
    station.reader.sent = b""
    station.catchup.flushed()
    assert following.busy
    assert payloads(await station.live(following)) == [b"1"]


async def test_readers_at_the_same_place_share_a_slice(station: Station) -> None:
    station.publish(b"s.x", b"1")
    station.log.gate.clear()
    readers = [station.follow(b"s.x", after={b"s.x": 0}) for _ in range(20)]
    station.log.gate.set()

    def all_live() -> bool:
        station.catchup.flushed()
        return all(following.live for following in readers)

    await station.until(all_live)
    assert payloads(station.reader.deliveries()) == [b"1"] * 20
    assert len(station.log.asked) == 1
    assert (station.catchup.slices_read, station.catchup.slices_shared) == (1, 19)
    station.follow(b"s.x", after={b"s.x": 0})
    await station.until(lambda: payloads(station.reader.deliveries()) == [b"1"])
    assert len(station.log.asked) == 1, "it is kept"


async def test_readers_who_began_at_different_places_meet(station: Station) -> None:
    for number in range(6):
        station.publish(b"s.x", b"%d" % number + bytes(999))
    first = station.follow(b"s.x", after={b"s.x": 0}, credit=1)
    await station.until(lambda: first.subscription.credit <= 0)
    assert sequences(station.reader.deliveries()) == [1]
    second = station.follow(b"s.x", after={b"s.x": 3})
    assert sequences(await station.live(second)) == [4, 5, 6]
    first.subscription.credit += PLENTY
    station.catchup.step(first)
    assert sequences(await station.live(first)) == [2, 3, 4, 5, 6]
    assert len(station.log.asked) == 1


async def test_readers_of_the_same_filters_meet_by_bus_position(station: Station) -> None:
    for number in range(6):
        station.publish(b"s.x", b"%d" % number + bytes(999))
    first = station.follow_bus(b"s.*", b"a.*", credit=1)
    await station.until(lambda: first.subscription.credit <= 0)
    assert sequences(station.reader.deliveries()) == [1]
    second = station.follow_bus(b"a.*", b"s.*", place=(4, 0))
    assert sequences(await station.live(second)) == [4, 5, 6]
    first.subscription.credit += PLENTY
    station.catchup.step(first)
    assert sequences(await station.live(first)) == [2, 3, 4, 5, 6]
    assert len(station.log.asked) == 1


async def test_readers_take_turns(station: Station) -> None:
    """Each gets a part of what is there before one of them gets all of it."""
    for _ in range(40):
        station.publish(b"s.x", *[bytes(1_000)] * 30)
    one = station.follow(b"s.x", after={b"s.x": 0})
    other = station.follow(b"s.x", after={b"s.x": 0})

    def all_live() -> bool:
        station.catchup.flushed()
        return one.live and other.live

    numbers = []
    for _ in range(5_000):
        numbers += [delivery.subscription for delivery in station.reader.deliveries()]
        if all_live():
            break
        await asyncio.sleep(0.001)
    numbers += [delivery.subscription for delivery in station.reader.deliveries()]
    assert len(numbers) == 80
    longest = max(len(list(run)) for _, run in itertools.groupby(numbers))
    assert longest <= SHARE_BYTES // 30_000 + 2


async def test_a_slice_is_not_kept_for_long(station: Station) -> None:
    station.publish(b"s.x", b"1")
    await station.live(station.follow(b"s.x", after={b"s.x": 0}))
    station.catchup.tick(SLICE_US_MAX)
    assert station.catchup.slices.size_bytes > 0
    station.catchup.tick(SLICE_US_MAX + 1)
    assert station.catchup.slices.size_bytes == 0
    await station.live(station.follow(b"s.x", after={b"s.x": 0}))
    assert len(station.log.asked) == 2


async def test_a_slice_that_is_not_kept_is_read_again(station: Station) -> None:
    for number in range(6):
        station.publish(b"s.x", b"%d" % number + bytes(999))
    following = station.follow(b"s.x", after={b"s.x": 0}, credit=1)
    await station.until(lambda: following.subscription.credit <= 0)
    assert station.catchup.slices.size_bytes > 6_000
    station.catchup.slices.shrink(0)
    assert station.catchup.slices.size_bytes == 0
    following.subscription.credit += PLENTY
    station.catchup.step(following)
    assert sequences(await station.live(following)) == [1, 2, 3, 4, 5, 6]
    assert len(station.log.asked) == 2


async def test_a_slice_is_bounded_by_what_ends_a_connection(station: Station) -> None:
    station.core.limits = Limits(payload_bytes_max=1_000, headers_bytes_max=0, connection_bytes_max=100_000)
    station.publish(b"s.x", b"1")
    station.follow(b"s.x", after={b"s.x": 0})
    await station.until(lambda: bool(station.log.asked))
    assert station.log.asked[0][-1] == 100_000 // QUEUED_SHARE


# --- Ends ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("live", [True, False])
async def test_a_reader_that_leaves_gets_nothing_more(station: Station, live: bool) -> None:
    station.publish(b"s.x", b"1")
    if not live:
        station.log.gate.clear()
    following = station.follow_bus(b"s.x", b"s.>")
    if live:
        await station.live(following)
    station.catchup.leave(following)
    station.log.gate.set()
    station.publish(b"s.x", b"2")
    await asyncio.sleep(0.02)
    assert station.reader.deliveries() == []
    assert following.subscription.state is None


@pytest.mark.parametrize("failure", [error("STORAGE_CORRUPT", "bad bytes"), RuntimeError("a mistake")])
async def test_a_history_that_cannot_be_read_is_told(
    station: Station, failure: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    station.publish(b"s.x", b"1")
    station.log.failure = failure
    following = station.follow(b"s.x", after={b"s.x": 0})
    await station.until(lambda: bool(station.lost))
    assert station.lost == [(following.subscription, failure)]
    assert bool(caplog.records) is isinstance(failure, RuntimeError), "a mistake of ours is logged"


async def test_the_time_of_a_group_is_found_on_the_reader_thread(station: Station) -> None:
    for _ in range(3):
        station.pipeline.wait(1_000)
        station.publish(b"s.x", b"x")
    found: list[object] = []
    for time_us in (0, 1_500, 3_000, 9_000):
        station.catchup.locate_time(time_us, found.append)
    await station.until(lambda: len(found) == 4)
    assert found == [1, 3, 4, 5]
    station.log.failure = RuntimeError("a mistake")
    station.catchup.locate_time(0, found.append)
    await station.until(lambda: len(found) == 5)
    assert getattr(found[-1], "name", None) == "STORAGE_FAILED"


# --- What is wanted ------------------------------------------------------------------------------------------------


async def test_wanted_knows_channels_by_their_names(station: Station) -> None:
    names = (b"s.x", b"s.y", b"a.x")
    for name in names:
        station.publish(name, b"x")
    wanted = Wanted(station.core, [b"a.x"], [b"*.y"])
    channels = {name: (station.core.tails.info(name) or (0,))[0] for name in names}
    for _ in range(2):
        assert [channels[name] in wanted for name in names] == [False, True, True]
    assert 99 not in wanted


def test_reader_remembers_no_more_channels_than_its_bound() -> None:
    """A journal has a million of them, and a connection thousands of readers."""

    class Names:
        asked = 0

        def name_of(self, channel: int) -> bytes:
            self.asked += 1
            return b"a.%d" % channel

    class Core:
        tails = Names()

    wanted = Wanted(Core(), [b"a.7"], [])  # type: ignore[arg-type]
    assert [channel for channel in range(3 * KNOWN_MAX) if channel in wanted] == [7]
    assert len(wanted._unwanted) <= KNOWN_MAX
    assert 7 in wanted
    assert Core.tails.asked == 3 * KNOWN_MAX
    every = Wanted(Core(), [], [b">"])  # type: ignore[arg-type]
    assert all(channel in every for channel in range(3 * KNOWN_MAX))
    every.forget()
    assert len(every._names) == 0


@pytest.mark.parametrize("patterns", [[b">"], [b"a.>"], [b"*.y"], [b"a.>", b"*.y", b"b.*.c"], []])
@pytest.mark.parametrize("literals", [[], [b"a.x", b"$mine"]])
def test_channels_are_chosen_as_they_are_asked_for_singly(literals: list[bytes], patterns: list[bytes]) -> None:
    names = [b"a.x", b"a.y", b"b.y", b"b.y.c", b"ab", b"a", b"$mine", b"$a.y", None]

    class Core:
        class tails:
            name_of = staticmethod(dict(enumerate(names)).get)

    every = list(range(len(names)))
    one, many = (Wanted(Core(), literals, patterns) for _ in range(2))  # type: ignore[arg-type]
    expected = {channel for channel in every if channel in one}
    assert expected == {
        channel
        for channel, name in enumerate(names)
        if name is not None and (name in literals or any(matches(pattern, name) for pattern in patterns))
    }
    assert many.choose(every) == expected
    assert many.choose(every) == expected
    assert one.unknown == many.unknown == {every[-1]}
    assert [one.name_of(channel) for channel in every] == [many.name_of(channel) for channel in every]


def test_the_log_is_asked_once_for_many_names() -> None:
    asked: list[list[int]] = []

    class Core:
        class tails:
            name_of = staticmethod(lambda channel: None)

    class Log:
        def names_of(self, channels: list[int]) -> list[bytes | None]:
            asked.append(channels)
            return [b"a.%d" % channel if channel % 2 else None for channel in channels]

    there = WantedThere(Wanted(Core(), [], [b"a.>"]), Log())  # type: ignore[arg-type]
    assert there.choose([5, 4, 3, 5]) == {3, 5}
    assert there.choose([3, 4]) == {3}
    assert asked == [[3, 4, 5]]
