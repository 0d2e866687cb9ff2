"""Messages for later, over every home: scheduled, cancelled, listed, and published once at their time."""

from __future__ import annotations

import asyncio
import time
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import pytest

from broker import BrokerError, Level
from tests.contract.homes import nothing_comes, take

if TYPE_CHECKING:
    from typing import Any

    from broker import Bus
    from tests.contract.homes import Home

pytestmark = pytest.mark.usefixtures("loop_kind")

FAR_S = 3_000.0


async def refused(awaited: Any) -> str:
    """Return the name of the error that it ends with."""
    try:
        await awaited
    except BrokerError as failure:
        return failure.name
    return ""


async def listed(bus: Bus, prefix: str) -> list[tuple[str, str | bytes]]:
    return [(message.channel, message.id) async for message in bus.delayed(prefix)]


@pytest.mark.parametrize("profile", ["a", "s"])
async def test_a_message_comes_at_its_time_and_not_before(home: Home, room: str, profile: str) -> None:
    channel = f"{profile}.{room}"
    async with home.bus() as bus, await bus.subscribe(channel) as messages:
        begun_us = time.time() * 1e6
        scheduled = await bus.schedule(
            channel, b"later", delay_s=0.3, id="one", key=b"k", headers={"a": 1}, priority=1, expiry_s=60
        )
        assert (scheduled.id, scheduled.duplicate) == ("one", False)
        assert begun_us + 250_000 < scheduled.due_us < begun_us + 2_000_000
        assert await nothing_comes(messages)
        [message] = await take(messages, 1)
        assert scheduled.due_us <= message.time <= scheduled.due_us + 500_000
        assert (message.payload, message.key, message.headers) == (b"later", b"k", {"a": 1})
        assert (message.priority, message.sequence) == (1, 1)
        assert await listed(bus, channel) == []


async def test_an_id_that_the_channel_remembers_is_published_at_its_time(home: Home, room: str) -> None:
    channel = f"s.{room}"
    async with home.bus() as bus, await bus.subscribe(channel) as messages:
        first = await bus.publish(channel, b"first", id="one")
        scheduled = await bus.schedule(channel, b"later", delay_s=0.1, id="one")
        assert (first.duplicate, scheduled.duplicate) == (False, False)
        assert [(message.payload, message.id) for message in await take(messages, 2)] == [
            (b"first", b"one"),
            (b"later", b"one"),
        ]
        again = await bus.publish(channel, b"again", id="one")
        assert (again.duplicate, again.first) == (True, 2)


async def test_what_is_due_earlier_comes_first(home: Home, room: str) -> None:
    channel = f"s.{room}"
    async with home.bus() as bus, await bus.subscribe(channel) as messages:
        delays = [0.5, 0.3, 0.4, 0.2, 1.3, 0.6]
        await asyncio.gather(*[bus.schedule(channel, b"%f" % delay_s, delay_s=delay_s) for delay_s in delays])
        assert [message.payload for message in await take(messages, 6)] == [b"%f" % each for each in sorted(delays)]


async def test_a_time_that_is_past_is_now(home: Home, room: str) -> None:
    channel = f"s.{room}"
    async with home.bus() as bus, await bus.subscribe(channel) as messages:
        await bus.schedule(channel, b"1", deliver_at=0)
        await bus.schedule(channel, b"2", deliver_at=datetime.now(UTC) - timedelta(days=3))
        await bus.schedule(channel, b"3", delay_s=0)
        assert [message.payload for message in await take(messages, 3)] == [b"1", b"2", b"3"]


async def test_a_time_of_day(home: Home, room: str) -> None:
    channel = f"s.{room}"
    async with home.bus() as bus, await bus.subscribe(channel) as messages:
        at = datetime.now(UTC) + timedelta(seconds=0.4)
        scheduled = await bus.schedule(channel, b"1", deliver_at=at)
        assert abs(scheduled.due_us - at.timestamp() * 1e6) <= 1
        [message] = await take(messages, 1)
        assert message.time >= scheduled.due_us


async def test_it_can_be_cancelled_by_its_id(home: Home, room: str) -> None:
    channel = f"s.{room}"
    async with home.bus() as bus, await bus.subscribe(channel) as messages:
        await bus.schedule(channel, b"never", delay_s=0.5, id="gone")
        await bus.schedule(channel, b"far", delay_s=FAR_S, id=b"\xff\x00")
        await bus.schedule(channel, b"comes", delay_s=0.5, id="stays")
        assert sorted(map(str, await listed(bus, channel))) == sorted(
            map(str, [(channel, "gone"), (channel, "stays"), (channel, b"\xff\x00")])
        )
        await bus.cancel(channel, "gone")
        await bus.cancel(channel, b"\xff\x00")
        assert await listed(bus, channel) == [(channel, "stays")]
        assert await refused(bus.cancel(channel, "gone")) == "UNKNOWN_MESSAGE"
        [message] = await take(messages, 1)
        assert message.payload == b"comes"
        assert await nothing_comes(messages, 0.3)
        assert await refused(bus.cancel(channel, "stays")) == "UNKNOWN_MESSAGE"


