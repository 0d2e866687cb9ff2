"""What every home must do alike with work queues: many members, leases, attempts, dead letters, lanes and keys."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest

from broker import BrokerError
from tests.contract.homes import nothing_comes, take

if TYPE_CHECKING:
    from tests.contract.homes import Home

pytestmark = pytest.mark.usefixtures("loop_kind")


def numbered(count: int, begin: int = 0) -> list[bytes]:
    return [b"%d" % number for number in range(begin, begin + count)]


async def work(bus: Any, name: str, done: Counter[bytes], *, window: int = 8) -> None:
    """Do jobs until nothing comes for a moment."""
    async with bus.consume(name, window=window) as member:
        stream = aiter(member)
        while True:
            try:
                job = await asyncio.wait_for(anext(stream), 0.3)
            except TimeoutError:
                return
            done[job.payload] += 1
            job.ack()


async def test_redriven_letters_leave_their_channel_and_nobody_elses(home: Home, room: str) -> None:
    channel, dead, queue = f"s.{room}", f"s.{room}.dead", f"q.{room}"
    async with home.bus() as bus:
        await bus.create_queue(queue, channel, dead_letter=dead)
        await bus.publish_many(channel, [b"1", b"2", b"3"])
        async with bus.consume(queue) as consumer:
            for at, job in enumerate(await take(consumer, 3)):
                await job.reject()
                if at == 1:
                    await bus.publish(dead, b"somebody's own")
        assert await bus.redrive(queue, 1) == 1
        assert (await bus.channel(dead)).first == 2
        assert await bus.redrive(queue) == 2
        info = await bus.channel(dead)
        assert (info.first, info.head) == (3, 4), "what is nobody's letter stays, and what is behind it"
        await bus.trim(dead, 5)
        async with bus.consume(queue) as consumer:
            for job in await take(consumer, 3):
                await job.reject()
        assert await bus.redrive(queue) == 3
        info = await bus.channel(dead)
        assert info.first > info.head


async def test_letters_that_go_round_come_to_an_end(home: Home, room: str) -> None:
    here, there = f"s.{room}.here", f"s.{room}.there"
    async with home.bus() as bus:
        await bus.create_queue(f"q.{room}.1", here, dead_letter=there)
        await bus.create_queue(f"q.{room}.2", there, dead_letter=here)
        await bus.publish(here, b"round")
        async with bus.consume(f"q.{room}.1") as one, bus.consume(f"q.{room}.2") as two:
            for times in range(1, 18):
                (job,) = await take(one if times % 2 else two, 1)
                assert job.headers.get("broker-times", 1) == max(times - 1, 1)
                await job.reject()
            assert await nothing_comes(two)
        heads = [(await bus.channel(name)).head for name in (here, there)]
        assert heads == [9, 8]


async def test_other_settings_leave_alone_what_is_under_way(home: Home, room: str) -> None:
    channel, queue = f"s.{room}", f"q.{room}"
    async with home.bus() as bus:
        await bus.create_queue(queue, channel, lease_s=60)
        await bus.publish_many(channel, [b"1", b"2", b"3"])
        async with bus.consume(queue, window=1) as first, bus.consume(queue, window=1) as other:
            (job,) = await take(first, 1)
            (lost,) = await take(other, 1)
            info = await bus.create_queue(queue, channel, lease_s=0.05, attempts_max=1, update=True)
            assert (info.leased, info.settings.lease_ms, info.settings.attempts_max) == (2, 50, 1)
            await asyncio.sleep(0.1)
            assert (await bus.consumer_info(queue)).leased == 2, "they were given for a minute"
            await job.ack()
            # It fails under the new settings: one attempt was all it had.
            lost.nack(0)
            (short,) = await take(first, 1)
            assert short.payload == b"3"
            await short.ack()
        info = await bus.consumer_info(queue)
        assert (info.acked, info.dead, info.redelivered) == (2, 1, 0)


async def test_jobs_that_a_member_has_not_begun_are_no_attempts_when_it_goes(home: Home, room: str) -> None:
    channel, queue = f"s.{room}", f"q.{room}"
    async with home.bus() as bus:
        await bus.create_queue(queue, channel, attempts_max=1)
        await bus.publish_many(channel, [b"%d" % number for number in range(30)])
        async with bus.consume(queue, window=8) as consumer:
            (job,) = await take(consumer, 1)
            await job.ack()
        async with bus.consume(queue, window=4) as consumer:
            (job,) = await take(consumer, 1)
            assert (job.attempt, job.redelivered) == (1, False)
            # It ends with the job under way: that was an attempt, and the only one it has.
        async with bus.consume(queue) as consumer:
            jobs = await take(consumer, 28)
            assert [each.attempt for each in jobs] == [1] * 28
            assert not any(each.redelivered for each in jobs)
            for each in jobs:
                await each.ack()
        info = await bus.consumer_info(queue)
        assert (info.acked, info.dead, info.redelivered) == (29, 1, 0)


async def test_members_share_the_work(home: Home, room: str) -> None:
    channel, name = f"s.{room}", f"q.{room}"
    async with home.bus() as bus:
        await bus.create_queue(name, channel)
        done: list[Counter[bytes]] = [Counter() for _ in range(4)]
        members = [asyncio.ensure_future(work(bus, name, each)) for each in done]
        await bus.publish_many(channel, numbered(400))
        await asyncio.gather(*members)
        assert sum(done, Counter()) == Counter(numbered(400))
        assert all(done)
        info = await bus.consumer_info(name)
        assert (info.settings.mode, info.acked, info.redelivered, info.ready, info.leased) == ("shared", 400, 0, 0, 0)


async def test_batches_are_acknowledged_at_once(home: Home, room: str) -> None:
    channel, name = f"s.{room}", f"q.{room}"
    async with home.bus() as bus:
        await bus.create_queue(name, channel)
        await bus.publish_many(channel, numbered(500))
        payloads: list[bytes] = []
        async with bus.consume(name) as member, asyncio.timeout(10):
            async for batch in member.batches():
                payloads += batch.payloads()
                said = batch.ack()
                if len(payloads) == 500:
                    break
            await said
        assert payloads == numbered(500)
        assert (await bus.consumer_info(name)).acked == 500


async def test_a_failed_job_waits_and_comes_again(home: Home, room: str) -> None:
    channel, name = f"s.{room}", f"q.{room}"
    async with home.bus() as bus:
        await bus.create_queue(name, channel, backoff_s=(0.1, 1))
        await bus.publish_many(channel, numbered(2))
        async with bus.consume(name) as member:
            first, second = await take(member, 2)
            begun = time.monotonic()
            await second.nack(delay_s=0.2)
            await first.nack(delay_s=0)
            (again,) = await take(member, 1)
            assert (again.payload, again.attempt, again.redelivered) == (b"0", 2, True)
            assert (await bus.consumer_info(name)).delayed == 1
            (later,) = await take(member, 1)
            assert (later.payload, later.attempt) == (b"1", 2)
            assert time.monotonic() - begun >= 0.15
            await again.ack()
            await later.nack()
            (last,) = await take(member, 1)
            assert (last.payload, last.attempt) == (b"1", 3)
            await last.ack()


async def test_what_is_rejected_is_a_dead_letter(home: Home, room: str) -> None:
    channel, name, dead = f"s.{room}", f"q.{room}", f"s.dead-{room}"
    async with home.bus() as bus:
        await bus.create_queue(name, channel, dead_letter=dead)
        receipt = await bus.publish(channel, b"bad", headers={"mine": 1}, key=b"k")
        async with bus.consume(name) as member:
            (job,) = await take(member, 1)
            await job.reject()
            (letter,) = await bus.history(dead).messages()
            assert (letter.payload, letter.key) == (b"bad", b"k")
            assert letter.headers == {
                "mine": 1,
                "broker-source": channel,
                "broker-epoch": receipt.epoch,
                "broker-sequence": 1,
                "broker-consumer": name,
                "broker-attempts": 1,
                "broker-reason": "rejected",
            }
            assert (await bus.consumer_info(name)).dead == 1
            assert await bus.redrive(name) == 1
            (again,) = await take(member, 1)
            assert (again.channel, again.payload, again.key, again.headers["mine"]) == (channel, b"bad", b"k", 1)
            await again.ack()
            assert await bus.redrive(name) == 0


async def test_attempts_have_an_end(home: Home, room: str) -> None:
    channel, name, dead = f"s.{room}", f"q.{room}", f"s.dead-{room}"
    async with home.bus() as bus:
        await bus.create_queue(name, channel, attempts_max=3, backoff_s=(0.01, 0.02), dead_letter=dead)
        await bus.publish(channel, b"bad")
        async with bus.consume(name) as member, bus.subscribe(dead) as letters:
            for attempt in (1, 2, 3):
                (job,) = await take(member, 1)
                assert job.attempt == attempt
                job.nack()
            (letter,) = await take(letters, 1)
            assert (letter.headers["broker-attempts"], letter.headers["broker-reason"]) == (3, "attempts")
            assert await nothing_comes(member)


async def test_a_dead_letter_that_dies_again_keeps_its_first_source(home: Home, room: str) -> None:
    channel, dead, last = f"s.{room}", f"s.dead-{room}", f"s.last-{room}"
    async with home.bus() as bus:
        await bus.create_queue(f"q.{room}.one", channel, dead_letter=dead)
        await bus.create_queue(f"q.{room}.two", dead, dead_letter=last)
        await bus.publish(channel, b"bad")
        for name in ("one", "two"):
            async with bus.consume(f"q.{room}.{name}") as member:
                (job,) = await take(member, 1)
                await job.reject()
        (letter,) = await bus.history(last).messages()
        assert letter.headers["broker-source"] == channel


async def test_a_lease_that_ends_gives_the_job_to_another(home: Home, room: str) -> None:
    channel, name = f"s.{room}", f"q.{room}"
    async with home.bus() as bus:
        await bus.create_queue(name, channel, lease_s=0.3)
        await bus.publish(channel, b"x")
        async with bus.consume(name, window=1) as slow:
            (job,) = await take(slow, 1)
            await asyncio.sleep(0.2)
            await job.extend(0.6)
            async with bus.consume(name) as quick:
                assert await nothing_comes(quick, 0.3)
                (again,) = await take(quick, 1)
                # The slow one may have been given it again before.
                assert (again.payload, again.attempt >= 2, again.redelivered) == (b"x", True, True)
                with pytest.raises(BrokerError, match=r"LEASE_EXPIRED|LEASE_UNKNOWN"):
                    await job.ack()
                await again.ack()
        assert (await bus.consumer_info(name)).acked == 1


async def test_a_member_that_leaves_gives_its_jobs_back_at_once(home: Home, room: str) -> None:
    channel, name = f"s.{room}", f"q.{room}"
    async with home.bus() as bus:
        await bus.create_queue(name, channel, lease_s=60)
        await bus.publish_many(channel, numbered(10))
        async with home.bus() if home.kind not in ("embedded", "thread") else same(bus) as other:
            leaver = await other.consume(name)
            taken = await take(leaver, 10)
            await taken[0].ack()
            await leaver.close()
        async with bus.consume(name) as member:
            jobs = await take(member, 9)
            assert sorted(job.payload for job in jobs) == numbered(9, begin=1)
            assert all(job.redelivered and job.attempt == 2 for job in jobs)


class same:
    """A bus that is somebody else's, where there is only one."""

    def __init__(self, bus: Any) -> None:
        self._bus = bus

    async def __aenter__(self) -> Any:
        return self._bus

    async def __aexit__(self, *raised: object) -> None:
        """It stays open."""


