"""What every home must do alike: one suite over all of them, on both kinds of loop."""

from __future__ import annotations

import asyncio
import os
import time
from typing import TYPE_CHECKING

import pytest

from broker import BrokerError, BusPosition, Last, Level, Position, Since
from broker.model.errors import Remedy
from tests.contract.homes import nothing_comes, take

if TYPE_CHECKING:
    from tests.contract.homes import Home

pytestmark = pytest.mark.usefixtures("loop_kind")

LEVELS = {"e": Level.EPHEMERAL, "a": Level.ACCEPTED, "s": Level.SYNCED}


def numbered(count: int, begin: int = 0) -> list[bytes]:
    return [b"%d" % number for number in range(begin, begin + count)]


# -- publish and subscribe ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("profile", LEVELS)
async def test_messages_arrive_in_order_and_once(home: Home, room: str, profile: str) -> None:
    channel = f"{profile}.{room}"
    async with home.bus() as bus, bus.subscribe(channel) as subscription:
        for payload in numbered(3000):
            bus.post(channel, payload)
        await bus.flush()
        messages = await take(subscription, 3000)
        assert [message.payload for message in messages] == numbered(3000)
        assert [message.sequence for message in messages] == list(range(1, 3001))
        assert len({message.epoch for message in messages}) == 1
        assert await nothing_comes(subscription)


@pytest.mark.parametrize("profile", LEVELS)
async def test_a_receipt_says_where_and_how_safely(home: Home, room: str, profile: str) -> None:
    channel = f"{profile}.{room}"
    async with home.bus() as bus:
        first = await bus.publish(channel, b"a")
        second = await bus.publish(channel, b"b")
        assert (first.sequence, second.sequence) == (1, 2)
        assert second.position == Position(first.epoch, 2)
        assert first.level is LEVELS[profile]
        assert not first.duplicate
        info = await bus.channel(channel)
        assert (info.epoch, info.head, info.level) == (second.epoch, 2, LEVELS[profile])


async def test_many_at_once_share_receipts(home: Home, room: str) -> None:
    channel = f"s.{room}"
    async with home.bus() as bus:
        receipts = await bus.publish_many(channel, numbered(10_000))
        assert sum(receipt.count for receipt in receipts) == 10_000
        assert receipts[0].first == 1
        assert receipts[-1].sequence == 10_000
        assert await bus.publish_many(channel, []) == []
        async with bus.subscribe(channel, start="start") as subscription:
            assert [message.payload for message in await take(subscription, 10_000)] == numbered(10_000)


async def test_everything_about_a_message_comes_through(home: Home, room: str) -> None:
    channel = f"s.{room}"
    headers = {"content-type": "text/plain", "depth": 3, "blob": b"\0\xff", "list": [1, None, True]}
    begun_us = time.time_ns() // 1000
    async with home.bus() as bus, bus.subscribe(channel) as subscription:
        await bus.publish(channel, b"", headers=headers, key=b"\0key\xff", priority=0, expiry_s=3600)
        await bus.publish(channel, bytes(range(256)))
        full, plain = await take(subscription, 2)
        assert (full.channel, full.payload, full.headers, full.key) == (channel, b"", headers, b"\0key\xff")
        assert (full.priority, full.expiry_s) == (0, 3600)
        assert (plain.payload, plain.headers, plain.key) == (bytes(range(256)), {}, None)
        assert (plain.priority, plain.expiry_s, plain.publisher) == (2, None, None)
        assert abs(full.time - begun_us) < 60_000_000
        assert plain.time >= full.time


