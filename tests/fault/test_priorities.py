"""Critical jobs behind a long queue of low ones: they are done at once, though members have more than they can do."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

import pytest

from broker import connect
from tests.fault.harness import Server

if TYPE_CHECKING:
    from pathlib import Path

    from broker import Bus

LOW = 200_000
AT_ONCE = 2_000
CRITICAL = 300
PAUSE_S = 0.01
MEMBERS = 4
WINDOW = 16
P99_S_MAX = 1.0
CHANNEL, QUEUE = "lanes.jobs", "lanes"


async def work(bus: Bus, began: dict[bytes, float]) -> None:
    """Do jobs one after the other, each for a moment, and note when a critical one was begun."""
    async with bus.consume(QUEUE, window=WINDOW) as member:
        async for job in member:
            if job.priority == 0:
                began[job.payload] = time.monotonic()
            await asyncio.sleep(0.001)
            job.ack()


@pytest.mark.slow
@pytest.mark.timeout(180)
async def test_critical_jobs_pass_low_ones(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    server = Server(tmp_path)
    began: dict[bytes, float] = {}
    published: dict[bytes, float] = {}
    try:
        await server.start()
        async with connect(server.url) as bus, connect(server.url) as working:
            await bus.create_queue(QUEUE, CHANNEL, lanes=True)
            for at in range(0, LOW, AT_ONCE):
                await bus.publish_many(CHANNEL, [b"%100d" % number for number in range(at, at + AT_ONCE)], priority=3)
            members = [asyncio.create_task(work(working, began)) for _ in range(MEMBERS)]
            await asyncio.sleep(0.5)
            for number in range(CRITICAL):
                name = b"critical %d" % number
                published[name] = time.monotonic()
                await bus.publish(CHANNEL, name, priority=0)
                await asyncio.sleep(PAUSE_S)
            await asyncio.sleep(2 * P99_S_MAX)
            info = await bus.consumer_info(QUEUE)
            for member in members:
                member.cancel()
            await asyncio.gather(*members, return_exceptions=True)
        assert await server.stop() == 0, server.said()
    finally:
        server.kill()
    assert set(began) == set(published), f"{len(began)} of {CRITICAL} critical jobs were begun in time; {info}"
    waits = sorted(began[name] - published[name] for name in published)
    p99_s = waits[CRITICAL * 99 // 100]
    left = LOW + CRITICAL - info.acked
    with capsys.disabled():
        print(
            f"\n{CRITICAL} critical jobs behind {LOW} low ones: begun after {waits[CRITICAL // 2] * 1000:.1f} ms, "
            f"p99 {p99_s * 1000:.1f} ms, at most {waits[-1] * 1000:.1f} ms; {left} jobs were left"
        )
    assert left > LOW // 2, "the queue was nearly empty: that proves nothing"
    assert p99_s < P99_S_MAX
