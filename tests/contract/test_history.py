"""Reading back what is stored, in every home: by position, time and number, forwards and backwards, page by page."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from broker import (
    BackoffPolicy,
    BrokerError,
    BusPosition,
    Last,
    Level,
    Position,
    Since,
    Until,
    connect,
)
from broker.model.errors import error
from broker.model.history import HistoryQuery
from broker.wire import requests
from broker_native.messages import FrameReader
from tests.contract.homes import SEGMENT_BYTES

if TYPE_CHECKING:
    from broker import Bus, Message
    from tests.contract.homes import Home, Server

QUICK = BackoffPolicy(first_s=0.01, longest_s=0.05)


def sequences(messages: list[Message]) -> list[int]:
    return [message.sequence for message in messages]


async def fill(bus: Bus, channel: str, *counts: int) -> None:
    """Publish so many messages each, one commit and so one chunk each time."""
    number = 0
    for count in counts:
        await bus.publish_many(channel, [b"%d" % (number + each) for each in range(count)])
        number += count


@pytest.mark.usefixtures("loop_kind")
async def test_all_of_a_channel(home: Home, room: str) -> None:
    async with home.bus() as bus:
        channel = f"s.{room}"
        assert await bus.history(channel).messages() == []
        await fill(bus, channel, 3, 1, 6)
        history = bus.history(channel)
        messages = await history.messages()
        assert [message.payload for message in messages] == [b"%d" % number for number in range(10)]
        assert sequences(messages) == list(range(1, 11))
        assert {message.channel for message in messages} == {channel}
        assert await history.messages() == [], "each message is handed out once"
        assert history.info is not None
        assert (history.info.first, history.info.head, history.info.level) == (1, 10, Level.SYNCED)
        assert history.info.epoch == messages[-1].epoch
        assert not history.events
        backwards = await bus.history(channel, reverse=True).messages()
        assert sequences(backwards) == list(range(10, 0, -1))
        assert [message.payload for message in backwards] == [message.payload for message in reversed(messages)]


async def test_every_stretch(home: Home, room: str) -> None:
    """Each pair of bounds, with each limit, both ways: what a list would say."""
    async with home.bus() as bus:
        channel = f"s.{room}"
        await fill(bus, channel, 2, 3, 1, 4)
        for after in (0, 1, 2, 5, 9, 10, 12):
            for until in (0, 1, 4, 10, 12):
                wanted = [sequence for sequence in range(1, 11) if after < sequence <= until]
                for limit in (None, 1, 3, 100):
                    for reverse in (False, True):
                        found = await bus.history(
                            channel,
                            since=Position(0, after),
                            until=Position(0, until),
                            limit=limit,
                            reverse=reverse,
                        ).messages()
                        assert sequences(found) == (wanted[::-1] if reverse else wanted)[:limit]
        for last in (0, 1, 4, 10, 11):
            for until_too in (None, Position(0, 6)):
                end = 6 if until_too else 10
                found = await bus.history(channel, since=Last(last), until=until_too).messages()
                assert sequences(found) == list(range(1, end + 1))[max(end - last, 0) :]


async def test_batches(home: Home, room: str) -> None:
    """Runs of consecutive messages, each ascending; backwards they come newest first."""
    async with home.bus() as bus:
        channel = f"s.{room}"
        large = bytes(40_000)
        await bus.publish_many(channel, [large] * 4)
        await bus.publish(channel, large)
        ahead = [batch async for batch in bus.history(channel).batches()]
        assert [message.sequence for batch in ahead for message in batch] == [1, 2, 3, 4, 5]
        assert len(ahead) > 1
        assert ahead[0].position == Position(ahead[0].epoch, ahead[0].last)
        back = [batch async for batch in bus.history(channel, reverse=True, limit=3).batches()]
        assert [message.sequence for batch in reversed(back) for message in batch] == [3, 4, 5]
        assert all(sequences(list(batch)) == sorted(sequences(list(batch))) for batch in back)


async def test_pages_of_every_size(home: Home, room: str) -> None:
    """The wire's own bounds: each answer says where it goes on, and all answers together say everything once."""
    async with home.bus() as bus:
        channel = f"s.{room}"
        await fill(bus, channel, 1, 5, 2, 7, 1)
        for bytes_max in (1, 300, 1 << 20):
            for limit in (1, 3, 1000):
                for reverse in (False, True):
                    assert await paged(bus, channel, bytes_max, limit, reverse=reverse) == list(range(1, 17))


