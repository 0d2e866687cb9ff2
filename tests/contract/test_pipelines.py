"""What every home must do alike with pipelines: each job has its outputs published exactly once."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest

from broker import BrokerError, Output, Reject, Retry
from tests.contract.homes import happens, take

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from broker import Bus, Job
    from tests.contract.homes import Home

pytestmark = pytest.mark.usefixtures("loop_kind")


async def done(bus: Bus, queue: str, jobs: int) -> bool:
    """Whether so many jobs become done, and none is left."""

    async def is_done() -> bool:
        info = await bus.consumer_info(queue)
        return info.acked >= jobs and not (info.ready or info.leased or info.delayed or info.lag)

    return await happens(is_done, 20)


async def stored(bus: Bus, channel: str) -> list[bytes]:
    return [message.payload for message in await bus.history(channel).messages()]


def numbers(count: int) -> list[bytes]:
    return [b"%d" % number for number in range(count)]


async def test_each_job_has_its_outputs_published_once(home: Home, room: str) -> None:
    source, target, log, queue = f"s.{room}.in", f"s.{room}.out", f"a.{room}.log", f"q.{room}"

    def transform(job: Job) -> Iterator[Any]:
        if int(job.payload) % 3:
            yield target, job.payload
            yield Output(log, b"saw " + job.payload, headers={"of": job.sequence}, key=job.key)

    async with home.bus() as bus:
        await bus.create_queue(queue, source)
        await bus.publish_many(source, numbers(300), key=b"k")
        async with bus.pipeline(queue, transform, batch=32):
            assert await done(bus, queue, 300)
        kept = [number for number in numbers(300) if int(number) % 3]
        assert await stored(bus, target) == kept
        seen = await bus.history(log).messages()
        assert [message.payload for message in seen] == [b"saw " + number for number in kept]
        assert [message.headers["of"] for message in seen] == [int(number) + 1 for number in kept]
        assert {message.key for message in seen} == {b"k"}
        info = await bus.consumer_info(queue)
        assert (info.acked, info.redelivered, info.members) == (300, 0, 0)


async def test_what_a_transform_may_return(home: Home, room: str) -> None:
    source, target, queue = f"s.{room}.in", f"s.{room}.out", f"q.{room}"

    async def several(job: Job) -> list[Any]:
        await asyncio.sleep(0)
        return [(target, b"list"), Output(target, b"output")]

    async def stream(job: Job) -> AsyncIterator[Any]:
        yield target, b"stream"

    def transform(job: Job) -> Any:
        match job.payload:
            case b"nothing":
                return None
            case b"one":
                return target, b"one"
            case b"output":
                return Output(target, b"one output")
            case b"several":
                return several(job)
            case b"stream":
                return stream(job)

    async with home.bus() as bus:
        await bus.create_queue(queue, source)
        await bus.publish_many(source, [b"nothing", b"one", b"output", b"several", b"stream"])
        async with bus.pipeline(queue, transform):
            assert await done(bus, queue, 5)
        assert await stored(bus, target) == [b"one", b"one output", b"list", b"output", b"stream"]


async def test_jobs_that_make_nothing_are_done(home: Home, room: str) -> None:
    source, queue = f"s.{room}.in", f"q.{room}"
    async with home.bus() as bus:
        await bus.create_consumer(queue, source)
        await bus.publish_many(source, numbers(20))
        async with bus.pipeline(queue, lambda _: None, batch=7):
            assert await done(bus, queue, 20)


async def test_what_a_transform_raises_decides(home: Home, room: str, caplog: pytest.LogCaptureFixture) -> None:
    source, target, dead, queue = f"s.{room}.in", f"s.{room}.out", f"s.dead-{room}", f"q.{room}"
    seen: Counter[bytes] = Counter()

    def transform(job: Job) -> Iterator[Any]:
        seen[job.payload] += 1
        yield target, job.payload
        match job.payload:
            case b"fails once" if job.attempt == 1:
                raise ValueError("once")
            case b"is rejected":
                raise Reject("never")
            case b"retries" if job.attempt == 1:
                raise Retry(0.02)
            case b"always fails":
                raise ValueError("always")
            case b"settles itself":
                job.reject()

    given = [b"fine", b"fails once", b"is rejected", b"fine too", b"retries", b"always fails", b"settles itself"]
    async with home.bus() as bus:
        await bus.create_queue(queue, source, backoff_s=(0.01, 0.01), attempts_max=3, dead_letter=dead)
        await bus.publish_many(source, given)
        with caplog.at_level(logging.WARNING, "broker"):
            async with bus.pipeline(queue, transform), bus.subscribe(dead, start="start") as letters:
                dropped = {letter.payload for letter in await take(letters, 3)}
                assert await done(bus, queue, 4)
        assert dropped == {b"is rejected", b"always fails", b"settles itself"}
        assert sorted(await stored(bus, target)) == [b"fails once", b"fine", b"fine too", b"retries"]
        assert seen == Counter({b"fails once": 2, b"retries": 2, b"always fails": 3} | dict.fromkeys(given[::3], 1)) | (
            Counter([b"is rejected", b"fine too", b"settles itself"])
        )
        assert {str(record.msg).split()[0] for record in caplog.records} <= {"job_failed"}


async def test_a_durable_consumer_waits_for_a_job_that_failed(home: Home, room: str) -> None:
    source, target, name = f"s.{room}.in", f"s.{room}.out", f"c.{room}"

    def transform(job: Job) -> Any:
        if job.payload == b"4" and job.attempt < 3:
            raise Retry(0.01)
        return target, job.payload

    async with home.bus() as bus:
        await bus.create_consumer(name, source)
        await bus.publish_many(source, numbers(30))
        async with bus.pipeline(name, transform, batch=8):
            assert await done(bus, name, 30)
        assert sorted(await stored(bus, target), key=int) == numbers(30)


async def test_outputs_that_are_refused_fail_their_job_alone(home: Home, room: str) -> None:
    source, target, dead, queue = f"s.{room}.in", f"s.{room}.out", f"s.dead-{room}", f"q.{room}"
    refused = {7: f"e.{room}", 11: "no channel", 13: f"small.{room}", 17: 5}

    def transform(job: Job) -> list[Any]:
        number = int(job.payload)
        return [Output(target, job.payload), Output(refused.get(number, target), b"x" * 200)]  # type: ignore[arg-type]

    async with home.bus() as bus:
        await bus.create_queue(queue, source, backoff_s=(0.01, 0.01), attempts_max=2, dead_letter=dead)
        await bus.publish_many(source, numbers(40))
        async with bus.pipeline(queue, transform), bus.subscribe(dead, start="start") as letters:
            dropped = {int(letter.payload) for letter in await take(letters, len(refused))}
            assert await done(bus, queue, 36)
        assert dropped == set(refused)
        fine = [number for number in numbers(40) if int(number) not in refused]
        assert await stored(bus, target) == [made for number in fine for made in (number, b"x" * 200)]


async def test_a_batch_that_is_too_large_for_a_transaction_is_halved(home: Home, room: str) -> None:
    source, target, queue = f"s.{room}.in", f"s.{room}.out", f"q.{room}"
    async with home.bus() as bus:
        await bus.create_queue(queue, source)
        await bus.publish_many(source, numbers(100))
        async with bus.pipeline(queue, lambda job: (target, job.payload.ljust(60_000))):
            assert await done(bus, queue, 100)
        assert [payload.rstrip() for payload in await stored(bus, target)] == numbers(100)


async def test_leases_that_are_over_have_their_batch_dropped(home: Home, room: str) -> None:
    source, target, queue = f"s.{room}.in", f"s.{room}.out", f"q.{room}"
    seen: Counter[bytes] = Counter()
    async with home.bus() as bus:
        await bus.create_queue(queue, source)
        await bus.publish_many(source, numbers(10))

        async def transform(job: Job) -> Any:
            seen[job.payload] += 1
            if job.payload == b"5" and seen[job.payload] == 1:
                await bus.reset_consumer(queue, "start")
            return target, job.payload

        async with bus.pipeline(queue, transform):
            assert await done(bus, queue, 10)
        assert sorted(await stored(bus, target), key=int) == numbers(10)
        assert seen[b"5"] == 2, "what it was in the first time was dropped"


async def test_leases_are_extended_while_a_batch_is_transformed(home: Home, room: str) -> None:
    source, target, queue = f"s.{room}.in", f"s.{room}.out", f"q.{room}"

    async def transform(job: Job) -> Any:
        await asyncio.sleep(0.15)
        return target, b"%s %d" % (job.payload, job.attempt)

    async with home.bus() as bus:
        await bus.create_queue(queue, source, lease_s=0.3)
        await bus.publish_many(source, numbers(8))
        async with bus.pipeline(queue, transform):
            assert await done(bus, queue, 8)
        assert await stored(bus, target) == [b"%s 1" % number for number in numbers(8)]


async def test_pipelines_share_a_queue(home: Home, room: str) -> None:
    source, target, queue = f"s.{room}.in", f"s.{room}.out", f"q.{room}"
    by: Counter[int] = Counter()

    async with home.bus() as bus, home.bus() if home.kind not in ("embedded", "thread") else nobody(bus) as other:
        await bus.create_queue(queue, source, by_key=True)

        def transform_of(who: int) -> Any:
            async def transform(job: Job) -> Any:
                by[who] += 1
                await asyncio.sleep(0.001)
                return Output(target, job.payload, key=job.key)

            return transform

        for number in range(200):
            bus.post(source, b"%d" % number, key=b"k%d" % (number % 7))
        await bus.flush()
        one, two, three = (
            each.pipeline(queue, transform_of(who), batch=8) for who, each in enumerate((bus, other, bus))
        )
        async with one, two, three:
            assert await done(bus, queue, 200)
        made = [int(payload) for payload in await stored(bus, target)]
        assert sorted(made) == list(range(200))
        for key in range(7):
            assert [number for number in made if number % 7 == key] == list(range(key, 200, 7))
        assert len(by) == 3


class nobody:  # entered as a bus is
    """A second bus where there can be one only: the first again."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus

    async def __aenter__(self) -> Bus:
        return self._bus

    async def __aexit__(self, *raised: object) -> None:
        """It is closed by whoever has opened it."""


