"""Coming back: what is asked behind HELLO, another journal behind the same address, and servers that say when."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

import pytest

from broker.model.errors import error
from broker.remote.bus import AHEAD_BYTES_MAX
from broker.wire import control
from tests.unit.client.scripted import AT_ONCE, JOURNAL, Scripted, chunk, deliver

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from broker.client.client import Client
    from broker.client.subscription import ClientSubscription
    from tests.unit.client.scripted import Connect


@pytest.fixture
async def server() -> AsyncIterator[Scripted]:
    async with Scripted().listening() as scripted:
        yield scripted


async def until(done: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        while True:
            if done():
                return
            await asyncio.sleep(0.001)


async def live(server: Scripted, bus: Client, *channels: str) -> ClientSubscription:
    """Subscribe on the first connection, with one message of each channel received; the connection is then lost."""
    peer = await server.peer()
    subscription = bus.subscribe(*channels)
    accepted = asyncio.ensure_future(subscription._open())
    wanted = await peer.subscribe()
    peer.accept(wanted, *(control.Outcome(name, "new", 1, 0) for name in channels))
    await accepted
    for number, name in enumerate(channels, 1):
        named = name if len(channels) > 1 else None
        peer.send(deliver(wanted.subscription, chunk([b"1"], first=1, channel=number), name=named))
    await until(lambda: [place.sequence for place in subscription.positions.values()] == [1] * len(channels))
    peer.drop()
    return subscription


async def test_subscriptions_are_asked_for_before_the_server_has_said_a_word(
    server: Scripted, connect: Connect
) -> None:
    async with connect(server.url, backoff=AT_ONCE) as bus:
        subscription = await live(server, bus, "s.x")
        server.welcome_waits = True
        peer = await server.peer()
        wanted = await peer.subscribe()
        assert wanted.start == control.FromPositions((("s.x", 1, 1),))
        # One read brings the welcome, the answer and what was missed.
        bus_place = control.FromBus(JOURNAL, 0, 0)
        answer = control.Subscribed(wanted.subscription, (control.Outcome("s.x", "resumed", 1, 1),), bus_place)
        missed = deliver(wanted.subscription, chunk([b"2", b"3"], first=2))
        peer.send(server.welcome_frame() + control.encode_subscribed(answer) + missed)
        found: list[bytes] = []
        async for message in subscription:
            found.append(bytes(message.payload))
            if len(found) == 3:
                break
        assert found == [b"1", b"2", b"3"]


async def test_answers_of_another_journal_are_not_looked_at(server: Scripted, connect: Connect) -> None:
    async with connect(server.url, backoff=AT_ONCE) as bus:
        subscription = await live(server, bus, "s.x")
        server.welcome["journal"] = b"k" * 16
        server.welcome_waits = True
        first = await server.peer()
        ahead = await first.subscribe()
        server.welcome_waits = False
        first.send(server.welcome_frame() + deliver(ahead.subscription, chunk([b"wrong"], first=2)))
        assert await first.ended()
        second = await server.peer()
        wanted = await second.subscribe()
        assert wanted.start == control.FromPositions((("s.x", 0, 0),)), "known only from WELCOME"
        assert [event.name for event in subscription.events] == ["diverged"]
        assert subscription.positions["s.x"].sequence == 0


async def test_no_more_is_asked_ahead_than_a_hello_may_have(server: Scripted, connect: Connect) -> None:
    async with connect(server.url, backoff=AT_ONCE) as bus:
        names = [f"s.{number:0120}" for number in range(AHEAD_BYTES_MAX // 200)]
        await live(server, bus, *names)
        server.welcome_waits = True
        peer = await server.peer()
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.1):
                await peer.subscribe()
        peer.send(server.welcome_frame())
        assert len((await peer.subscribe()).filters) == len(names)


@pytest.mark.parametrize("way", ["refused", "going away"])
async def test_a_server_that_says_when_is_obeyed(server: Scripted, way: str, connect: Connect) -> None:
    async with connect(server.url, backoff=AT_ONCE):
        peer = await server.peer()
        began = time.monotonic()
        if way == "refused":
            server.refusal = control.encode_error(error("TOO_MANY_CONNECTIONS", "full", retry_after_ms=400))
            peer.drop()
            await until(lambda: len(server.hellos) == 2)
            server.refusal = None
        else:
            peer.send(control.encode_going_away(5, 400))
        await server.peer()
        assert time.monotonic() - began >= 0.2


async def test_what_was_asked_ahead_is_asked_again_when_hello_is_refused(server: Scripted, connect: Connect) -> None:
    async with connect(server.url, backoff=AT_ONCE) as bus:
        await live(server, bus, "s.x")
        server.refusal = control.encode_error(error("BUSY", "later", retry_after_ms=1))
        await until(lambda: len(server.hellos) >= 3)
        server.refusal = None
        peer = await server.peer()
        assert (await peer.subscribe()).filters == ("s.x",)