async def paged(bus: Bus, channel: str, bytes_max: int, limit: int, *, reverse: bool) -> list[int]:
    """Read a channel by requests of our own; return the sequences, ascending."""
    pages: list[list[int]] = []
    query = HistoryQuery(channel, limit=limit, reverse=reverse, bytes_max=bytes_max)
    while True:
        part = requests.decode_history_part(await bus.ask("history", requests.pack_query(query)))  # type: ignore[attr-defined]
        batches = FrameReader(error, 0).chunks(part.chunks, channel)
        pages.append([message.sequence for batch in batches for message in batch])
        assert 0 < len(pages[-1]) <= limit
        if not part.more:
            break
        query = HistoryQuery(
            channel, after=part.after, before=part.before, limit=limit, reverse=reverse, bytes_max=bytes_max
        )
    if reverse:
        pages.reverse()
    return [sequence for page in pages for sequence in page]


async def test_by_time(home: Home, room: str) -> None:
    async with home.bus() as bus:
        channel = f"s.{room}"
        for count in (2, 1, 3):
            await fill(bus, channel, count)
            await asyncio.sleep(0.002)
        messages = await bus.history(channel).messages()
        for message in messages:
            since = await bus.history(channel, since=Since(message.time)).messages()
            assert sequences(since) == [other.sequence for other in messages if other.time >= message.time]
            until = await bus.history(channel, until=Until(message.time)).messages()
            assert sequences(until) == [other.sequence for other in messages if other.time < message.time]
            both = bus.history(channel, since=Since(messages[2].time), until=Until(message.time), reverse=True)
            assert sequences(await both.messages()) == [
                other.sequence for other in reversed(messages) if messages[2].time <= other.time < message.time
            ]
        assert await bus.history(channel, since=Since(messages[-1].time + 1)).messages() == []
        assert await bus.history(channel, until=Until(0)).messages() == []
        assert len(await bus.history(channel, since=Since(0)).messages()) == len(messages)


async def test_positions_are_judged(home: Home, room: str) -> None:
    async with home.bus() as bus:
        channel = f"s.{room}"
        await fill(bus, channel, 2, 2)
        receipt = await bus.publish(channel, b"last")
        good = bus.history(channel, since=Position(receipt.epoch, 3))
        assert sequences(await good.messages()) == [4, 5]
        assert not good.events
        unseen = bus.history(channel, since=Position(receipt.epoch, 9))
        assert await unseen.messages() == []
        (event,) = unseen.events
        assert (event.name, event.channel, event.at) == ("diverged", channel, 5)
        unknown = bus.history(channel, since=Position(1, 4))
        assert sequences(await unknown.messages()) == [1, 2, 3, 4, 5], "nothing is common with an epoch before all"
        assert [event.name for event in unknown.events] == ["diverged"]


async def test_what_was_answered_is_there(home: Home, room: str) -> None:
    """An accepted record is answered ahead of its commit; who asks behind the answer finds it."""
    async with home.bus() as bus:
        channel = f"a.{room}"
        for number in range(1, 30):
            await bus.publish(channel, b"%d" % number)
            assert sequences(await bus.history(channel, since=Last(1)).messages()) == [number]


