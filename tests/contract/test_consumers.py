"""What every home must do alike with durable consumers: a reader with a name, whose place the broker keeps."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any

import pytest

from broker import BrokerError, Position, Since
from tests.contract.homes import nothing_comes, take

if TYPE_CHECKING:
    from broker import Bus
    from tests.contract.homes import Home

pytestmark = pytest.mark.usefixtures("loop_kind")


def numbered(count: int, begin: int = 0) -> list[bytes]:
    return [b"%d" % number for number in range(begin, begin + count)]


async def settled(bus: Bus, name: str) -> Any:
    """Return what is told of a consumer once it has looked at all that there is."""
    async with asyncio.timeout(10):
        while True:
            info = await bus.consumer_info(name)
            if info.lag == 0:
                return info
            await asyncio.sleep(0.01)


async def test_a_consumer_goes_on_where_it_was(home: Home, room: str) -> None:
    channel, name = f"s.{room}", f"c.{room}"
    async with home.bus() as bus:
        await bus.publish_many(channel, numbered(10))
        made = await bus.create_consumer(name, channel)
        assert (made.settings.name, made.settings.filters, made.settings.mode) == (name, (channel,), "exclusive")
        async with bus.consume(name) as consumer:
            jobs = await take(consumer, 4)
            assert [job.payload for job in jobs] == numbered(4)
            assert [(job.channel, job.sequence, job.attempt, job.redelivered) for job in jobs] == [
                (channel, sequence, 1, False) for sequence in range(1, 5)
            ]
            for job in jobs[:3]:
                await job.ack()
        async with bus.consume(name) as consumer:
            jobs = await take(consumer, 7)
            assert [job.payload for job in jobs] == numbered(7, begin=3)
            assert jobs[0].redelivered
            for job in jobs:
                job.ack()
            await consumer.flush()
            await bus.publish(channel, b"10")
            (job,) = await take(consumer, 1)
            assert (job.payload, job.redelivered) == (b"10", False)
            await job.ack()
        info = await settled(bus, name)
        assert (info.acked, info.ready, info.leased, info.members) == (11, 0, 0, 0)
        assert [each[2] for each in info.positions] == [11]


async def test_a_consumer_of_a_pattern_follows_the_bus(home: Home, room: str) -> None:
    name = f"c.{room}"
    async with home.bus() as bus:
        for number in range(20):
            await bus.publish(f"s.{room}.{number % 3}", b"%d" % number)
        await bus.create_consumer(name, f"s.{room}.>")
        async with bus.consume(name) as consumer:
            jobs = await take(consumer, 20)
            assert [job.payload for job in jobs] == numbered(20)
            consumer.ack_through(jobs[14])
        async with bus.consume(name) as consumer:
            jobs = await take(consumer, 5)
            assert [job.payload for job in jobs] == numbered(5, begin=15)
            await consumer.ack_through(jobs[-1])
            assert [job.settled for job in jobs] == [True] * 5
        info = await settled(bus, name)
        assert info.bus is not None
        assert (info.acked, info.lag) == (20, 0)


async def test_it_begins_where_it_is_told(home: Home, room: str) -> None:
    channel = f"s.{room}"
    async with home.bus() as bus:
        receipts = [await bus.publish(channel, payload) for payload in numbered(3)]
        await asyncio.sleep(0.002)
        since = Since(time.time_ns() // 1000)
        await asyncio.sleep(0.002)
        receipts += [await bus.publish(channel, payload) for payload in numbered(3, begin=3)]
        for number, (start, first) in enumerate(
            [("start", 0), (receipts[1].position, 2), ({channel: receipts[3].position}, 4), (since, 3)]
        ):
            name = f"c.{room}.{number}"
            await bus.create_consumer(name, channel, start=start)
            async with bus.consume(name) as consumer:
                assert [job.payload for job in await take(consumer, 6 - first)] == numbered(6 - first, begin=first)
        await bus.create_consumer(f"c.{room}.new", channel, start="new")
        async with bus.consume(f"c.{room}.new") as consumer:
            assert await nothing_comes(consumer)
            await bus.publish(channel, b"later")
            assert [job.payload for job in await take(consumer, 1)] == [b"later"]
        with pytest.raises(BrokerError, match="INVALID_POSITION"):
            await bus.create_consumer(f"c.{room}.bad", f"s.{room}.>", start=Position(1, 1))


async def test_it_can_be_reset(home: Home, room: str) -> None:
    channel, name = f"s.{room}", f"c.{room}"
    async with home.bus() as bus:
        receipts = [await bus.publish(channel, payload) for payload in numbered(5)]
        await bus.create_consumer(name, channel)
        async with bus.consume(name) as consumer:
            for job in await take(consumer, 5):
                await job.ack()
        await bus.reset_consumer(name, "start")
        async with bus.consume(name) as consumer:
            assert [job.payload for job in await take(consumer, 5)] == numbered(5)
        await bus.reset_consumer(name, receipts[3].position)
        async with bus.consume(name) as consumer:
            assert [job.payload for job in await take(consumer, 1)] == [b"4"]
        await bus.reset_consumer(name, "new")
        async with bus.consume(name) as consumer:
            assert await nothing_comes(consumer)


async def test_the_newer_holder_takes_over(home: Home, room: str) -> None:
    channel, name = f"s.{room}", f"c.{room}"
    async with home.bus() as bus:
        await bus.publish_many(channel, numbered(3))
        await bus.create_consumer(name, channel)
        async with bus.consume(name) as older:
            (job, *_) = await take(older, 3)
            await job.ack()
            async with bus.consume(name) as newer:
                with pytest.raises(BrokerError, match="CONSUMER_TAKEN"):
                    await take(older, 1)
                jobs = await take(newer, 2)
                assert [job.payload for job in jobs] == [b"1", b"2"]
                assert all(job.redelivered for job in jobs)
        assert "taken" in [event.name for event in older.events]


async def test_what_is_not_settled_in_time_comes_again_in_order(home: Home, room: str) -> None:
    channel, name = f"s.{room}", f"c.{room}"
    async with home.bus() as bus:
        await bus.publish_many(channel, numbered(3))
        await bus.create_consumer(name, channel, lease_s=0.2)
        async with bus.consume(name) as consumer:
            first = await take(consumer, 3)
            await first[0].ack()
            again = await take(consumer, 2)
            assert [job.payload for job in again] == [b"1", b"2"]
            assert [(job.redelivered, job.attempt) for job in again] == [(True, 2), (True, 1)]
            with pytest.raises(BrokerError, match=r"LEASE_EXPIRED|LEASE_UNKNOWN"):
                await first[1].ack()
            assert "refused" in [event.name for event in consumer.events]
            for job in again:
                await job.ack()


async def test_a_paused_consumer_gives_out_nothing(home: Home, room: str) -> None:
    channel, name = f"s.{room}", f"c.{room}"
    async with home.bus() as bus:
        await bus.publish_many(channel, numbered(2))
        await bus.create_consumer(name, channel, paused=True)
        async with bus.consume(name) as consumer:
            assert await nothing_comes(consumer)
            assert not (await bus.resume_consumer(name)).settings.paused
            assert len(await take(consumer, 2)) == 2
            assert (await bus.pause_consumer(name)).settings.paused
            await bus.publish(channel, b"2")
            assert await nothing_comes(consumer)
            assert {"paused", "resumed"} <= {event.name for event in consumer.events}


async def test_its_window_bounds_what_is_under_way(home: Home, room: str) -> None:
    channel, name = f"s.{room}", f"c.{room}"
    async with home.bus() as bus:
        await bus.publish_many(channel, numbered(10))
        await bus.create_consumer(name, channel)
        async with bus.consume(name, window=3) as consumer:
            jobs = await take(consumer, 3)
            assert await nothing_comes(consumer)
            assert (await bus.consumer_info(name)).leased == 3
            await jobs[1].ack()
            assert [job.payload for job in await take(consumer, 1)] == [b"3"]
            assert await nothing_comes(consumer)
            assert (await bus.consumer_info(name)).members == 1


async def test_consumers_are_listed_and_removed(home: Home, room: str) -> None:
    names = [f"c.{room}.{each}" for each in "abc"]
    async with home.bus() as bus:
        for name in names:
            await bus.create_consumer(name, f"s.{room}")
        listed = [info.settings.name async for info in bus.consumers(f"c.{room}.")]
        assert listed == names
        assert [info.settings.name async for info in bus.consumers(f"c.{room}.", after=names[0], limit=1)] == names[1:2]
        consumer = await bus.consume(names[0])
        await bus.remove_consumer(names[0])
        with pytest.raises(BrokerError, match="UNKNOWN_CONSUMER"):
            await take(consumer, 1)
        assert [info.settings.name async for info in bus.consumers(f"c.{room}.")] == names[1:]
        for unknown in (
            bus.consumer_info(names[0]),
            bus.remove_consumer(names[0]),
            bus.pause_consumer(names[0]),
            bus.reset_consumer(names[0], "start"),
            bus.peek(names[0]),
            bus.purge(names[0]),
        ):
            with pytest.raises(BrokerError, match="UNKNOWN_CONSUMER"):
                await unknown
        with pytest.raises(BrokerError, match="UNKNOWN_CONSUMER"):
            await bus.consume(names[0])


async def test_settings_are_judged_and_kept(home: Home, room: str) -> None:
    name = f"c.{room}"
    async with home.bus() as bus:
        await bus.create_consumer(name, f"s.{room}", lease_s=5)
        assert (await bus.create_consumer(name, f"s.{room}", lease_s=5)).settings.lease_ms == 5000
        with pytest.raises(BrokerError, match="CONSUMER_EXISTS"):
            await bus.create_consumer(name, f"s.{room}", lease_s=6)
        updated = await bus.create_consumer(name, f"s.{room}", lease_s=6, update=True)
        assert updated.settings.lease_ms == 6000
        with pytest.raises(BrokerError, match="CONSUMER_EXISTS"):
            await bus.create_consumer(name, f"s.{room}.other", update=True)
        for bad in (
            {"lease_s": -1},
            {"attempts_max": -1},
            {"backoff_s": (2, 1)},
            {"dead_letter": f"s.{room}"},
        ):
            with pytest.raises(BrokerError, match="INVALID_CONSUMER"):
                await bus.create_consumer(f"{name}.bad", f"s.{room}", **bad)
        with pytest.raises(BrokerError, match="INVALID_PATTERN"):
            await bus.create_consumer(f"{name}.bad", "a..b")
        with pytest.raises(BrokerError, match="NOT_STORED"):
            await bus.create_consumer(f"{name}.bad", f"e.{room}")


async def test_it_is_there_when_the_bus_is_opened_again(home: Home, room: str) -> None:
    channel, name = f"s.{room}", f"c.{room}"
    async with home.bus() as bus:
        await bus.publish_many(channel, numbered(6))
        await bus.create_consumer(name, channel)
        async with bus.consume(name) as consumer:
            jobs = await take(consumer, 4)
            for job in (jobs[0], jobs[2]):
                await job.ack()
    async with home.bus() as bus, bus.consume(name) as consumer:
        jobs = await take(consumer, 4)
        assert [job.payload for job in jobs] == [b"1", b"3", b"4", b"5"]
        for job in jobs:
            await job.ack()
        info = await settled(bus, name)
        assert (info.acked, info.ready, info.leased) == (6, 0, 0)


async def test_what_is_trimmed_meanwhile_is_told(home: Home, room: str) -> None:
    channel, name = f"s.{room}", f"c.{room}"
    async with home.bus() as bus:
        await bus.publish_many(channel, numbered(10))
        await bus.create_consumer(name, channel)
        await bus.trim(channel, 6)
        async with bus.consume(name) as consumer:
            jobs = await take(consumer, 5)
            assert [job.sequence for job in jobs] == [6, 7, 8, 9, 10]


async def test_reading_to_the_end_waits_in_no_task(home: Home, room: str) -> None:
    """Several tasks read one member: each job goes to one of them; who gives up waiting has lost nothing."""
    channel, name = f"s.{room}", f"c.{room}"
    async with home.bus() as bus:
        await bus.create_consumer(name, channel)
        async with bus.consume(name) as consumer:
            assert await nothing_comes(consumer, 0.02)
            taking = [asyncio.ensure_future(take(consumer, 5)) for _ in range(4)]
            await bus.publish_many(channel, numbered(20))
            found = sorted(int(job.payload) for jobs in await asyncio.gather(*taking) for job in jobs)
            assert found == list(range(20))
