"""What a connection is for when the server is gone: it comes back, and nothing is lost, doubled or out of order."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any

import pytest

import broker
from broker import BackoffPolicy, BrokerError
from tests.contract import threaded
from tests.contract.homes import nothing_comes, take

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.contract.homes import Server

    Connect = Callable[..., Any]

pytestmark = pytest.mark.usefixtures("loop_kind")

QUICK = BackoffPolicy(first_s=0.01, longest_s=0.05)


@pytest.fixture(params=["asyncio client", "blocking client"])
def connect(request: pytest.FixtureRequest) -> Connect:
    """Each client in turn."""
    return broker.connect if request.param == "asyncio client" else threaded.connect


async def test_publishes_and_subscriptions_survive_a_killed_server(own_server: Server, connect: Connect) -> None:
    """Publishers go on through two kills; readers by position and by place see each message once, in order."""
    async with (
        connect(own_server.tcp_url, backoff=QUICK) as bus,
        connect(own_server.unix_url, backoff=QUICK) as readers,
        readers.subscribe("s.one") as literal,
        readers.subscribe("s.>") as pattern,
    ):
        receipts: list[int] = []

        async def publish() -> None:
            for number in range(60):
                part = await bus.publish_many("s.one", [b"%d.%d" % (number, index) for index in range(20)])
                receipts.extend(receipt.first + offset for receipt in part for offset in range(receipt.count))

        publishing = asyncio.create_task(publish())
        for _ in range(2):
            await asyncio.sleep(0.05)
            own_server.kill()
            await asyncio.to_thread(own_server.start)
        async with asyncio.timeout(20):
            await publishing
        assert receipts == list(range(1, 1201))
        expected = [b"%d.%d" % (number, index) for number in range(60) for index in range(20)]
        assert [message.payload for message in await take(literal, 1200)] == expected
        assert [message.payload for message in await take(pattern, 1200)] == expected
        assert {event.name for event in [*literal.events, *pattern.events]} <= {"resumed"}


async def test_a_server_that_drains_is_followed_to_the_next(own_server: Server, connect: Connect) -> None:
    """SIGTERM in the middle of publishing: what was sent is answered, the rest waits for the server to come back."""
    async with (
        connect(own_server.tcp_url, backoff=QUICK) as bus,
        connect(own_server.unix_url, backoff=QUICK) as readers,
        readers.subscribe("s.one") as subscription,
    ):
        receipts: list[int] = []
        last = float("inf")

        async def publish() -> None:
            while len(receipts) < last:
                receipt = await bus.publish("s.one", b"%d" % len(receipts))
                assert not receipt.duplicate
                receipts.append(receipt.sequence)

        publishing = asyncio.create_task(publish())
        await asyncio.sleep(0.1)
        assert await asyncio.to_thread(own_server.drain) == 0
        last = len(receipts) + 20
        await asyncio.to_thread(own_server.start)
        async with asyncio.timeout(20):
            await publishing
        assert receipts == list(range(1, len(receipts) + 1))
        messages = await take(subscription, len(receipts))
        assert [message.payload for message in messages] == [b"%d" % number for number in range(len(receipts))]


async def test_what_is_posted_while_the_server_is_gone_is_sent_when_it_is_back(
    own_server: Server, connect: Connect
) -> None:
    async with connect(own_server.tcp_url, backoff=QUICK) as bus:
        await bus.publish("s.one", b"0")
        own_server.kill()
        waiting = [bus.publish("s.one", b"%d" % number) for number in range(1, 50)]
        await asyncio.sleep(0.05)
        assert not any(publication.done() for publication in waiting)
        await asyncio.to_thread(own_server.start)
        async with asyncio.timeout(20):
            assert [(await publication).sequence for publication in waiting] == list(range(2, 51))
            assert (await bus.channel("s.one")).head == 50


async def test_closing_while_the_server_is_gone_tells_what_is_not_known(own_server: Server, connect: Connect) -> None:
    bus = await connect(own_server.tcp_url, backoff=QUICK)
    await bus.publish("s.one", b"0")
    own_server.kill()
    await asyncio.sleep(0.05)
    publication = bus.publish("s.one", b"1")
    await bus.close(timeout_s=0.1)
    with pytest.raises(BrokerError, match="CLOSED"):
        await publication


async def test_connecting_to_nobody_says_so(own_server: Server, connect: Connect) -> None:
    own_server.kill()
    for url in (own_server.tcp_url, own_server.unix_url):
        with pytest.raises(BrokerError, match="CONNECTION_LOST") as raised:
            await connect(url)
        assert raised.value.hint == "is the broker running?"


async def is_cancelled(bus: Any, number: int) -> bool:
    """Cancel a delayed message; on a slow machine its time may have come."""
    try:
        await bus.cancel(f"s.later.{number % 5}", str(number))
    except BrokerError as refusal:
        if refusal.name != "UNKNOWN_MESSAGE":
            raise
        return False
    return True


async def test_delayed_messages_survive_kills_and_come_once(own_server: Server, connect: Connect) -> None:
    """Due while the server is dead, as it is killed, or later: each comes once, the cancelled never."""
    async with (
        connect(own_server.tcp_url, backoff=QUICK) as bus,
        connect(own_server.unix_url, backoff=QUICK) as readers,
        readers.subscribe("s.later.>", start="start") as subscription,
    ):
        at = time.time() + 1.0
        waiting = [
            bus.schedule(f"s.later.{number % 5}", b"%d" % number, deliver_at=at + number / 400, id=str(number))
            for number in range(1_200)
        ]
        await asyncio.gather(*waiting)
        cancelled = {number for number in range(0, 1_200, 100) if await is_cancelled(bus, number)}
        await asyncio.gather(*[bus.schedule("s.later.0", b"far", delay_s=delay_s) for delay_s in (200, 9_000, 900_000)])
        for pause_s in (0.2, 0.9, 0.4, 0.7, 0.1):
            await asyncio.sleep(pause_s)
            own_server.kill()
            await asyncio.to_thread(own_server.start)
        expected = sorted(b"%d" % number for number in range(1_200) if number not in cancelled)
        assert sorted(message.payload for message in await take(subscription, len(expected), 20)) == expected
        assert await nothing_comes(subscription, 0.2)
        left = [message async for message in bus.delayed("s.later.")]
        assert len(left) == 3
        for message in left:
            await bus.cancel(message.channel, message.id)
