"""A part of the suite over homes that evict after each commit what they may; `pytest tests/contract --evicting` is all.

What a test does here it also does elsewhere; that nothing of it is different is the point.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from broker import Broker
from broker.client.client import Client
from tests.contract.evicting import evicting
from tests.contract.homes import PROFILES, SEGMENT_BYTES, Home, Server, take
from tests.contract.test_bus import (
    test_a_receipt_says_where_and_how_safely as test_a_receipt_says_where_and_how_safely,
)
from tests.contract.test_bus import (
    test_messages_arrive_in_order_and_once as test_messages_arrive_in_order_and_once,
)

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture(scope="module")
def evicting_server() -> Iterator[Server]:
    server = Server(evicts=True)
    try:
        yield server.start()
    finally:
        server.stop()


@pytest.fixture(params=["embedded", "unix"])
def home(request: pytest.FixtureRequest, tmp_path: Path) -> Home:
    """Homes that evict."""
    server = request.getfixturevalue("evicting_server") if request.param == "unix" else None
    return Home(request.param, tmp_path, server, evicts=True)


async def another(bus: Broker) -> Client:
    """Return a bus of its own to the same broker."""
    return await Client(bus._open_pipe).start()


async def test_what_was_evicted_goes_on_where_it_was(tmp_path: Path) -> None:
    """Publishers leave, the channel is evicted, the next one goes on with its next sequence, under the same epoch."""
    with evicting() as gone:
        async with Broker.open(tmp_path, profiles=PROFILES, segment_bytes=SEGMENT_BYTES, reserve_bytes=0) as bus:
            node = bus._node
            epochs = set()
            for sequence in range(1, 6):
                async with bus.subscribe("s.>") as pattern:
                    session = await another(bus)
                    receipt = await session.publish("s.one", b"%d" % sequence)
                    assert receipt.sequence == sequence
                    assert [message.payload for message in await take(pattern, 1)] == [b"%d" % sequence]
                    epochs.add(receipt.epoch)
                    await session.close()
                await bus.publish("s.other", b"")
                await asyncio.to_thread(node._log.wait_sealed, 10)
                await bus.publish("s.other", b"")
                assert node.tails.info(b"s.one") is None
            assert len(epochs) == 1
            assert node.loader.loaded >= 4
            assert sum(gone) >= 5
            assert (await bus.channel("s.one")).head == 5
            async with bus.subscribe("s.one", start="start") as literal:
                assert [message.payload for message in await take(literal, 5)] == [b"%d" % n for n in range(1, 6)]
