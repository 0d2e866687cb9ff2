"""Requests and their replies, over every home."""

from __future__ import annotations

import asyncio
import time
from contextlib import asynccontextmanager, nullcontext
from typing import TYPE_CHECKING, Any

import pytest

from broker import BrokerError
from tests.contract.homes import happens, take

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from broker import Bus
    from tests.contract.homes import Home

pytestmark = pytest.mark.usefixtures("loop_kind")

LEVELS = "eas"


@asynccontextmanager
async def responding(bus: Bus, channel: str, **options: Any) -> AsyncIterator[list[bytes]]:
    """Reply to everything that is asked of a channel, with what was asked behind an `r`; yields what was asked."""
    asked: list[bytes] = []
    subscription = await bus.subscribe(channel, **options)

    async def respond() -> None:
        async for message in subscription:
            asked.append(message.payload)
            bus.respond(message, b"r" + message.payload, headers={"asked": message.headers.get("n")})

    task = asyncio.create_task(respond())
    try:
        yield asked
    finally:
        task.cancel()
        await asyncio.wait([task])
        await subscription.close()


@pytest.mark.parametrize("profile", LEVELS)
async def test_a_request_is_replied_to(home: Home, room: str, profile: str) -> None:
    channel = f"{profile}.{room}"
    async with home.bus() as bus, responding(bus, channel):
        reply = await bus.request(channel, b"1", headers={"n": 7})
        assert (reply.payload, reply.headers) == (b"r1", {"asked": 7})
        assert abs(reply.time / 1e6 - time.time()) < 60


async def test_many_at_once_get_each_their_own(home: Home, room: str) -> None:
    channel = f"e.{room}"
    async with home.bus() as bus, responding(bus, channel):
        count = 60 if home.kind == "blocking" else 2000
        replies = await asyncio.gather(*(bus.request(channel, b"%d" % number) for number in range(count)))
        assert [reply.payload for reply in replies] == [b"r%d" % number for number in range(count)]


async def test_several_channels_and_sizes(home: Home, room: str) -> None:
    async with home.bus() as bus, responding(bus, f"e.{room}.>"):
        sizes = [0, 1, 1000, 70_000, 1_000_000]
        replies = await asyncio.gather(*(bus.request(f"e.{room}.{size}", bytes(size)) for size in sizes))
        assert [len(reply.payload) for reply in replies] == [1 + size for size in sizes]


async def test_members_of_a_group_share_requests(home: Home, room: str) -> None:
    channel = f"e.{room}"
    async with (
        home.bus() as bus,
        responding(bus, channel, group="adders") as one,
        responding(bus, channel, group="adders") as other,
    ):
        for number in range(20):
            assert (await bus.request(channel, b"%d" % number)).payload == b"r%d" % number
        assert (len(one), len(other)) == (10, 10)


async def test_of_several_replies_the_first_counts(home: Home, room: str) -> None:
    channel = f"e.{room}"
    async with home.bus() as bus, responding(bus, channel) as one, responding(bus, channel) as other:
        before = (await bus.stats())["replies_out"]
        for number in range(10):
            assert (await bus.request(channel, b"%d" % number)).payload == b"r%d" % number

        async def all_replied() -> bool:
            return bool((await bus.stats())["replies_out"] == before + 20)

        assert await happens(all_replied)
        assert len(one) == len(other) == 10


async def test_nobody_listens(home: Home, room: str) -> None:
    async with home.bus() as bus:
        began = time.monotonic()
        with pytest.raises(BrokerError) as caught:
            await bus.request(f"e.{room}", b"hello?", timeout_s=30)
        assert caught.value.name == "NO_RESPONDERS"
        assert caught.value.temporary
        assert time.monotonic() - began < 5
        # Nor any more.
        async with responding(bus, f"e.{room}"):
            await bus.request(f"e.{room}", b"hello?")
        with pytest.raises(BrokerError) as caught:
            await bus.request(f"e.{room}", b"hello?", timeout_s=30)
        assert caught.value.name == "NO_RESPONDERS"


async def test_nobody_replies_in_time(home: Home, room: str) -> None:
    channel = f"e.{room}"
    async with home.bus() as bus:
        subscription = await bus.subscribe(channel)
        with pytest.raises(BrokerError) as caught:
            await bus.request(channel, b"1", timeout_s=0.05)
        assert caught.value.name == "TIMEOUT"
        # It comes late, and the next one is none the worse for it.
        (late,) = await take(subscription, 1)
        bus.respond(late, b"late")
        task = asyncio.ensure_future(bus.request(channel, b"2"))
        (message,) = await take(subscription, 1)
        bus.respond(message, b"in time")
        bus.respond(message, b"and again")
        assert (await task).payload == b"in time"


