"""Live readers that fall behind: what they have, what they are told, and how they come back.

Random lives of such readers are in `tests.simulation.core`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from broker.core.passing import Passing
from broker.model.levels import Level
from broker.model.profiles import Profile, Profiles
from broker.node.demotion import Undelivered
from broker.wire import control
from broker.wire.kinds import Kind
from tests.reference.frames import DELIVER, delivery_of, frames_of, records_of
from tests.reference.journal import Fate
from tests.unit.node.test_catchup import Station, sequences
from tests.unit.node.test_catchup_evicted import trim, watch_trimmed

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from broker.node.catchup import Following

SIZE = 56 + 12 + 100
PAYLOAD = bytes(100)


@pytest.fixture
async def station() -> AsyncIterator[Station]:
    station = Station()
    yield station
    station.catchup.stop()
    station.log.gate.set()
    station.catchup.close()


def turn(station: Station) -> None:
    """End a turn as the node does."""
    slow, station.core.fanout.slow = station.core.fanout.slow, []
    station.catchup.demote(slow)


def publish(station: Station, name: bytes, count: int = 1) -> None:
    for _ in range(count):
        station.publish(name, PAYLOAD)
        turn(station)


def told(station: Station) -> list[str | int]:
    """What has arrived, in order: the sequences of deliveries and the names of events."""
    found: list[str | int] = []
    for frame in frames_of(station.reader.take()):
        if frame.kind == DELIVER:
            chunk = delivery_of(frame).chunk
            found += [chunk.first + at for at, _ in enumerate(records_of(chunk))]
        elif frame.kind == Kind.EVENT:
            event = control.decode_event(frame.body)
            found.append(event.event)
            if event.event == "lagging":
                assert event.channel == ""
                assert sorted(event.more) == ["group", "since_us"]
    return found


def grant(station: Station, following: Following, chunks: int) -> None:
    following.subscription.credit += chunks * SIZE
    station.catchup.step(following)


def live(station: Station, *filters: bytes, credit: int) -> Following:
    """Follow what comes from now on."""
    if any(b"*" in wanted or b">" in wanted for wanted in filters):
        following = station.follow_bus(*filters, place=(station.core.applied_number, 0), credit=credit)
    else:
        following = station.follow(*filters, credit=credit)
    assert following.live
    return following


async def all_of(station: Station, following: Following) -> list[str | int]:
    await station.until(lambda: following.live)
    return told(station)


@pytest.mark.parametrize("filters", [[b"s.x"], [b"s.*"], [b"s.x", b"s.y"], [b"s.x", b"s.>"]])
async def test_a_reader_falls_behind_and_comes_back(station: Station, filters: list[bytes]) -> None:
    station.core.load(b"s.x")
    following = live(station, *filters, credit=4 * SIZE)
    publish(station, b"s.x", 7)
    assert told(station) == [1, 2, 3, 4, "lagging"]
    assert following in station.catchup.lagging
    assert not following.live
    assert station.catchup.demotions == 1
    grant(station, following, 2)
    await station.until(lambda: following.subscription.credit <= 0 and not following.busy)
    assert told(station) == [5, 6]
    grant(station, following, 4)
    assert await all_of(station, following) == [7, "live"]
    publish(station, b"s.x")
    assert told(station) == [8]
    assert not station.catchup.lagging
    assert (station.catchup.promotions, following.subscription.slow) == (1, False)


async def test_who_lags_costs_the_fan_out_nothing(station: Station) -> None:
    following = station.follow(b"s.x", credit=SIZE)
    publish(station, b"s.x", 2)
    chunks = station.core.fanout.chunks_out
    for _ in range(5):
        station.publish(b"s.x", PAYLOAD)
        assert not station.core.fanout.slow
    assert station.core.fanout.chunks_out == chunks
    assert following.after == {b"s.x": 1}


async def test_a_reader_just_fast_enough_does_not_change_sides_all_the_time(station: Station) -> None:
    """It is live again when half of its credit is free, and meanwhile it gets what comes all the same."""
    following = station.follow(b"s.x", credit=10 * SIZE)
    publish(station, b"s.x", 11)
    grant(station, following, 3)
    await station.until(lambda: not following.busy and following.after[b"s.x"] == 11)
    assert told(station) == [*range(1, 11), "lagging", 11]
    assert following in station.catchup._parked
    publish(station, b"s.x")
    await station.until(lambda: following.after[b"s.x"] == 12)
    assert told(station) == [12], "a timer has looked"
    assert not following.live
    grant(station, following, 4)
    assert await all_of(station, following) == ["live"]


@pytest.mark.parametrize("wanted", [b"a.x", b"a.*"])
async def test_early_chunks_that_were_delivered_do_not_come_again(station: Station, wanted: bytes) -> None:
    following = live(station, wanted, credit=2 * SIZE)
    for _ in range(3):
        station.writer.publish(b"a.x", PAYLOAD)
        station.pipeline.end_turn()
        turn(station)
    assert told(station) == [1, 2, "lagging"]
    station.pipeline.commit()
    turn(station)
    grant(station, following, 4)
    assert await all_of(station, following) == [3, "live"]


async def test_what_a_failed_commit_took_is_asked_for_anew(station: Station) -> None:
    following = station.follow(b"a.x", credit=2 * SIZE)
    for _ in range(3):
        station.writer.publish(b"a.x", PAYLOAD)
        station.pipeline.end_turn()
        turn(station)
    assert following.after == {b"a.x": 2}
    station.pipeline.close_group()
    station.pipeline.fail(Fate.REFUSED)
    station.catchup.undone()
    turn(station)
    assert following.after == {b"a.x": 0}
    station.pipeline.recover()
    publish(station, b"a.x")
    grant(station, following, 10)
    assert await all_of(station, following) == [1, 2, "lagging", 1, "live"]


async def test_a_chunk_of_a_group_that_is_applied_and_not_delivered(station: Station) -> None:
    """The next group's early chunk is refused before the committed group's others are delivered."""
    following = live(station, b">", credit=2 * SIZE)
    publish(station, b"s.x")
    station.writer.publish(b"a.x", PAYLOAD)
    station.writer.publish(b"s.x", PAYLOAD)
    station.pipeline.close_group()
    station.writer.publish(b"a.y", PAYLOAD)
    station.pipeline.append()
    group = station.pipeline.done()
    turn(station)
    assert following.place == (group.predecessor, (1 << 32) - 1)
    assert following.early_done == {group.number: 1}
    station.pipeline.commit()
    turn(station)
    grant(station, following, 10)
    assert await all_of(station, following) == [1, 1, "lagging", 2, 1, "live"]


async def test_some_literals_live_and_another_being_read(station: Station) -> None:
    """It is demoted while a slice of it is read: that slice is good, and the others go back to the log."""
    publish(station, b"s.old", 3)
    station.log.gate.clear()
    following = station.follow(b"s.old", b"s.new", after={b"s.old": 0}, credit=2 * SIZE)
    assert following.busy
    publish(station, b"s.new", 3)
    assert told(station) == [1, 2, "lagging"]
    assert following.after == {b"s.old": 0, b"s.new": 2}
    station.log.gate.set()
    grant(station, following, 10)
    seen = await all_of(station, following)
    assert seen == [1, 2, 3, 3, "live"]
    publish(station, b"s.old")
    publish(station, b"s.new")
    assert told(station) == [4, 4]


async def test_a_reader_that_leaves_before_the_turn_ends(station: Station) -> None:
    following = station.follow(b"s.x", credit=0)
    station.publish(b"s.x", PAYLOAD)
    station.catchup.leave(following)
    turn(station)
    assert told(station) == []
    assert not station.catchup.lagging


async def test_a_reader_that_leaves_while_it_lags(station: Station) -> None:
    following = station.follow(b"s.x", credit=2 * SIZE)
    publish(station, b"s.x", 3)
    station.log.gate.clear()
    grant(station, following, 1)
    assert following.busy
    station.catchup.leave(following)
    station.log.gate.set()
    publish(station, b"s.x")
    assert told(station) == [1, 2, "lagging"]
    assert not station.catchup.lagging
    assert not station.core.tails.held(b"s.x") or station.writer.slots


async def test_it_falls_behind_twice_and_hears_it_once_each_time(station: Station) -> None:
    following = station.follow(b"s.x", credit=2 * SIZE)
    for begin in (1, 4):
        publish(station, b"s.x", 3)
        station.catchup.demote_all([following.subscription])
        assert told(station) == [begin, begin + 1, "lagging"]
        grant(station, following, 3)
        assert await all_of(station, following) == [begin + 2, "live"]
    assert (station.catchup.demotions, station.catchup.promotions) == (2, 2)


async def test_all_of_a_connection_that_were_delivered_everything(station: Station) -> None:
    literal = station.follow(b"a.x")
    pattern = station.follow_bus(b"a.>", place=(station.core.applied_number, 0))
    publish(station, b"a.x", 2)
    station.writer.publish(b"a.x", PAYLOAD)
    station.pipeline.end_turn()
    told(station)
    station.reader.outbox.pause()
    station.reader.outbox.ordered_frame(bytes(3 << 20))
    station.catchup.demote_all([literal.subscription, pattern.subscription])
    assert literal.after == {b"a.x": 3}
    assert pattern.place == (station.core.applied_number, (1 << 32) - 1)
    assert pattern.early_done == {station.core.tails.group_number: 1}
    publish(station, b"a.x")
    assert not literal.live, "its connection is full"
    assert not station.catchup._crowded, "it tells when it takes bytes again"
    station.reader.outbox.close()
    station.reader.outbox.transport = station.reader
    station.reader.outbox.resume()
    for following in (literal, pattern):
        station.catchup.step(following)
        await station.until(lambda following=following: following.live)  # type: ignore[misc]
    assert told(station) == [4, "live", 4, "live"]


async def test_a_channel_that_becomes_ephemeral_while_its_reader_lags(station: Station) -> None:
    following = station.follow(b"s.x", credit=2 * SIZE)
    publish(station, b"s.x", 3)
    station.core.reload(Profiles([Profile(b">", Level.EPHEMERAL)]))
    station.writer.publish(b"s.x", PAYLOAD)
    station.pipeline.end_turn()
    grant(station, following, 4)
    assert await all_of(station, following) == [1, 2, "lagging", 3, "live", 4]


async def test_an_ephemeral_chunk_that_is_refused(station: Station) -> None:
    following = station.follow(b"e.x", b"s.x", credit=2 * SIZE)
    publish(station, b"s.x", 1)
    for _ in range(3):
        station.writer.publish(b"e.x", PAYLOAD)
        station.pipeline.end_turn()
        turn(station)
    publish(station, b"s.x", 1)
    assert not following.live, "nothing is missing, but it has no credit"
    grant(station, following, 4)
    assert await all_of(station, following) == [1, 1, "lagging", 2, "live", 2, 3]


@pytest.mark.parametrize("wanted", [b"e.x", b"e.*"])
async def test_ephemeral_messages_that_memory_has_no_more(station: Station, wanted: bytes) -> None:
    station.core.load(b"e.x")
    station.core.passing = Passing(2 * SIZE)
    following = live(station, wanted, credit=4 * SIZE)
    for _ in range(9):
        station.writer.publish(b"e.x", PAYLOAD)
        station.pipeline.end_turn()
        turn(station)
    grant(station, following, 6)
    assert await all_of(station, following) == [1, 2, 3, 4, "lagging", "live", "dropped", 8, 9]


async def test_no_more_ephemeral_messages_than_the_credit(station: Station) -> None:
    following = live(station, b"e.x", credit=4 * SIZE)
    for _ in range(9):
        station.writer.publish(b"e.x", PAYLOAD)
        station.pipeline.end_turn()
        turn(station)
    grant(station, following, 3)
    assert await all_of(station, following) == [1, 2, 3, 4, "lagging", "live", "dropped", 7, 8, 9]


async def test_the_newest_ephemeral_chunk_comes_whatever_its_size(station: Station) -> None:
    following = live(station, b"e.x", credit=SIZE)
    for _ in range(4):
        station.writer.publish(b"e.x", PAYLOAD, PAYLOAD)
        station.pipeline.end_turn()
        turn(station)
    assert told(station) == ["lagging", "live", 1, 2, "lagging"], "the first was alone"
    grant(station, following, 2)
    assert await all_of(station, following) == ["live", "dropped", 7, 8]


@pytest.mark.parametrize("wanted", [b"s.x", b"s.*"])
async def test_nothing_is_said_of_ephemeral_messages_to_those_who_want_none(station: Station, wanted: bytes) -> None:
    station.core.load(b"s.x")
    following = live(station, wanted, credit=SIZE)
    publish(station, b"s.x", 2)
    station.core.passing = Passing(0)
    for _ in range(3):
        station.writer.publish(b"e.x", PAYLOAD)
        station.pipeline.end_turn()
    grant(station, following, 4)
    assert await all_of(station, following) == [1, "lagging", 2, "live"]


# --- What profiles want --------------------------------------------------------------------------------------------


def policed(station: Station, slow: str, level: Level = Level.SYNCED) -> None:
    station.core.reload(Profiles([Profile(b">", level, slow=slow)]))


def runs(station: Station) -> list[tuple[int, int, list[bytes]]]:
    """What has arrived: (first, count, flags of GONE or payload) of each delivery."""
    return [
        (one.chunk.first, one.chunk.count, [record.payload for record in records_of(one.chunk)])
        for one in station.reader.deliveries()
    ]


@pytest.mark.parametrize("wanted", [b"s.x", b"s.*"])
async def test_the_latest_alone(station: Station, wanted: bytes) -> None:
    station.core.load(b"s.x")
    policed(station, "latest")
    following = live(station, wanted, credit=2 * SIZE)
    publish(station, b"s.x", 2)
    for number in range(3, 9):
        station.publish(b"s.x", b"%d" % number, b"and %d" % number)
        turn(station)
    station.reader.deliveries()
    grant(station, following, 10)
    await station.until(lambda: following.live)
    chunks = [one.chunk for one in station.reader.deliveries()]
    assert chunks[0].first == 3
    assert [after.first for after in chunks[1:]] == [one.first + one.count for one in chunks[:-1]]
    assert chunks[-1].first + chunks[-1].count == 15
    left = [record for chunk in chunks for record in records_of(chunk) if not record.gone]
    assert [record.payload for record in left] == [b"and 8"]
    reasons = {record.gone[0] for chunk in chunks for record in records_of(chunk) if record.gone}
    assert reasons == {7}


def stop(station: Station, *those: Following) -> None:
    """Have readers fall behind that have got everything, since their connection takes nothing."""
    station.reader.outbox.pause()
    station.catchup.demote_all([following.subscription for following in those])


def go_on(station: Station, *those: Following) -> None:
    station.reader.outbox.resume()
    for following in those:
        station.catchup.step(following)


@pytest.mark.parametrize("wanted", [b"s.x", b"s.*"])
async def test_the_latest_alone_of_what_memory_has(station: Station, wanted: bytes) -> None:
    station.core.load(b"s.x")
    policed(station, "latest")
    following = live(station, wanted, credit=40 * SIZE)
    publish(station, b"s.x", 2)
    assert told(station) == [1, 2]
    stop(station, following)
    for number in range(3, 9):
        station.publish(b"s.x", b"%d" % number, b"and %d" % number)
    station.log.asked.clear()
    go_on(station, following)
    assert following.live or b"*" in wanted
    await station.until(lambda: following.live)
    assert station.log.asked == [] or b"*" in wanted
    chunks = [one.chunk for one in station.reader.deliveries()]
    assert [one.first for one in chunks] == list(range(3, 15, 2))
    assert [record.payload for one in chunks for record in records_of(one) if not record.gone] == [b"and 8"]
    assert {record.gone[0] for one in chunks for record in records_of(one) if record.gone} == {7}


async def test_memory_has_the_latest_of_many_that_credit_is_too_short_for(station: Station) -> None:
    station.core.load(b"s.x")
    policed(station, "latest")
    following = live(station, b"s.x", credit=12 * SIZE)
    stop(station, following)
    for _ in range(40):
        station.publish(b"s.x", bytes(10 * SIZE))
    station.log.asked.clear()
    following.subscription.credit = following.window = 60 * SIZE
    go_on(station, following)
    assert following.live
    assert station.log.asked == []


async def test_what_was_trimmed_does_not_come_from_memory(station: Station) -> None:
    trims = watch_trimmed(station)
    following = live(station, b"s.x", b"s.y", credit=40 * SIZE)
    publish(station, b"s.x", 2)
    assert told(station) == [1, 2]
    stop(station, following)
    for _ in range(4):
        station.publish(b"s.x", PAYLOAD)
    trim(station, b"s.x", 5)
    go_on(station, following)
    assert await all_of(station, following) == ["lagging", 5, 6, "live"]
    assert trims == [(b"s.x", 5)]


async def test_all_that_was_missed_was_trimmed(station: Station) -> None:
    trims = watch_trimmed(station)
    following = live(station, b"s.x", credit=40 * SIZE)
    stop(station, following)
    for _ in range(4):
        station.publish(b"s.x", PAYLOAD)
    trim(station, b"s.x", 5)
    go_on(station, following)
    assert await all_of(station, following) == ["lagging", "live"]
    publish(station, b"s.x")
    assert told(station) == [5]
    assert trims == [(b"s.x", 5)]


async def test_the_latest_of_ephemeral_channels(station: Station) -> None:
    policed(station, "latest", Level.EPHEMERAL)
    station.core.load(b"e.y")
    following = live(station, b"e.x", b"e.y", credit=4 * SIZE)
    for name in (b"e.x", b"e.x", b"e.y", b"e.y", b"e.x", b"e.y", b"e.x"):
        station.writer.publish(name, PAYLOAD)
        station.pipeline.end_turn()
        turn(station)
    grant(station, following, 6)
    assert await all_of(station, following) == [1, 2, 1, 2, "lagging", "live", "dropped", 3, 4]


async def test_a_channel_that_no_profile_is_for_any_more(station: Station) -> None:
    following = live(station, b"s.*", credit=SIZE)
    publish(station, b"s.x", 2)
    station.core.profiles = Profiles([Profile(b"other.>", slow="latest")])
    grant(station, following, 4)
    assert await all_of(station, following) == [1, "lagging", 2, "live"]


async def test_disconnect(station: Station) -> None:
    policed(station, "disconnect")
    following = live(station, b"s.x", credit=SIZE)
    publish(station, b"s.x", 2)
    ((subscription, failure),) = station.lost
    assert subscription is following.subscription
    assert getattr(failure, "name", "") == "SLOW_CONSUMER"
    assert told(station) == [1]
    assert (station.catchup.cut, station.catchup.demotions) == (1, 0)


async def test_what_is_undelivered_is_looked_at_once(station: Station) -> None:
    station.publish(b"s.x", PAYLOAD)
    standing = Undelivered(station.core).standing((station.core.applied_number, 0, False, 0, 0, 0, 0))
    assert standing.has(0, 0)
    assert not standing.has(station.core.applied_number, 0)
    assert sequences(station.reader.deliveries()) == []
