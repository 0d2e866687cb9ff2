"""Too many connections, and too few open files: those who come too late are told, everybody else goes on."""

from __future__ import annotations

import asyncio
import resource
import sys
import time
from typing import TYPE_CHECKING

import psutil
import pytest

from broker import BackoffPolicy, BrokerError, connect
from broker.wire import control
from tests.fault.harness import Server
from tests.fault.storm import kind_of, storm

if TYPE_CHECKING:
    from pathlib import Path

    from broker.bus import Bus

CONNECTIONS = 2_000
OPEN_FILES = 400
LATE = 60
"""Connections that come when there is no open file left for them."""
LOG_BYTES_MAX = 20_000
STANDING_CPU_MAX = 0.2
RESUMED_S_MAX = 2.0
LOOPS = ("asyncio", "uvloop")


@pytest.mark.slow
@pytest.mark.parametrize("loop", LOOPS)
async def test_storm_of_connections(tmp_path: Path, loop: str) -> None:
    figures = await storm(tmp_path, loop, CONNECTIONS, OPEN_FILES)
    print(figures)
    assert figures.silent == 0
    assert figures.welcomed + figures.refused == CONNECTIONS
    assert 200 <= figures.welcomed < OPEN_FILES
    assert figures.lost == 0
    assert figures.standing_cpu < STANDING_CPU_MAX
    assert figures.log_bytes < LOG_BYTES_MAX
    assert figures.room_s < RESUMED_S_MAX
    # Loose: on a shared machine the stormers take the processor from everybody.
    assert figures.during_us[1] < 20 * figures.before_us[1] + 200_000


async def first_frame(port: int) -> str:
    """Connect, say HELLO, and return what the answer says; `silent` when the connection ends without one."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(control.encode_hello("late", None, None))
    try:
        header = await reader.readexactly(8)
        return kind_of(bytearray(header + await reader.readexactly(int.from_bytes(header[:4], "little"))))
    except (OSError, asyncio.IncompleteReadError):
        return "silent"
    finally:
        writer.close()


async def publish_until_it_works(bus: Bus, kept: list[bytes]) -> None:
    while True:
        payload = len(kept).to_bytes(4, "big") + bytes(30_000)
        try:
            await bus.publish("files.stored", payload)
        except BrokerError as failure:
            if not failure.temporary:
                raise
            await asyncio.sleep(0.02)
        else:
            kept.append(payload)
            return


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="changes the limits of another process")
@pytest.mark.parametrize("loop", LOOPS)
async def test_something_else_eats_the_open_files(tmp_path: Path, loop: str) -> None:
    """The bound on connections does not help then. Late peers are told, the journal waits, and nothing is lost."""
    server = Server(tmp_path)
    await server.start("--loop", loop)
    assert server.process is not None
    process = psutil.Process(server.process.pid)
    kept: list[bytes] = []
    try:
        async with connect(server.url, backoff=BackoffPolicy(first_s=0.01, longest_s=0.1)) as bus:
            await publish_until_it_works(bus, kept)
            limits = process.rlimit(resource.RLIMIT_NOFILE)
            # The lowest free one is given out: from here on every one that is opened needs another to be closed.
            process.rlimit(resource.RLIMIT_NOFILE, (process.num_fds(), limits[1]))
            cpu_s = sum(process.cpu_times()[:2])
            assert [await first_frame(server.port) for _ in range(LATE)] == ["refused"] * LATE
            # Now nothing at all can be opened: late peers wait with the kernel, and no segment can be made.
            process.rlimit(resource.RLIMIT_NOFILE, (3, limits[1]))
            late = [asyncio.create_task(first_frame(server.port)) for _ in range(LATE)]
            filling = asyncio.create_task(fill(bus, kept, 100))
            await asyncio.sleep(1.5)
            assert sum(process.cpu_times()[:2]) - cpu_s < 1.0
            assert not filling.done()
            assert not any(each.done() for each in late)
            process.rlimit(resource.RLIMIT_NOFILE, limits)
            began_s = time.monotonic()
            await publish_until_it_works(bus, [])
            assert await asyncio.gather(*late) == ["welcomed"] * LATE
            assert time.monotonic() - began_s < RESUMED_S_MAX
            await filling
        assert server.log.stat().st_size < LOG_BYTES_MAX
        server.kill()
        await server.start("--loop", loop)
        async with connect(server.url) as bus:
            info = await bus.channel("files.stored")
            stored = await read(bus, info.head)
        assert [payload for payload in kept if payload not in stored] == []
    finally:
        server.kill()


async def fill(bus: Bus, kept: list[bytes], count: int) -> None:
    for _ in range(count):
        await publish_until_it_works(bus, kept)


async def read(bus: Bus, count: int) -> set[bytes]:
    found: list[bytes] = []
    async with bus.subscribe("files.stored", start="start") as subscription:
        async for message in subscription:
            found.append(bytes(message.payload))
            if len(found) == count:
                break
    return set(found)