async def test_ephemeral_messages_are_not_read_back(home: Home, room: str) -> None:
    async with home.bus() as bus:
        channel = f"e.{room}"
        await fill(bus, channel, 5)
        history = bus.history(channel, since=Position(0, 1))
        assert await history.messages() == []
        assert history.info is not None
        assert (history.info.head, history.info.level) == (5, Level.EPHEMERAL)


async def test_expired_messages_are_not_there(home: Home, room: str) -> None:
    """Neither in a read nor for a subscription that catches up; their sequences are gone, and counted as such."""
    async with home.bus() as bus:
        channel = f"s.{room}"
        await bus.publish(channel, b"stays")
        await bus.publish(channel, b"goes", expiry_s=1)
        await bus.publish_many(channel, [b"goes"] * 3, expiry_s=1)
        await bus.publish(channel, b"stays")
        # Expiries are whole seconds, rounded up; broker time is steered by a thousandth at most.
        await asyncio.sleep(2.01)
        assert sequences(await bus.history(channel).messages()) == [1, 6]
        batches = [batch async for batch in bus.history(channel).batches()]
        # An archive that has them already makes one run of the two.
        gone = [run for batch in batches for run in batch.gone]
        assert gone in ([(2, 1, 1), (3, 3, 1)], [(2, 4, 1)])
        assert sequences(await bus.history(channel, reverse=True).messages()) == [6, 1]
        assert sequences(await bus.history(channel, limit=2).messages()) == [1, 6], "messages are counted"
        assert sequences(await bus.history(f"*.{room}").messages()) == [1, 6]
        caught_up = []
        async with bus.subscribe(channel, start="start") as subscription, asyncio.timeout(10):
            async for message in subscription:
                caught_up.append(message.sequence)
                if message.sequence == 6:
                    break
        assert caught_up == [1, 6]


async def test_a_pattern_in_the_order_of_the_bus(home: Home, room: str) -> None:
    async with home.bus() as bus:
        for number in range(4):
            await bus.publish(f"s.{room}.{number % 2}", b"%d" % number)
            await bus.publish(f"s.other.{room}", b"x")
        history = bus.history(f"s.{room}.*")
        messages = await history.messages()
        assert [(message.channel, message.payload) for message in messages] == [
            (f"s.{room}.{number % 2}", b"%d" % number) for number in range(4)
        ]
        place = history.bus_position
        assert place is not None
        assert await bus.history(f"s.{room}.*", since=place).messages() == []
        await bus.publish(f"s.{room}.1", b"new")
        again = await bus.history(f"s.{room}.*", since=place).messages()
        assert [message.payload for message in again] == [b"new"]
        half = messages[1].batch.bus_position
        assert [message.payload for message in await bus.history(f"s.{room}.*", since=half).messages()] == [
            b"2", b"3", b"new",
        ]  # fmt: skip
        timed = await bus.history(f"s.{room}.*", since=Since(again[0].time)).messages()
        assert [message.payload for message in timed] == [b"new"]
        lost = bus.history(f"s.{room}.*", since=BusPosition(bytes(16), 1, 0))
        assert await lost.messages() == []
        assert [event.name for event in lost.events] == ["diverged"]


@pytest.mark.parametrize(
    ("name", "bounds", "code"),
    [
        ("no..name", {}, "INVALID_CHANNEL"),
        ("no..*", {}, "INVALID_PATTERN"),
        ("s.x", {"limit": 0}, "INVALID_POSITION"),
        ("s.*", {"limit": 5}, "INVALID_POSITION"),
        ("s.*", {"reverse": True}, "INVALID_POSITION"),
        ("s.*", {"since": Last(5)}, "INVALID_POSITION"),
        ("s.*", {"since": Position(0, 5)}, "INVALID_POSITION"),
        ("$s", {}, "INVALID_CHANNEL"),
    ],
)
async def test_what_cannot_be_read_is_refused(home: Home, name: str, bounds: dict[str, object], code: str) -> None:
    async with home.bus() as bus:
        with pytest.raises(BrokerError) as refused:
            await bus.history(name, **bounds).messages()  # type: ignore[arg-type]
        assert refused.value.name == code