@pytest.mark.parametrize("profile", "as")
async def test_a_request_of_a_stored_channel_is_stored_and_waits(home: Home, room: str, profile: str) -> None:
    channel = f"{profile}.{room}"
    async with home.bus() as bus:
        task = asyncio.ensure_future(bus.request(channel, b"1"))
        subscription = await bus.subscribe(channel, start="start")
        (message,) = await take(subscription, 1)
        bus.respond(message, b"later")
        assert (await task).payload == b"later"
        assert [stored.payload for stored in await bus.history(channel).messages()] == [b"1"]


async def test_what_was_asked_by_another_bus_is_replied_to(home: Home, room: str) -> None:
    channel = f"e.{room}"
    async with home.bus() as asks:
        # An embedded broker has one bus.
        other = home.bus() if home.kind not in ("embedded", "thread") else nullcontext(asks)
        async with other as replies, responding(replies, channel):
            assert (await asks.request(channel, b"1")).payload == b"r1"


async def test_a_message_that_asks_nothing_cannot_be_replied_to(home: Home, room: str) -> None:
    channel = f"e.{room}"
    async with home.bus() as bus:
        subscription = await bus.subscribe(channel)
        await bus.publish(channel, b"plain")
        await bus.publish(channel, b"elsewhere", headers={"reply-to": "e.else.1"})
        await bus.publish(channel, b"nowhere", headers={"reply-to": "$reply.x"})
        for message in await take(subscription, 3):
            with pytest.raises(BrokerError) as caught:
                bus.respond(message, b"")
            assert caught.value.name == "INVALID_CHANNEL"


async def test_a_reply_to_who_has_gone_or_never_was_is_counted(home: Home, room: str) -> None:
    channel = f"e.{room}"
    async with home.bus() as bus:
        subscription = await bus.subscribe(channel)
        before = (await bus.stats())["replies_unheard"]
        await bus.publish(channel, b"", headers={"reply-to": "$reply." + "0" * 32 + ".1"})
        (message,) = await take(subscription, 1)
        bus.respond(message, b"")

        async def counted() -> bool:
            return bool((await bus.stats())["replies_unheard"] == before + 1)

        assert await happens(counted)


@pytest.mark.parametrize(
    ("channel", "payload", "headers", "name"),
    [
        ("no..channel", b"", None, "INVALID_CHANNEL"),
        ("$reply.x", b"", None, "INVALID_CHANNEL"),
        ("e.big", bytes(1_048_577), None, "PAYLOAD_TOO_LARGE"),
        ("e.big", b"", {"x": "y" * 20_000}, "HEADERS_TOO_LARGE"),
        ("small.x", bytes(101), None, "PAYLOAD_TOO_LARGE"),
    ],
)
async def test_a_request_that_is_wrong_is_refused(
    home: Home, channel: str, payload: bytes, headers: dict[str, object] | None, name: str
) -> None:
    async with home.bus() as bus:
        with pytest.raises(BrokerError) as caught:
            await bus.request(channel, payload, headers=headers)
        assert caught.value.name == name
        # And the next ones are taken.
        async with responding(bus, "e.x"):
            assert (await bus.request("e.x", b"1")).payload == b"r1"


async def test_requests_and_publishes_side_by_side(home: Home, room: str) -> None:
    """A refused request leaves no gap in the producer's line, and a publish none among the requests."""
    channel = f"e.{room}"
    async with home.bus() as bus, responding(bus, channel):
        for number in range(20):
            receipt = bus.publish(f"s.{room}", b"%d" % number)
            with pytest.raises(BrokerError):
                await bus.request(f"e.{room}.nobody", b"")
            assert (await bus.request(channel, b"1")).payload == b"r1"
            assert (await receipt).sequence == number + 1


async def test_what_was_replied_before_closing_arrives(home: Home, room: str) -> None:
    if home.kind in ("embedded", "thread"):
        return  # the bus that closes is the only one
    channel = f"e.{room}"
    async with home.bus() as asks:
        async with home.bus() as replies:
            subscription = await replies.subscribe(channel)
            answer = asyncio.ensure_future(asks.request(channel, b"1"))
            (message,) = await take(subscription, 1)
            replies.respond(message, b"at the last moment")
        assert (await answer).payload == b"at the last moment"


async def test_closing_ends_what_waits(home: Home, room: str) -> None:
    channel = f"e.{room}"
    async with home.bus() as bus:
        await bus.subscribe(channel)
        task = asyncio.ensure_future(bus.request(channel, b"1", timeout_s=30))
        await asyncio.sleep(0.05)
    with pytest.raises(BrokerError) as caught:
        await task
    assert caught.value.name == "CLOSED"