async def test_payloads_of_many_sizes_come_through(home: Home, room: str) -> None:
    channel = f"s.{room}"
    sizes = [0, 1, 127, 4083, 4084, 4085, 65_467, 65_468, 65_469, 65_536, 262_144, 1_048_576]
    async with home.bus() as bus, bus.subscribe(channel) as subscription:
        for size in sizes:
            bus.post(channel, (b"%08d" % size * (size // 8 + 1))[:size])
        await bus.flush()
        for size, message in zip(sizes, await take(subscription, len(sizes)), strict=True):
            assert message.payload == (b"%08d" % size * (size // 8 + 1))[:size]


async def test_batches_hold_the_same_messages(home: Home, room: str) -> None:
    channel = f"s.{room}"
    async with home.bus() as bus:
        await bus.publish_many(channel, numbered(2000))
        payloads: list[bytes] = []
        last = 0
        async with bus.subscribe(channel, start="start") as subscription, asyncio.timeout(10):
            async for batch in subscription.batches():
                assert batch.first == last + 1
                assert len(batch) == batch.last - batch.first + 1
                last = batch.last
                payloads += batch.payloads()
                if last == 2000:
                    break
        assert payloads == numbered(2000)


async def test_patterns_select_by_token(home: Home, room: str) -> None:
    async with (
        home.bus() as bus,
        bus.subscribe(f"s.{room}.*.done") as one,
        bus.subscribe(f"s.{room}.>") as rest,
        bus.subscribe(f"s.{room}.b.done", f"s.{room}.c") as literals,
    ):
        for name in ("a.done", "b.done", "b.done.not", "c"):
            await bus.publish(f"s.{room}.{name}", name.encode())
        assert [message.payload for message in await take(one, 2)] == [b"a.done", b"b.done"]
        assert [message.payload for message in await take(rest, 4)] == [b"a.done", b"b.done", b"b.done.not", b"c"]
        messages = await take(literals, 2)
        assert [(message.channel, message.payload) for message in messages] == [
            (f"s.{room}.b.done", b"b.done"),
            (f"s.{room}.c", b"c"),
        ]
        assert await nothing_comes(one)
        assert await nothing_comes(literals)


async def test_a_subscription_delivers_once_and_two_are_two_streams(home: Home, room: str) -> None:
    channel = f"s.{room}.x"
    async with (
        home.bus() as bus,
        bus.subscribe(channel, f"s.{room}.*", f"s.{room}.>") as several,
        bus.subscribe(channel) as other,
    ):
        await bus.publish_many(channel, numbered(5))
        assert [message.payload for message in await take(several, 5)] == numbered(5)
        assert [message.payload for message in await take(other, 5)] == numbered(5)
        assert await nothing_comes(several)


async def test_nothing_comes_after_a_subscription_is_closed(home: Home, room: str) -> None:
    channel = f"s.{room}"
    async with home.bus() as bus:
        closed = await bus.subscribe(channel)
        await bus.publish(channel, b"1")
        await closed.close()
        await closed.close()
        assert [message async for message in closed] == []
        async with bus.subscribe(channel) as another:
            await bus.publish(channel, b"2")
            assert [message.payload for message in await take(another, 1)] == [b"2"]


# -- where a subscription begins ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("profile", ["a", "s"])
async def test_starts(home: Home, room: str, profile: str) -> None:
    channel = f"{profile}.{room}.x"
    async with home.bus() as bus:
        receipts = [await bus.publish(channel, payload) for payload in numbered(10)]
        cases = [
            ("start", 0),
            (Position(receipts[0].epoch, 0), 0),
            (receipts[3].position, 4),
            ({channel: receipts[8].position}, 9),
            (Last(3), 7),
            (Last(100), 0),
            (Since(0), 0),
        ]
        for start, first in cases:
            async with bus.subscribe(channel, start=start) as subscription:
                found = [message.payload for message in await take(subscription, 10 - first)]
                assert found == numbered(10 - first, first), start
                assert await nothing_comes(subscription)
        async with bus.subscribe(channel) as new:
            await bus.publish(channel, b"10")
            assert [message.payload for message in await take(new, 1)] == [b"10"]


async def test_a_start_goes_on_with_what_is_new(home: Home, room: str) -> None:
    channel = f"s.{room}"
    async with home.bus() as bus:
        await bus.publish_many(channel, numbered(5000))
        async with bus.subscribe(channel, start="start") as subscription:
            bus.publish_many(channel, numbered(5000, 5000))
            assert [message.payload for message in await take(subscription, 10_000)] == numbered(10_000)


async def test_a_pattern_starts_after_a_bus_position(home: Home, room: str) -> None:
    async with home.bus() as bus:
        for number in range(20):
            await bus.publish(f"s.{room}.{number % 4}", b"%d" % number)
        places: list[BusPosition] = []
        async with bus.subscribe(f"s.{room}.>", start="start") as subscription, asyncio.timeout(10):
            seen: list[bytes] = []
            async for batch in subscription.batches():
                seen += batch.payloads()
                places.append(batch.bus_position)
                if len(seen) == 20:
                    break
            assert subscription.bus_position == places[-1]
        assert seen == numbered(20)
        assert places == sorted(places)
        async with bus.subscribe(f"s.{room}.>", start=places[11]) as subscription:
            assert [message.payload for message in await take(subscription, 8)] == numbered(8, 12)
            assert [event.name for event in subscription.events] == ["resumed"]


async def test_positions_that_are_none_are_refused_or_told(home: Home, room: str) -> None:
    channel = f"s.{room}"
    async with home.bus() as bus:
        receipt = await bus.publish(channel, b"x")
        with pytest.raises(BrokerError, match="INVALID_POSITION"):
            bus.subscribe("s.>", start=Position(1, 1))
        with pytest.raises(BrokerError, match="INVALID_POSITION"):
            bus.subscribe("s.>", start=Last(1))
        with pytest.raises(BrokerError, match="INVALID_POSITION"):
            bus.subscribe(channel, start={"s.other": receipt.position})
        async with bus.subscribe(channel, start=Position(receipt.epoch, 7)) as beyond:
            (event,) = beyond.events
            assert (event.name, event.channel, event.at) == ("diverged", channel, 1)
            await bus.publish(channel, b"y")
            assert [message.payload for message in await take(beyond, 1)] == [b"y"]


async def test_what_was_stored_is_there_after_opening_again(home: Home, room: str) -> None:
    channel = f"s.{room}.x"
    async with home.bus() as bus:
        await bus.publish_many(channel, numbered(100))
        async with bus.subscribe(f"s.{room}.>", start="start") as subscription:
            messages = await take(subscription, 60)
            position = messages[-1].position
    async with home.bus() as bus:
        receipt = await bus.publish(channel, b"100")
        assert receipt.sequence == 101
        async with bus.subscribe(channel, start=position) as subscription:
            assert [message.payload for message in await take(subscription, 41)] == numbered(41, 60)
            assert [event.name for event in subscription.events] == ["resumed"]


# -- limits and refusals -----------------------------------------------------------------------------------------------


async def test_a_payload_over_the_limit_harms_nobody(home: Home, room: str) -> None:
    channel = f"small.{room}"
    async with home.bus() as bus, bus.subscribe(channel) as subscription:
        sizes = [100 if number % 10 else 101 for number in range(100)]
        results = await asyncio.gather(*(bus.publish(channel, bytes(size)) for size in sizes), return_exceptions=True)
        names = [getattr(result, "name", "stored") for result in results]
        assert names == ["stored" if size == 100 else "PAYLOAD_TOO_LARGE" for size in sizes]
        stored = [result.sequence for result in results if not isinstance(result, BaseException)]
        assert stored == list(range(1, 91))
        assert [message.sequence for message in await take(subscription, 90)] == stored
        await bus.publish(channel, b"after")
        with pytest.raises(BrokerError) as raised:
            bus.post(channel, bytes((1 << 20) + 1))
        assert raised.value.name == "PAYLOAD_TOO_LARGE"
        assert raised.value.remedy is Remedy.STOP


async def test_headers_and_keys_over_the_limit_are_refused_at_once(home: Home, room: str) -> None:
    channel = f"s.{room}"
    async with home.bus() as bus:
        for options, name in (
            ({"headers": {"h": bytes(20_000)}}, "HEADERS_TOO_LARGE"),
            ({"headers": {"h": object()}}, "INVALID_RECORD"),
            ({"key": bytes(256)}, "INVALID_RECORD"),
            ({"key": b""}, "INVALID_RECORD"),
            ({"priority": 4}, "INVALID_RECORD"),
            ({"expiry_s": 0}, "INVALID_RECORD"),
        ):
            with pytest.raises(BrokerError, match=name):
                bus.post(channel, b"", **options)
        assert (await bus.publish(channel, b"")).sequence == 1


async def test_names_that_are_none_are_refused(home: Home) -> None:
    async with home.bus() as bus:
        for name in ("", ".", "a..b", "a b", "$reply.1", "é", "x" * 256, "a\0", "s.*", "s.>"):
            with pytest.raises(BrokerError, match="INVALID_CHANNEL"):
                bus.post(name, b"")
            with pytest.raises(BrokerError, match="INVALID_CHANNEL"):
                await bus.channel(name)
        for name in ("", ".", "a..b", "a b", "$reply.1", "$reply.*", "é", "s.>.x", "s.x*"):
            with pytest.raises(BrokerError, match="INVALID_PATTERN"):
                bus.subscribe(name)


async def test_a_channel_without_a_profile_is_refused_and_others_go_on(home: Home, room: str) -> None:
    async with home.bus() as bus:
        outcomes = await asyncio.gather(
            *(bus.publish(f"{profile}.{room}", b"") for profile in ("s", "none", "s", "none", "e", "a")),
            return_exceptions=True,
        )
        names = [getattr(outcome, "name", "stored") for outcome in outcomes]
        assert names == ["stored", "NO_PROFILE", "stored", "NO_PROFILE", "stored", "stored"]
        with pytest.raises(BrokerError, match="NO_PROFILE"):
            await bus.subscribe(f"none.{room}")
        bus.post(f"none.{room}", b"")
        with pytest.raises(BrokerError, match="NO_PROFILE"):
            await bus.flush()
        await bus.flush()
        assert (await bus.publish(f"s.{room}", b"")).sequence == 3


# -- flow --------------------------------------------------------------------------------------------------------------


async def test_drain_lets_a_fast_poster_go_no_faster_than_the_broker(home: Home, room: str) -> None:
    channel = f"s.{room}"
    async with home.bus(unanswered_bytes_max=20 << 20) as bus:
        for _ in range(400):
            bus.post(channel, bytes(100_000))  # 40 MB, twice what the bus may hold
            await bus.drain()
        await bus.flush()
        assert (await bus.channel(channel)).head == 400


async def test_posting_without_draining_is_refused_at_the_bound(home: Home, room: str) -> None:
    channel = f"s.{room}"
    async with home.bus(unanswered_bytes_max=1 << 20) as bus:
        posted = 0

        def post_until_refused() -> None:
            nonlocal posted
            # A bus with threads of its own sends meanwhile, but the disk is slower than this.
            while posted < 1000:
                bus.post(channel, bytes(100_000))
                posted += 1

        with pytest.raises(BrokerError, match="BUSY"):
            post_until_refused()
        assert posted >= 10
        await bus.flush()
        assert (await bus.channel(channel)).head == posted
        await bus.publish(channel, b"")


@pytest.mark.parametrize("profile", ["a", "s"])
async def test_slow_readers_go_on_where_they_were(home: Home, room: str, profile: str) -> None:
    """One that stands by position and one that stands by bus position; neither misses or repeats anything."""
    channel, payload = f"{profile}.{room}.x", bytes(1000)
    little = 64 * 1024
    async with (
        home.bus() as bus,
        bus.subscribe(channel, credit_bytes=little) as literal,
        bus.subscribe(f"{profile}.{room}.>", credit_bytes=little) as pattern,
    ):
        for _ in range(30):  # 3 MB against 64 KiB of credit and what the broker puts up with
            await bus.publish_many(channel, [payload] * 100)
        for subscription in (literal, pattern):
            messages = await take(subscription, 3000, timeout_s=20)
            assert [message.sequence for message in messages] == list(range(1, 3001))
        await bus.publish(channel, b"end")
        for subscription in (literal, pattern):
            assert [message.payload for message in await take(subscription, 1)] == [b"end"]


async def test_a_handler_that_publishes_over_a_backlog_finishes_and_delays_nobody(home: Home, room: str) -> None:
    """Each message of a backlog is answered by a publish that is awaited, while another subscription is timed.

    BROKER_TEST_BACKLOG=1000000 makes it the backlog of an afternoon; then it takes minutes, most of them round trips.
    """
    backlog = int(os.environ.get("BROKER_TEST_BACKLOG", "3000"))
    stored, sink, side = f"s.{room}", f"e.{room}.sink", f"e.{room}.side"
    delays: list[float] = []

    async def time_another() -> None:
        async with bus.subscribe(side) as timed:
            stream = aiter(timed)
            while True:
                begun = time.perf_counter()
                bus.post(side, b"")
                await anext(stream)
                delays.append(time.perf_counter() - begun)
                await asyncio.sleep(0.005)

    async with home.bus() as bus:
        for begin in range(0, backlog, 1000):
            await bus.publish_many(stored, numbered(1000, begin))
        async with bus.subscribe(stored, start="start") as subscription, bus.subscribe(sink) as answers:
            timing = asyncio.create_task(time_another())
            handled = 0
            async for message in subscription:
                assert message.sequence == handled + 1
                await bus.publish(sink, message.payload)
                handled += 1
                if handled == backlog:
                    break
            timing.cancel()
            await asyncio.wait({timing})
            assert [message.payload for message in await take(answers, 3)] == numbered(3)
    delays.sort()
    assert len(delays) > 5
    # Without the backlog in its way it takes well under a millisecond; behind it, it would take all the time there is.
    assert delays[len(delays) // 2] < 0.05


# -- the end -----------------------------------------------------------------------------------------------------------


async def test_closing_waits_for_what_was_posted(home: Home, room: str) -> None:
    channel = f"s.{room}"
    async with home.bus() as bus:
        for payload in numbered(5000):
            bus.post(channel, payload)
    async with home.bus() as bus:
        assert (await bus.channel(channel)).head == 5000


async def test_a_closed_bus_says_so_and_ends_its_readers(home: Home, room: str) -> None:
    channel = f"s.{room}"
    async with home.bus() as bus:
        subscription = await bus.subscribe(channel)
        reader = asyncio.create_task(take(subscription, 10))
        await bus.publish(channel, b"last")
        await asyncio.sleep(0.05)
    assert [message.payload for message in await reader] == [b"last"]
    await bus.close()
    with pytest.raises(BrokerError, match="CLOSED"):
        bus.post(channel, b"")
    with pytest.raises(BrokerError, match="CLOSED"):
        await bus.channel(channel)
    with pytest.raises(BrokerError, match="CLOSED"):
        await bus.subscribe(channel)


async def test_a_cancelled_publish_is_stored_all_the_same_and_concerns_nobody_else(home: Home, room: str) -> None:
    channel = f"s.{room}"

    async def publish(payload: bytes) -> int:
        return (await bus.publish(channel, payload)).sequence

    async with home.bus() as bus:
        tasks = [asyncio.create_task(publish(payload)) for payload in numbered(10)]
        await asyncio.sleep(0)
        tasks[4].cancel()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert isinstance(results[4], asyncio.CancelledError)
        assert [result for result in results if isinstance(result, int)] == [1, 2, 3, 4, 6, 7, 8, 9, 10]
        assert (await bus.channel(channel)).head == 10


async def test_the_broker_tells_its_figures(home: Home) -> None:
    async with home.bus() as bus:
        assert (await bus.stats())["run"] >= 1


async def test_what_has_expired_is_delivered_to_nobody(home: Home, room: str) -> None:
    """To one channel's reader nor to a pattern's: its sequence is passed, and what stays comes."""
    channel = f"s.{room}.x"
    async with home.bus() as bus:
        await bus.publish(channel, b"goes", expiry_s=1)
        await bus.publish(channel, b"stays", expiry_s=3_600)
        await asyncio.sleep(2.1)
        for selected in (channel, f"s.{room}.*"):
            async with bus.subscribe(selected, start="start") as messages:
                [message] = await take(messages, 1)
                assert (message.payload, message.sequence) == (b"stays", 2)
