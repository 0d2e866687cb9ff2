"""Consumers and queues whose server is killed: what was acknowledged stays done, and the rest comes again."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest

from broker import BackoffPolicy, BrokerError, connect
from tests.contract import threaded
from tests.contract.homes import take

if TYPE_CHECKING:
    from tests.contract.homes import Server

pytestmark = pytest.mark.usefixtures("loop_kind")

QUICK = BackoffPolicy(first_s=0.01, longest_s=0.05)


@pytest.fixture(params=["client", "blocking client"])
def way(request: pytest.FixtureRequest) -> Any:
    return {"client": connect, "blocking client": threaded.connect}[request.param]


async def restart(server: Server) -> None:
    """Kill the server and start it again."""
    server.kill()
    await asyncio.to_thread(server.start)


async def is_done(said: Any) -> bool:
    """Wait for what becomes of an ack; it may not count if the job was given out again meanwhile."""
    try:
        await said
    except BrokerError as failure:
        if failure.name not in ("LEASE_EXPIRED", "LEASE_UNKNOWN", "COMMIT_UNKNOWN"):
            raise
        return False
    return True


async def test_a_consumer_goes_on_after_a_kill(own_server: Server, way: Any) -> None:
    async with way(own_server.tcp_url, backoff=QUICK) as bus:
        await bus.publish_many("s.c", [b"%d" % number for number in range(20)])
        await bus.create_consumer("c", "s.c")
        async with bus.consume("c") as consumer:
            jobs = await take(consumer, 10)
            for job in jobs[:5]:
                await job.ack()
            await restart(own_server)
            # A job of the connection that was lost can still be done; what nobody has done comes again, and is marked.
            await jobs[5].ack()
            again = await take(consumer, 1)
            while again[-1].sequence < 20:
                again += await take(consumer, 1)
            for job in again:
                job.ack()
            await consumer.flush()
            sequences = [job.sequence for job in again]
            assert sequences[-14:] == list(range(7, 21))
            assert sequences[:-14] in ([], [6])
            assert all(job.redelivered for job in again[:5])
        info = await bus.consumer_info("c")
        assert (info.ready, info.leased, info.lag) == (0, 0, 0)
        assert [each[2] for each in info.positions] == [20]


async def test_a_queue_loses_nothing_when_its_server_is_killed(own_server: Server, way: Any) -> None:
    count, done, marked = 2000, Counter[bytes](), set[bytes]()
    final: dict[bytes, int] = {}

    async def member(bus: Any) -> None:
        async with bus.consume("q", window=64) as consumer:
            async for job in consumer:
                if done[job.payload]:
                    marked.add(job.payload)
                    assert job.redelivered
                done[job.payload] += 1
                times = done[job.payload]
                said = job.ack()
                if int(job.payload) % 10 == 0 and await is_done(said):
                    final[job.payload] = times

    async with way(own_server.tcp_url, backoff=QUICK) as bus:
        await bus.create_queue("q", "s.q")
        members = [asyncio.ensure_future(member(bus)) for _ in range(4)]
        for begin in range(0, count, 200):
            await bus.publish_many("s.q", [b"%d" % number for number in range(begin, begin + 200)])
            if begin in (600, 1200):
                await restart(own_server)
        async with asyncio.timeout(30):
            while True:
                if len(done) == count and not (await bus.consumer_info("q")).leased:
                    break
                await asyncio.sleep(0.02)
        for each in members:
            each.cancel()
        await asyncio.gather(*members, return_exceptions=True)
        assert set(done) == {b"%d" % number for number in range(count)}
        assert {payload for payload, times in done.items() if times > 1} == marked
        # Once it is acknowledged it never comes again.
        assert len(final) > 100
        assert {payload: done[payload] for payload in final} == final
        info = await bus.consumer_info("q")
        assert (info.ready, info.leased, info.lag) == (0, 0, 0)