async def test_a_read_ends_where_the_channel_ended(home: Home, room: str) -> None:
    """Whatever is published meanwhile: a read of a channel is finite."""
    async with home.bus() as bus:
        channel = f"s.{room}"
        await bus.publish_many(channel, [bytes(100_000)] * 8)
        seen: list[int] = []
        async for message in bus.history(channel):
            seen.append(message.sequence)
            await bus.publish(channel, b"more")
        assert seen == list(range(1, 9))


async def test_across_segments_and_epochs_and_a_restart(own_server: Server) -> None:
    """Two kills draw two epochs of an accepted channel; what is stored is read back whole, both ways."""
    stored: list[int] = []
    large = bytes(SEGMENT_BYTES // 40)
    for run in range(3):
        async with connect(own_server.tcp_url, backoff=QUICK) as bus:
            for _ in range(20):
                receipt = await bus.publish("a.long", large)
            # What a synced channel has answered is on the disk, and so is all that was committed before it.
            await bus.publish("s.mark", b"x")
            await bus.publish("s.mark", b"x")
            stored.append(receipt.sequence)
        if run < 2:
            own_server.kill()
            await asyncio.to_thread(own_server.start)
    async with connect(own_server.unix_url) as bus:
        messages = await bus.history("a.long").messages()
        assert sequences(messages) == list(range(1, stored[-1] + 1))
        epochs = [message.epoch for message in messages]
        assert len(set(epochs)) == 3
        assert epochs == sorted(epochs)
        assert sequences(await bus.history("a.long", reverse=True).messages()) == list(range(stored[-1], 0, -1))
        assert sequences(await bus.history("a.long", since=Last(stored[-1] - 5)).messages()) == list(
            range(6, stored[-1] + 1)
        )
        beyond = bus.history("a.long", since=Position(epochs[0], stored[0] + 1))
        assert sequences(await beyond.messages()) == list(range(stored[0] + 1, stored[-1] + 1))
        assert [(event.name, event.at) for event in beyond.events] == [("diverged", stored[0])]
        for message in (messages[0], messages[25], messages[-1]):
            found = await bus.history("a.long", since=Since(message.time), limit=1).messages()
            assert sequences(found) == [message.sequence]


async def test_a_lost_connection_does_not_end_a_read(own_server: Server) -> None:
    async with connect(own_server.tcp_url, backoff=QUICK) as bus:
        await bus.publish_many("s.long", [bytes(60_000)] * 20)
        seen: list[int] = []
        async for message in bus.history("s.long"):
            if not seen:
                own_server.kill()
                await asyncio.to_thread(own_server.start)
            seen.append(message.sequence)
        assert seen == list(range(1, 21))


async def test_many_questions_at_once(home: Home, room: str) -> None:
    """More than may wait: the connection is read later, and every question is answered."""
    async with home.bus() as bus:
        for channel in range(20):
            bus.post(f"s.{room}.{channel}", b"%d" % channel)
        await bus.flush()
        answers = await asyncio.gather(*(bus.history(f"s.{room}.{number % 20}").messages() for number in range(1_500)))
        assert [answer[0].payload for answer in answers] == [b"%d" % (number % 20) for number in range(1_500)]


# -- names -------------------------------------------------------------------------------------------------------------


async def test_names(home: Home, room: str) -> None:
    async with home.bus() as bus:
        names = sorted(f"s.{room}.{number}" for number in range(30))
        for name in reversed(names):
            bus.post(name, b"x")
        bus.post(f"e.{room}", b"x")
        await bus.flush()
        prefix = f"s.{room}."
        assert [channel.name async for channel in bus.channels(prefix)] == names
        assert [channel.name async for channel in bus.channels(prefix, limit=7)] == names[:7]
        assert [channel.name async for channel in bus.channels(prefix, after=names[20])] == names[21:]
        assert [channel.name async for channel in bus.channels(f"s.{room}.2")] == [
            name for name in names if name.startswith(f"s.{room}.2")
        ]
        assert [channel async for channel in bus.channels(f"e.{room}")] == [], "it is not stored"
        assert [channel.name async for channel in bus.channels(f"t.{room}")] == []
        (one,) = [channel async for channel in bus.channels(names[0], details=True, limit=1)]
        assert one.info == await bus.channel(names[0])
        with pytest.raises(BrokerError, match="DENIED"):
            assert [channel async for channel in bus.channels("$")]


async def test_names_that_come_meanwhile(home: Home, room: str) -> None:
    """More than a page, while others are created: those that were there come once, in order."""
    async with home.bus() as bus:
        names = sorted(f"s.{room}.{number:04}" for number in range(1_200))
        for name in names:
            bus.post(name, b"x")
        await bus.flush()
        listed = []
        async for channel in bus.channels(f"s.{room}."):
            listed.append(channel.name)
            if len(listed) % 500 == 1:
                for number in range(300):
                    bus.post(f"s.{room}.new.{len(listed)}.{number}", b"x")
                await bus.flush()
        assert listed == sorted(set(listed))
        assert [name for name in listed if ".new." not in name] == names


# -- trim and remove ---------------------------------------------------------------------------------------------------


async def test_trimmed(home: Home, room: str) -> None:
    async with home.bus() as bus:
        channel = f"s.{room}.one"
        await fill(bus, channel, 3, 3, 4)
        epoch = (await bus.channel(channel)).epoch
        assert await bus.trim(channel, 5) == 5
        assert await bus.trim(channel, 2) == 5, "what is gone stays gone"
        assert (await bus.channel(channel))[1:3] == (5, 10)
        assert sequences(await bus.history(channel).messages()) == [5, 6, 7, 8, 9, 10]
        assert sequences(await bus.history(channel, reverse=True, limit=2).messages()) == [10, 9]
        assert sequences(await bus.history(channel, since=Last(50)).messages()) == [5, 6, 7, 8, 9, 10]
        assert sequences(await bus.history(f"s.{room}.>").messages()) == [5, 6, 7, 8, 9, 10]
        behind = bus.history(channel, since=Position(epoch, 2))
        assert sequences(await behind.messages()) == [5, 6, 7, 8, 9, 10]
        assert [(event.name, event.at) for event in behind.events] == [("trimmed", 5)]
        with pytest.raises(BrokerError, match="INVALID_POSITION"):
            await bus.trim(channel, 12)
        assert await bus.trim(channel, 11) == 11
        assert await bus.history(channel).messages() == []
        assert await bus.history(f"s.{room}.>").messages() == []
        receipt = await bus.publish(channel, b"goes on")
        assert receipt.sequence == 11
        assert sequences(await bus.history(channel).messages()) == [11]
        with pytest.raises(BrokerError, match="INVALID_POSITION"):
            await bus.trim(f"s.{room}.none", 2)
        assert await bus.trim(f"s.{room}.none", 1) == 1


async def test_removed(home: Home, room: str) -> None:
    channel = f"s.{room}.one"
    async with home.bus() as bus:
        before = await bus.publish(channel, b"x")
        with pytest.raises(BrokerError, match=r"BUSY.*got 0 live subscriptions that name it, 1 publishers"):
            await bus.remove(channel)
    async with home.bus() as bus:
        async with bus.subscribe(channel):
            with pytest.raises(BrokerError, match=r"BUSY.*got 1 live subscriptions"):
                await bus.remove(channel)
        await remove_when_let_go(bus, channel)
        assert [listed async for listed in bus.channels(channel)] == []
        assert await bus.history(channel).messages() == []
        assert await bus.history(f"s.{room}.>").messages() == []
        assert (await bus.channel(channel))[:3] == (0, 1, 0)
        after = await bus.publish(channel, b"y")
        assert (after.sequence, after.epoch == before.epoch) == (1, False)
        gone = bus.history(channel, since=Position(before.epoch, 1))
        assert [message.payload for message in await gone.messages()] == [b"y"]
        assert [event.name for event in gone.events] == ["diverged"]
        await bus.remove(f"s.{room}.none")


async def remove_when_let_go(bus: Bus, channel: str) -> None:
    """Remove a channel whose publisher has gone, when the server has heard of that."""
    for _ in range(500):
        try:
            await bus.remove(channel)
        except BrokerError as failure:
            if failure.name != "BUSY":
                raise
            await asyncio.sleep(0.01)
        else:
            return
    raise AssertionError("somebody holds it still")


async def test_trims_and_removals_outlast_a_kill(own_server: Server) -> None:
    async with connect(own_server.tcp_url) as bus:
        await fill(bus, "s.trimmed", 4, 4)
        await fill(bus, "s.removed", 4)
        assert await bus.trim("s.trimmed", 6) == 6
    async with connect(own_server.tcp_url) as bus:
        await remove_when_let_go(bus, "s.removed")
    own_server.kill()
    await asyncio.to_thread(own_server.start)
    async with connect(own_server.tcp_url) as bus:
        assert sequences(await bus.history("s.trimmed").messages()) == [6, 7, 8]
        assert await bus.history("s.removed").messages() == []
        assert [channel.name async for channel in bus.channels("s.")] == ["s.trimmed"]


# -- what is not in memory ---------------------------------------------------------------------------------------------


async def test_channels_that_are_not_in_memory(own_server: Server) -> None:
    """After a restart nothing is in memory, and reading brings nothing there; what is asked is answered as before."""
    async with connect(own_server.tcp_url) as bus:
        for number in range(50):
            bus.post(f"s.cold.{number:02}", b"%d" % number)
        bus.post("s.cold.kept", b"x")
        bus.post("a.cold", b"x")
        await bus.flush()
        await bus.publish("s.cold.07", b"again")
        before = await bus.history("s.>").messages()
        listed = [channel async for channel in bus.channels("s.cold.", details=True)]
        assert len(listed) == 51
    async with connect(own_server.tcp_url) as bus:
        await remove_when_let_go(bus, "s.cold.kept")
    own_server.kill()
    await asyncio.to_thread(own_server.start)
    async with connect(own_server.tcp_url) as bus:
        loaded = (await bus.stats())["channels"]
        answers = await asyncio.gather(*(bus.history(f"s.cold.{number:02}").messages() for number in range(50)))
        assert [[message.payload for message in answer] for answer in answers] == [
            [b"7", b"again"] if number == 7 else [b"%d" % number] for number in range(50)
        ]
        assert [channel async for channel in bus.channels("s.cold.", details=True)] == listed[:-1]
        assert [channel.name async for channel in bus.channels("s.cold.", after="s.cold.03", limit=2)] == [
            "s.cold.04", "s.cold.05",
        ]  # fmt: skip
        assert await bus.history("s.cold.none").messages() == []
        assert await bus.history("s.cold.kept").messages() == []
        again = await bus.history("s.>").messages()
        assert [(message.channel, message.position) for message in again] == [
            (message.channel, message.position) for message in before if message.channel != "s.cold.kept"
        ]
        assert (await bus.stats())["channels"] == loaded
        # What is in memory and what is not, in one listing, and one that is removed here and still in the log's tables.
        await bus.publish("s.cold.20", b"warm")
        await bus.publish("s.cold.new", b"warm")
        await bus.remove("s.cold.21")
        names = [channel.name async for channel in bus.channels("s.cold.")]
        assert names == sorted({*(channel.name for channel in listed[:-1]), "s.cold.new"} - {"s.cold.21"})
        assert await bus.history("s.cold.21").messages() == []
        assert await bus.trim("s.cold.22", 2) == 2
        assert await bus.history("s.cold.22").messages() == []
