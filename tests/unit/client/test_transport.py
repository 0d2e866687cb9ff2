"""The pipe in memory: what is written comes out in order, between loops too, within bounds, to the end."""

from __future__ import annotations

import asyncio
import threading
from typing import TYPE_CHECKING

import pytest

from broker.client.transport import MEMORY_BYTES_HIGH, MemoryTransport, memory_pair

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

pytestmark = pytest.mark.usefixtures("loop_kind")


class Ear:
    """A receiver that remembers."""

    def __init__(self) -> None:
        self.data = b""
        self.ended = asyncio.Event()
        self.writable: list[bool] = []
        self.lost = 0

    def on_bytes(self, data: memoryview) -> None:
        assert not self.lost
        self.data += bytes(data)

    def on_writable(self, writable: bool) -> None:
        self.writable.append(writable)

    def on_lost(self, failure: BaseException | None) -> None:
        assert failure is None
        self.lost += 1
        self.ended.set()


@pytest.fixture
async def far_loop() -> AsyncIterator[asyncio.AbstractEventLoop]:
    """A loop on a thread of its own."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    yield loop
    loop.call_soon_threadsafe(loop.stop)
    await asyncio.to_thread(thread.join)
    loop.close()


def pair() -> tuple[MemoryTransport, Ear, MemoryTransport, Ear]:
    loop = asyncio.get_running_loop()
    near, far = memory_pair(loop, loop)
    here, there = Ear(), Ear()
    near.attach(here)
    far.attach(there)
    return near, here, far, there


async def turns(count: int = 5) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


async def test_bytes_come_in_order_and_never_inside_the_write() -> None:
    near, here, far, there = pair()
    near.writelines([b"a", memoryview(b"bc")])
    near.write(bytearray(b"d"))
    far.write(b"back")
    assert not there.data
    await turns()
    assert (there.data, here.data) == (b"abcd", b"back")


async def test_closing_lets_what_was_written_arrive() -> None:
    near, here, far, there = pair()
    near.write(b"last words")
    near.close()
    near.write(b"not these")
    await turns()
    assert (there.data, there.lost, here.lost) == (b"last words", 1, 1)
    assert near.is_closing()
    assert far.is_closing()
    far.write(b"to nobody")
    near.close()
    far.close()
    await turns()
    assert (there.lost, here.lost) == (1, 1)


async def test_a_full_pipe_says_so_and_says_when_there_is_room() -> None:
    near, here, far, there = pair()
    far.pause_reading()
    near.write(bytes(MEMORY_BYTES_HIGH))
    assert here.writable == []
    near.write(b"x")
    near.write(b"y")
    await turns()
    assert here.writable == [False]
    assert near.get_write_buffer_size() == MEMORY_BYTES_HIGH + 2
    assert not there.data
    far.resume_reading()
    await turns(10)
    assert here.writable == [False, True]
    assert near.get_write_buffer_size() == 0
    assert len(there.data) == MEMORY_BYTES_HIGH + 2


async def test_what_came_before_the_receiver_waits_for_it() -> None:
    loop = asyncio.get_running_loop()
    near, far = memory_pair(loop, loop)
    near.write(b"early")
    await turns()
    there = Ear()
    far.attach(there)
    await turns()
    assert there.data == b"early"
    near.abort()
    far.abort()
    await turns()


async def test_two_loops_exchange_everything_in_order(far_loop: asyncio.AbstractEventLoop) -> None:
    loop = asyncio.get_running_loop()
    near, far = memory_pair(loop, far_loop)
    done = asyncio.Event()
    size = 4 * 20_000

    class Echo(Ear):
        """Sends back what it hears."""

        def on_bytes(self, data: memoryview) -> None:
            far.write(bytes(data))

    class Collector(Ear):
        """Tells when everything has come back."""

        def on_bytes(self, data: memoryview) -> None:
            super().on_bytes(data)
            if len(self.data) == size:
                done.set()

    collector = Collector()
    near.attach(collector)
    far_loop.call_soon_threadsafe(far.attach, Echo())
    expected = b"".join(number.to_bytes(4, "little") for number in range(20_000))
    for at in range(0, size, 40):
        near.write(expected[at : at + 40])
        if at % 4000 == 0:
            await asyncio.sleep(0)
    async with asyncio.timeout(10):
        await done.wait()
    assert collector.data == expected
    near.close()
    async with asyncio.timeout(5):
        await collector.ended.wait()