async def test_lanes_go_by_priority_and_none_starves(home: Home, room: str) -> None:
    channel, name = f"s.{room}", f"q.{room}"
    async with home.bus() as bus:
        for priority in (3, 2, 1, 0):
            await bus.publish_many(channel, [b"%d" % priority] * 100, priority=priority)
        await bus.create_queue(name, channel, lanes=True, paused=True)
        async with bus.consume(name, window=1) as member:
            await bus.resume_consumer(name)
            first = []
            for _ in range(60):
                (job,) = await take(member, 1)
                first.append(job.priority)
                job.ack()
            counts = Counter(first)
            assert counts[0] > counts[1] > counts[2] > counts[3] > 0


async def test_one_job_of_a_key_is_under_way(home: Home, room: str) -> None:
    channel, name = f"s.{room}", f"q.{room}"
    async with home.bus() as bus:
        await bus.create_queue(name, channel, by_key=True, backoff_s=(0.05, 0.05))
        for number in range(4):
            for key in (b"a", b"b"):
                await bus.publish(channel, b"%d" % number, key=key)
        async with bus.consume(name) as member:
            order: dict[bytes, list[bytes]] = {b"a": [], b"b": []}
            failed = False
            for _ in range(9):
                (job,) = await take(member, 1)
                if job.key == b"a" and job.payload == b"1" and not failed:
                    failed = True
                    job.nack()
                    continue
                order[job.key].append(job.payload)
                await job.ack()
            assert order == {b"a": numbered(4), b"b": numbered(4)}
            assert await nothing_comes(member)