async def test_a_pipeline_that_is_cancelled_ends_its_batch(home: Home, room: str) -> None:
    source, target, queue = f"s.{room}.in", f"s.{room}.out", f"q.{room}"
    begun: list[bytes] = []

    async def transform(job: Job) -> Any:
        begun.append(job.payload)
        await asyncio.sleep(0.05)
        return target, job.payload

    async def run() -> None:
        await bus.pipeline(queue, transform, batch=2)

    async with home.bus() as bus:
        await bus.create_queue(queue, source)
        await bus.publish_many(source, numbers(8))
        running = asyncio.ensure_future(run())

        async def has_begun() -> bool:
            return bool(begun)

        assert await happens(has_begun)
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        made = await stored(bus, target)
        assert made == begun
        info = await bus.consumer_info(queue)
        assert (info.acked, info.leased, info.members) == (len(made), 0, 0)
        async with bus.pipeline(queue, transform):
            assert await done(bus, queue, 8)
        assert sorted(await stored(bus, target)) == numbers(8)


async def test_a_pipeline_goes_on_after_a_restart(home: Home, room: str) -> None:
    source, target, queue = f"s.{room}.in", f"s.{room}.out", f"q.{room}"
    for stretch in range(2):
        async with home.bus() as bus:
            await bus.create_queue(queue, source)
            await bus.publish_many(source, numbers(50))
            async with bus.pipeline(queue, lambda job: (target, job.payload), batch=9):
                assert await done(bus, queue, 50 * stretch + 1)
    async with home.bus() as bus:
        assert sorted(await stored(bus, target)) == sorted(numbers(50) * 2)


async def test_what_cannot_be_a_pipeline_is_told(home: Home, room: str) -> None:
    source, queue = f"s.{room}.in", f"q.{room}"
    async with home.bus() as bus:
        for batch, batch_bytes in ((0, 1), (2049, 1), (1, 0)):
            with pytest.raises(BrokerError, match="pipeline: got batches of"):
                bus.pipeline(queue, print, batch=batch, batch_bytes=batch_bytes)
        with pytest.raises(BrokerError, match="UNKNOWN_CONSUMER"):
            await bus.pipeline(queue, print)
        await bus.create_queue(queue, source)
        with pytest.raises(BrokerError, match="UNKNOWN_CONSUMER"):
            async with bus.pipeline(queue, print):
                await bus.remove_consumer(queue)
