"""A crowd that is cut off and comes back: nobody loses or doubles a message, hints are obeyed, the rude harm nobody."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import TYPE_CHECKING

import pytest

from broker import BackoffPolicy, connect
from broker.bench.crowd import Plan
from broker.bench.storm import CrowdProcess
from broker.edge.native import NativeListener
from broker.model.errors import from_wire
from broker.model.limits import Limits
from broker.model.profiles import Profile, Profiles
from broker.node.node import Node
from broker.wire import control

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

CLIENTS = 300
CHANNELS = 4
NAMES = [f"crowd.{number}" for number in range(60)]
RATE = 100
ROOM = CLIENTS + 100
RUDE = 30
CLOSE = 200
"""So few connections may be open when the crowd comes back."""


@pytest.fixture
async def listener(tmp_path: Path) -> AsyncIterator[NativeListener]:
    """A server with room for the crowd and some more."""
    node = await Node.open(
        tmp_path / "data",
        profiles=Profiles([Profile(b">")]),
        limits=Limits(connections_max=ROOM, hello_timeout_s=0.5),
        segment_bytes=4 << 20,
        reserve_bytes=0,
    )
    listener = NativeListener(node)
    await listener.listen_tcp("127.0.0.1", 0)
    yield listener
    listener.stop_accepting()
    await node.drain(0)
    await node.close()


def address(listener: NativeListener) -> tuple[str, int]:
    assert listener.tcp is not None
    host, port = listener.tcp.rsplit(":", 1)
    return host, int(port)


async def until(done: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while True:
            if done():
                return
            await asyncio.sleep(0.005)


async def be_rude(listener: NativeListener) -> None:
    """Connect, say nothing, and connect again at once whatever one is told."""
    while True:
        with suppress(OSError):
            reader, writer = await asyncio.open_connection(*address(listener))
            try:
                while await reader.read(1 << 12):
                    pass
            finally:
                writer.close()


async def refusal_of(listener: NativeListener) -> int | None:
    """Connect and return when one is told to come back; the connection is one too many."""
    reader, writer = await asyncio.open_connection(*address(listener))
    header = await reader.readexactly(8)
    failure = from_wire(control.decode(await reader.readexactly(int.from_bytes(header[:4], "little"))))
    assert failure.name == "TOO_MANY_CONNECTIONS"
    assert not await reader.read()
    writer.close()
    return failure.retry_after_ms


async def test_a_crowd_comes_back_to_a_server_that_has_no_room_for_all_of_it(listener: NativeListener) -> None:
    url = f"broker://{listener.tcp}"
    # A client that was there before: it is not cut off, and each of its messages comes back.
    lost = BackoffPolicy(first_s=60.0, longest_s=60.0)
    with CrowdProcess(Plan(url, NAMES, CLIENTS, CHANNELS, RATE, 32)) as crowd:
        await asyncio.to_thread(crowd.hear)
        async with connect(url, backoff=lost) as bus, bus.subscribe("older.x") as subscription:
            await subscription
            rude = [asyncio.create_task(be_rude(listener)) for _ in range(RUDE)]
            before = listener.admission.refused
            listener.connections_max = CLOSE
            crowd.tell("drop")
            back = asyncio.create_task(asyncio.to_thread(crowd.hear))
            sent = 0
            while not back.done():
                if listener.admission.refused - before >= CLIENTS - CLOSE:
                    listener.connections_max = ROOM
                await asyncio.wait_for(bus.publish("older.x", b"%d" % sent), 10)
                sent += 1
                await asyncio.sleep(0.02)
            answer = await back
            async with asyncio.timeout(10):
                async for message in subscription:
                    if bytes(message.payload) == b"%d" % (sent - 1):
                        break
            assert subscription.positions["older.x"].sequence == sent
            for task in rude:
                task.cancel()
            await asyncio.wait(rude)
        assert answer["refused"] >= CLIENTS - CLOSE - RUDE - 2, "they were told, and came when they had been told to"
        crowd.tell("finish")
        end = await asyncio.to_thread(crowd.hear)
    assert (end["lost"], end["duplicated"], end["restarted"]) == (0, 0, 0)
    assert end["delivered"] > 0


async def test_who_finds_no_room_is_told_when_to_come_back(listener: NativeListener) -> None:
    listener.connections_max = 0
    hints = [await refusal_of(listener) for _ in range(3)]
    assert hints == [1_000] * 3


async def test_the_longest_silent_makes_room_for_those_who_speak(
    listener: NativeListener, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("broker.edge.accepting.GREETING_MAX", 20)
    silent = [await asyncio.open_connection(*address(listener)) for _ in range(20)]
    await until(lambda: len(listener.node.connections) == 20)
    async with connect(f"broker://{listener.tcp}") as bus:
        await bus.publish("s.x", b"1")
    header = await silent[0][0].readexactly(8)
    failure = from_wire(control.decode(await silent[0][0].readexactly(int.from_bytes(header[:4], "little"))))
    assert (failure.name, failure.retry_after_ms) == ("TOO_MANY_CONNECTIONS", 1_000)
    for _, writer in silent:
        writer.close()