async def test_a_queue_can_be_looked_into_and_purged(home: Home, room: str) -> None:
    channel, name = f"s.{room}", f"q.{room}"
    async with home.bus() as bus:
        await bus.publish_many(channel, numbered(5))
        await bus.create_queue(name, channel)
        async with bus.consume(name, window=2) as member:
            await take(member, 2)
            jobs = await bus.peek(name)
            assert sorted((job.channel, job.sequence) for job in jobs) == [(channel, each) for each in range(1, 6)]
            assert sum(job.member != 0 for job in jobs) == 2
            assert len(await bus.peek(name, limit=1)) == 1
            assert await bus.purge(name) > 0
            assert await bus.peek(name) == []
            await bus.publish(channel, b"after")
        async with bus.consume(name) as member:
            assert [job.payload for job in await take(member, 1)] == [b"after"]


async def test_settings_of_queues_are_judged(home: Home, room: str) -> None:
    channel, name = f"s.{room}", f"q.{room}"
    async with home.bus() as bus:
        with pytest.raises(BrokerError, match="INVALID_CONSUMER"):
            await bus.create_queue(name, f"s.{room}.>", dead_letter=f"s.{room}.dead")
        with pytest.raises(BrokerError, match="INVALID_CONSUMER"):
            await bus.create_queue(name, channel, lease_s=0)
        await bus.create_queue(name, channel)
        with pytest.raises(BrokerError, match="CONSUMER_EXISTS"):
            await bus.create_consumer(name, channel, update=True)
        with pytest.raises(BrokerError, match="INVALID_CONSUMER"):
            await bus.redrive(name)
