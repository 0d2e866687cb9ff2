"""What every home must do alike with workers: functions that do jobs, and stop in good order."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any

import pytest

from broker import BrokerError, Reject, Retry
from tests.contract.homes import take

if TYPE_CHECKING:
    from broker import Job
    from tests.contract.homes import Home

pytestmark = pytest.mark.usefixtures("loop_kind")


async def until(condition: Any, timeout_s: float = 10.0) -> None:
    """Wait until something is so."""
    async with asyncio.timeout(timeout_s):
        while True:
            if condition():
                return
            await asyncio.sleep(0.005)


async def test_functions_do_jobs(home: Home, room: str) -> None:
    channel, queue = f"s.{room}", f"q.{room}"
    seen: list[bytes] = []
    busy, busiest = 0, 0
    async with home.bus() as bus:

        @bus.worker(channel, queue=queue, concurrency=4)
        async def work(job: Job) -> None:
            nonlocal busy, busiest
            busy += 1
            busiest = max(busiest, busy)
            await asyncio.sleep(0.01)
            busy -= 1
            seen.append(job.payload)

        async with bus.run_workers():
            await bus.publish_many(channel, [b"%d" % number for number in range(40)])
            await until(lambda: len(seen) == 40)
        assert sorted(map(int, seen)) == list(range(40))
        assert busiest == 4
        info = await bus.consumer_info(queue)
        assert (info.acked, info.ready, info.leased, info.members) == (40, 0, 0, 0)


async def test_what_a_function_raises_decides(home: Home, room: str, caplog: pytest.LogCaptureFixture) -> None:
    channel, queue, dead = f"s.{room}", f"q.{room}", f"s.dead-{room}"
    seen: list[tuple[bytes, int]] = []
    async with home.bus() as bus:

        @bus.worker(channel, queue=queue, concurrency=4, backoff_s=(0.01, 0.01), attempts_max=3, dead_letter=dead)
        async def work(job: Job) -> None:
            seen.append((job.payload, job.attempt))
            match job.payload:
                case b"fails once" if job.attempt == 1:
                    raise ValueError("once")
                case b"always fails":
                    raise ValueError("always")
                case b"is rejected":
                    raise Reject("never")
                case b"retries" if job.attempt == 1:
                    raise Retry(0.02)
                case b"settles itself":
                    await job.reject()

        with caplog.at_level(logging.WARNING, "broker"):
            async with bus.run_workers(), bus.subscribe(dead) as letters:
                for payload in (b"fails once", b"always fails", b"is rejected", b"retries", b"settles itself"):
                    await bus.publish(channel, payload)
                dropped = {letter.payload for letter in await take(letters, 3)}
                await until(lambda: len(seen) == 9)
        assert dropped == {b"always fails", b"is rejected", b"settles itself"}
        assert sorted(seen) == [
            (b"always fails", 1),
            (b"always fails", 2),
            (b"always fails", 3),
            (b"fails once", 1),
            (b"fails once", 2),
            (b"is rejected", 1),
            (b"retries", 1),
            (b"retries", 2),
            (b"settles itself", 1),
        ]
        # There may be fewer of them than failures: what fails often is counted, not told each time.
        assert {str(record.msg).split()[0] for record in caplog.records} <= {"job_failed"}
        assert (await bus.consumer_info(queue)).dead == 3


async def test_a_job_that_takes_longer_than_its_lease_is_extended(home: Home, room: str) -> None:
    channel, queue = f"s.{room}", f"q.{room}"
    attempts: list[int] = []
    async with home.bus() as bus:

        @bus.worker(channel, queue=queue, concurrency=2, lease_s=0.3)
        async def work(job: Job) -> None:
            attempts.append(job.attempt)
            await asyncio.sleep(0.8)

        async with bus.run_workers():
            for number in range(3):
                await bus.publish(channel, b"%d" % number)
            await until(lambda: len(attempts) == 3)
        assert attempts == [1, 1, 1]
        assert (await bus.consumer_info(queue)).acked == 3


async def test_stopping_lets_functions_end_and_gives_the_rest_back(home: Home, room: str) -> None:
    channel, queue = f"s.{room}", f"q.{room}"
    begun: list[bytes] = []
    ended: list[bytes] = []
    async with home.bus() as bus:

        @bus.worker(channel, queue=queue, concurrency=2)
        async def work(job: Job) -> None:
            begun.append(job.payload)
            await asyncio.sleep(60 if job.payload == b"long" else 0.1)
            ended.append(job.payload)

        await bus.publish_many(channel, [b"short", b"long", b"next", b"last"])
        running = asyncio.ensure_future(run(bus, 0.4))
        await until(lambda: len(begun) == 2)
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        assert (sorted(begun), ended) == ([b"long", b"short"], [b"short"])
        info = await bus.consumer_info(queue)
        assert (info.acked, info.leased, info.members) == (1, 0, 0)
        async with bus.consume(queue) as member:
            left = await take(member, 3)
            assert sorted(job.payload for job in left) == [b"last", b"long", b"next"]
            # What waited in the member was not begun, and is no attempt.
            assert {job.payload: (job.attempt, job.redelivered) for job in left} == {
                b"long": (2, True), b"next": (1, False), b"last": (1, False),
            }  # fmt: skip


async def run(bus: Any, grace_s: float) -> None:
    await bus.run_workers(grace_s=grace_s)


async def test_what_cannot_work_is_told(home: Home, room: str) -> None:
    channel, queue = f"s.{room}", f"q.{room}"
    async with home.bus() as bus:
        with pytest.raises(BrokerError, match="there are none"):
            await bus.run_workers()
        with pytest.raises(BrokerError, match="async def"):
            bus.worker(channel)(print)
        with pytest.raises(BrokerError, match="neither channels nor a queue"):
            bus.worker()(run)
        with pytest.raises(BrokerError, match="concurrency 0"):
            bus.worker(channel, concurrency=0)(run)

        @bus.worker(queue=queue)
        async def work(job: Job) -> None:
            """Nothing comes to it."""

        with pytest.raises(BrokerError, match="UNKNOWN_CONSUMER"):
            await bus.run_workers()
        await bus.create_queue(queue, channel)
        running = asyncio.ensure_future(run(bus, 1))
        async with asyncio.timeout(10):
            while True:
                if (await bus.consumer_info(queue)).members:
                    break
                await asyncio.sleep(0.005)
        await bus.remove_consumer(queue)
        with pytest.raises(BrokerError, match="UNKNOWN_CONSUMER"):
            await running
