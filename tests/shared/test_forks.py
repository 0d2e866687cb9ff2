"""A bus that a process has from its parent is not its own: it refuses, and a new one works."""

from __future__ import annotations

import asyncio
import os
import sys
from typing import TYPE_CHECKING

import pytest

from broker import Broker, BrokerError
from broker.shared.starting import StartLock
from tests.shared.processes import server_of, wait_until_nobody_serves

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from broker.shared.bus import SharedBus

pytestmark = pytest.mark.usefixtures("loop_kind")


def forked(work: Callable[[], None]) -> int:
    """Begin work in a forked process that ends with 0 when nothing was raised; returns its number."""
    child = os.fork()
    if not child:
        status = 1
        try:
            work()
            status = 0
        except BaseException:
            sys.excepthook(*sys.exc_info())
        finally:
            os._exit(status)
    return child


async def ended_well(child: int) -> bool:
    """Wait for a child while the loop turns."""
    return await asyncio.to_thread(status_of, child) == 0


def status_of(child: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def use_and_open_again(bus: SharedBus, data: Path) -> None:
    with pytest.raises(BrokerError, match="FORKED") as caught:
        bus.post("s.one", b"not mine")
    assert "open it again" in caught.value.hint

    async def open_again() -> None:
        async with Broker.open(data, shared=True) as own, own.subscribe("s.one", start="start") as subscription:
            receipt = await own.publish("s.one", b"child")
            assert receipt.sequence == 2
            assert (await anext(aiter(subscription))).payload == b"parent"
        with pytest.raises(BrokerError, match="FORKED"):
            await bus.stats()

    asyncio.run(open_again())


async def test_a_forked_child_opens_its_own(data: Path) -> None:
    async with Broker.open(data, shared=True, idle_s=0.3) as bus, bus.subscribe("s.*", start="start") as subscription:
        await bus.publish("s.one", b"parent")
        assert await ended_well(forked(lambda: use_and_open_again(bus, data)))
        await bus.publish("s.one", b"parent again")
        messages = aiter(subscription)
        seen = [(await anext(messages)).payload for _ in range(3)]
        assert seen == [b"parent", b"child", b"parent again"]
        assert (await bus.stats())["connections"] == 1


def live_until_told(read: int, write: int) -> None:
    os.close(write)
    os.read(read, 1)


async def test_a_child_that_lives_on_keeps_neither_server_nor_start(data: Path) -> None:
    """Its parent is gone, and it has never used the bus: the server ends, and another can be started."""
    read, write = os.pipe()
    async with Broker.open(data, shared=True, idle_s=0.2):
        server = server_of(data)
        lock = StartLock.take(data)
        assert lock is not None
        child = forked(lambda: live_until_told(read, write))
        lock.close()
    try:
        await asyncio.to_thread(wait_until_nobody_serves, data)
        async with Broker.open(data, shared=True, idle_s=0.2):
            assert server_of(data) != server
    finally:
        os.close(write)
        os.close(read)
    assert await ended_well(child)