async def test_an_id_waits_once_in_a_channel(home: Home, room: str) -> None:
    channel, other = f"s.{room}.1", f"s.{room}.2"
    async with home.bus() as bus, await bus.subscribe(channel) as messages:
        first = await bus.schedule(channel, b"first", delay_s=0.6, id="x")
        again = await bus.schedule(channel, b"second", delay_s=FAR_S, id="x")
        assert (again.duplicate, again.due_us, again.id) == (True, first.due_us, "x")
        elsewhere = await bus.schedule(other, b"third", delay_s=FAR_S, id="x")
        assert not elsewhere.duplicate
        assert [message.payload for message in await take(messages, 1)] == [b"first"]
        anew = await bus.schedule(channel, b"fourth", delay_s=FAR_S, id="x")
        assert not anew.duplicate
        for name in (channel, other):
            await bus.cancel(name, "x")


async def test_a_cancelled_id_may_be_scheduled_again(home: Home, room: str) -> None:
    channel = f"s.{room}"
    async with home.bus() as bus, await bus.subscribe(channel) as messages:
        at = time.time() + 0.7
        await bus.schedule(channel, b"no", deliver_at=at, id="x")
        await bus.cancel(channel, "x")
        again = await bus.schedule(channel, b"yes", deliver_at=at, id="x")
        assert not again.duplicate
        assert [message.payload for message in await take(messages, 1)] == [b"yes"]
        assert await nothing_comes(messages)


async def test_what_is_refused(home: Home, room: str) -> None:
    async with home.bus() as bus:
        assert await refused(bus.schedule(f"e.{room}", b"", delay_s=1)) == "NOT_STORED"
        assert await refused(bus.schedule(f"s.{room}", b"", delay_s=100 * 366 * 86_400)) == "INVALID_TIME"
        assert await refused(bus.schedule(f"s.{room}", b"", deliver_at=time.time() + 367 * 86_400)) == "INVALID_TIME"
        assert await refused(bus.schedule(f"small.{room}", bytes(101), delay_s=1)) == "PAYLOAD_TOO_LARGE"
        assert await refused(bus.cancel(f"s.{room}", "x")) == "UNKNOWN_MESSAGE"
        assert await refused(bus.cancel("$delayed", "x")) in ("DENIED", "INVALID_CHANNEL")
        receipt = await bus.publish(f"s.{room}", b"the line goes on")
        assert receipt.sequence == 1


@pytest.mark.parametrize(
    "when",
    [
        {},
        {"delay_s": 1, "deliver_at": 1},
        {"delay_s": -0.001},
        {"delay_s": float("nan")},
        {"delay_s": float("inf")},
        {"deliver_at": -1},
        {"deliver_at": datetime(2030, 1, 1)},
    ],
)
async def test_times_that_are_none(home: Home, room: str, when: dict[str, Any]) -> None:
    async with home.bus() as bus:
        with pytest.raises(BrokerError) as raised:
            await bus.schedule(f"s.{room}", b"", **when)
        assert raised.value.name == "INVALID_TIME"


@pytest.mark.parametrize("id", ["", "x" * 65, b"", "é" * 33])
async def test_ids_that_are_none(home: Home, room: str, id: str | bytes) -> None:
    async with home.bus() as bus:
        for ask in (lambda: bus.schedule(f"s.{room}", b"", delay_s=1, id=id), lambda: bus.cancel(f"s.{room}", id)):
            with pytest.raises(BrokerError) as raised:
                await ask()
            assert raised.value.name == "INVALID_ID"


async def test_a_listing_pages(home: Home, room: str) -> None:
    async with home.bus() as bus:
        waiting = [
            bus.schedule(f"s.{room}.{number % 3}", b"", delay_s=FAR_S + number, id=str(number)) for number in range(50)
        ]
        due = {each.id: each.due_us for each in [await one for one in waiting]}
        found = [message async for message in bus.delayed(f"s.{room}.")]
        assert {message.id: message.due_us for message in found} == due
        assert len(found) == 50
        assert all(message.refusals == 0 and message.record_bytes > 12 for message in found)
        assert len([message async for message in bus.delayed(f"s.{room}.1")]) == 17
        assert len([message async for message in bus.delayed(f"s.{room}.", limit=7)]) == 7
        for number in range(50):
            await bus.cancel(f"s.{room}.{number % 3}", str(number))
        assert await listed(bus, f"s.{room}.") == []


async def test_it_is_scheduled_and_published_in_one_breath_with_others(home: Home, room: str) -> None:
    """Numbers of the line go on through frames of all kinds, however many are in flight."""
    channel = f"s.{room}"
    async with home.bus() as bus, await bus.subscribe(channel) as messages:
        outcomes: list[Any] = []
        for number in range(40):
            outcomes.append(bus.publish(channel, b"p%d" % number))
            outcomes.append(bus.schedule(channel, b"d%d" % number, delay_s=0.2))
        await asyncio.gather(*outcomes)
        taken = {message.payload for message in await take(messages, 80)}
        assert taken == {b"%b%d" % (kind, number) for kind in (b"p", b"d") for number in range(40)}
        assert (await bus.channel(channel)).level is Level.SYNCED
        assert await nothing_comes(messages)
