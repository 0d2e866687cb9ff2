"""Requests and live groups while connections break and brokers restart."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from broker import BrokerError, Level
from broker.model.profiles import Profile
from broker.testing import TestBroker
from tests.contract.homes import nothing_comes, take

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from broker import Bus

pytestmark = pytest.mark.usefixtures("loop_kind")

PROFILES = (Profile(b"live.>", durability=Level.EPHEMERAL), Profile(b">"))


@pytest.fixture
async def broker() -> AsyncIterator[TestBroker]:
    broker = TestBroker(profiles=PROFILES)
    async with broker:
        yield broker


async def respond(bus: Bus, channel: str, group: str | None = None) -> None:
    async with bus.subscribe(channel, group=group) as subscription:
        async for message in subscription:
            bus.respond(message, message.payload)


async def ask_until_replied(bus: Bus, channel: str, payload: bytes) -> bytes:
    """Ask again whenever that makes sense, as an application does whose requests may be handled twice."""
    async with asyncio.timeout(10):
        while True:
            try:
                return (await bus.request(channel, payload, timeout_s=1)).payload
            except BrokerError as failure:
                if failure.name not in ("NO_RESPONDERS", "CONNECTION_LOST", "TIMEOUT"):
                    raise
                await asyncio.sleep(0.005)


async def test_a_connection_that_breaks_ends_its_requests_at_once(broker: TestBroker) -> None:
    bus, other = await broker.connect(), await broker.connect()
    subscription = await other.subscribe("live.x")
    waiting = asyncio.ensure_future(bus.request("live.x", b"1", timeout_s=60))
    (message,) = await take(subscription, 1)
    await broker.disconnect()
    with pytest.raises(BrokerError) as caught:
        await waiting
    assert caught.value.name == "CONNECTION_LOST"
    # Its reply finds nobody: the name has gone with the connection, and the next request has another.
    other.respond(message, b"late")
    again = asyncio.ensure_future(ask_until_replied(bus, "live.x", b"2"))
    (message,) = await take(subscription, 1)
    other.respond(message, b"in time")
    assert await again == b"in time"


async def test_a_request_waits_for_a_connection(broker: TestBroker) -> None:
    bus, other = await broker.connect(), await broker.connect()
    task = asyncio.create_task(respond(other, "live.x"))
    assert await ask_until_replied(bus, "live.x", b"0") == b"0"
    for number in range(5):
        await broker.disconnect()
        assert await ask_until_replied(bus, "live.x", b"%d" % number) == b"%d" % number
    task.cancel()


async def test_a_request_that_finds_no_connection_in_time() -> None:
    broker = TestBroker(profiles=PROFILES)
    async with broker:
        url = await broker.listen()
        bus = await broker.connect()
        assert url
        bus._connection.abort()  # type: ignore[union-attr]
        bus._connector = never  # type: ignore[assignment]
        await asyncio.sleep(0.01)
        with pytest.raises(BrokerError) as caught:
            await bus.request("live.x", b"", timeout_s=0.05)
        assert caught.value.name == "TIMEOUT"
        waiting = asyncio.ensure_future(bus.request("live.x", b"", timeout_s=60))
        await asyncio.sleep(0.01)
        await bus.close()
        with pytest.raises(BrokerError) as caught:
            await waiting
        assert caught.value.name == "CLOSED"
        with pytest.raises(BrokerError) as caught:
            await bus.request("live.x", b"", timeout_s=60)
        assert caught.value.name == "CLOSED"


async def never(receiver: object) -> None:
    await asyncio.sleep(3600)


async def test_a_reply_outlives_the_connection_of_who_replies(broker: TestBroker) -> None:
    bus, other = await broker.connect(), await broker.connect()
    subscription = await other.subscribe("live.x")
    waiting = asyncio.ensure_future(bus.request("live.x", b"1"))
    (message,) = await take(subscription, 1)
    other._connection.abort()  # type: ignore[union-attr]
    other.respond(message, b"after the next connection")
    assert (await waiting).payload == b"after the next connection"


async def test_members_come_back_to_their_group(broker: TestBroker) -> None:
    buses = [await broker.connect() for _ in range(3)]
    tasks = [asyncio.create_task(respond(bus, "live.x", "g")) for bus in buses]
    asks = await broker.connect()
    for _ in range(3):
        for number in range(30):
            assert await ask_until_replied(asks, "live.x", b"%d" % number) == b"%d" % number
        await broker.disconnect()
    for task in tasks:
        task.cancel()


async def test_a_member_that_dies_holds_nothing_that_comes_after(broker: TestBroker) -> None:
    dies, lives, asks = [await broker.connect() for _ in range(3)]
    silent = await dies.subscribe("live.x", group="g")
    task = asyncio.create_task(respond(lives, "live.x", "g"))
    replied = 0
    for number in range(10):
        try:
            await asks.request("live.x", b"%d" % number, timeout_s=0.1)
            replied += 1
        except BrokerError as failure:
            if failure.name not in ("TIMEOUT", "NO_RESPONDERS"):
                raise
    assert 3 <= replied <= 6
    await dies.close()
    for number in range(10):
        await asks.request("live.x", b"%d" % number)
    assert silent
    task.cancel()


async def test_cancelling_a_request_leaves_nothing_waiting(broker: TestBroker) -> None:
    bus = await broker.connect()
    subscription = await bus.subscribe("live.x")
    waiting = asyncio.ensure_future(bus.request("live.x", b"1"))
    (message,) = await take(subscription, 1)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    bus.respond(message, b"late")
    assert await nothing_comes(subscription)
    assert bus._asking.late == 1
    assert not bus._asking._waiting


async def test_requests_and_groups_after_a_restart(broker: TestBroker) -> None:
    for number in range(3):
        bus = await broker.restart()
        task = asyncio.create_task(respond(bus, "live.x", "g"))
        assert await ask_until_replied(bus, "live.x", b"%d" % number) == b"%d" % number
        task.cancel()
