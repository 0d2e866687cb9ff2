"""A member of a consumer against a server whose every frame is scripted: jobs, what is said of them, and reconnects."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

from broker import BrokerError
from broker.model.consumers import BACK_OFF, Consume, DoneRun, Settle, Verdict
from broker.model.errors import error
from broker.wire import consuming, control
from broker.wire.kinds import Kind
from tests.reference import frames as twin
from tests.reference.jobs import Told, build_jobs
from tests.unit.client.scripted import AT_ONCE, Scripted

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from broker import Client
    from tests.unit.client.scripted import Connect, Peer

pytestmark = pytest.mark.usefixtures("loop_kind")


@pytest.fixture
async def server() -> AsyncIterator[Scripted]:
    async with Scripted().listening() as scripted:
        yield scripted


@pytest.fixture
async def bus(server: Scripted, connect: Connect) -> AsyncIterator[Client]:
    client = await connect(server.url, backoff=AT_ONCE)
    yield client
    await client.close(timeout_s=0.01)


def jobs(
    subscription: int, first: int, sequences: range, *, lease: int, lease_ms: int = 0, named: bool = True
) -> bytes:
    """Return a JOBS frame of one channel, `c`, of which job `n` has payload `n`."""
    told = [
        Told(b"c" if named and sequence == sequences[0] else None, 0, 1, sequence, twin.Record(b"%d" % sequence))
        for sequence in sequences
    ]
    return twin.build_frame(Kind.JOBS, build_jobs(subscription, lease, lease_ms, told))


async def member_of(peer: Peer) -> int:
    """Accept the next SUBSCRIBE, which is a member's; return its number."""
    wanted = await peer.subscribe()
    assert wanted.consumer == Consume("work")
    peer.accept(wanted)
    return wanted.subscription


async def take(stream: Any, count: int) -> list[Any]:
    taken: list[Any] = []
    async with asyncio.timeout(5):
        async for job in stream:
            taken.append(job)
            if len(taken) == count:
                break
    return taken


async def acked(peer: Peer) -> tuple[int, int, list[Settle]]:
    return consuming.decode_ack(await peer.expect(Kind.ACK))


async def request(peer: Peer, operation: str) -> control.Request:
    asked = control.decode_request(await peer.expect(Kind.REQUEST))
    assert asked.op == operation
    return asked


async def begun(server: Scripted, bus: Client) -> tuple[Any, Peer, int]:
    """Return a member, the server's end, and the member's number."""
    consumer = bus.consume("work")
    opening = asyncio.ensure_future(consumer._open())
    peer = await server.peer()
    number = await member_of(peer)
    await opening
    return consumer, peer, number


async def test_jobs_are_settled_in_runs(server: Scripted, bus: Client) -> None:
    consumer, peer, number = await begun(server, bus)
    peer.send(jobs(number, 1, range(1, 7), lease=100))
    one, two, three, four, five, six = await take(consumer, 6)
    assert [job.payload for job in (one, six)] == [b"1", b"6"]
    assert (one.channel, one.epoch, one.sequence, one.attempt, one.redelivered) == ("c", 1, 1, 1, False)
    waiting = one.ack()
    two.ack()
    three.nack()
    four.nack(delay_s=1.5)
    five.reject()
    six.extend(60)
    said: list[Settle] = []
    turn = 0
    while sum(entry.leases for entry in said) < 6:
        subscription, turn, entries = await acked(peer)
        assert subscription == number
        said += entries
    assert said == [
        Settle(100, 2, Verdict.ACK),
        Settle(102, 1, Verdict.NACK, BACK_OFF),
        Settle(103, 1, Verdict.NACK, 1500),
        Settle(104, 1, Verdict.REJECT),
        Settle(105, 1, Verdict.EXTEND, 60_000),
    ]
    assert not waiting.done()
    peer.send(consuming.encode_acked(number, turn))
    await waiting
    assert not six.settled
    with pytest.raises(BrokerError, match="LEASE_UNKNOWN"):
        one.ack()
    await consumer.close()


async def test_a_batch_is_acknowledged_at_once_but_for_what_was_said(server: Scripted, bus: Client) -> None:
    consumer, peer, number = await begun(server, bus)
    peer.send(jobs(number, 1, range(1, 6), lease=1))
    (batch,) = await take(consumer.batches(), 1)
    assert batch.payloads() == [b"1", b"2", b"3", b"4", b"5"]
    list(batch)[2].reject()
    waiting = batch.ack()
    said: list[Settle] = []
    while len(said) < 3:
        _, turn, entries = await acked(peer)
        said += entries
    assert said == [Settle(3, 1, Verdict.REJECT), Settle(1, 2, Verdict.ACK), Settle(4, 2, Verdict.ACK)]
    refusal = error("LEASE_EXPIRED", "too late")
    peer.send(control.encode_error(refusal, subscription=number, ack=turn, lease=4, leases=1))
    peer.send(consuming.encode_acked(number, turn))
    with pytest.raises(BrokerError, match="too late"):
        await waiting
    (event,) = consumer.events
    assert event == ("refused", "c", 1, 4, 1, refusal.code)
    await consumer.close()


async def test_what_was_not_answered_is_told_by_positions(server: Scripted, bus: Client) -> None:
    consumer, peer, number = await begun(server, bus)
    peer.send(jobs(number, 1, range(1, 6), lease=1))
    one, two, three, four = await take(consumer, 4)
    first, second, nack, reject = one.ack(), two.ack(), three.nack(), four.reject()
    while True:
        _, _, entries = await acked(peer)
        if entries[-1].verdict is Verdict.REJECT:
            break
    peer.drop()
    again = await server.peer()
    asked = await request(again, "consumer_done")
    assert consuming.decode_done(asked.more) == (DoneRun("c", 1, 1, 2),)
    number = await member_of(again)
    again.send(control.encode_reply(asked.request, {"left": [["c", 1, 2, 1]]}))
    await first
    await nack
    with pytest.raises(BrokerError, match="LEASE_EXPIRED"):
        await second
    with pytest.raises(BrokerError, match="LEASE_EXPIRED"):
        await reject
    # What was not handed out yet comes again, under another lease, and its channel is told anew.
    again.send(jobs(number, 1, range(5, 6), lease=50))
    (five,) = await take(consumer, 1)
    done = five.ack()
    assert await acked(again) == (number, 1, [Settle(50, 1, Verdict.ACK)])
    again.send(consuming.encode_acked(number, 1))
    await done
    await consumer.close()


async def test_a_job_of_a_lost_connection_can_still_be_done(server: Scripted, bus: Client) -> None:
    consumer, peer, number = await begun(server, bus)
    peer.send(jobs(number, 1, range(1, 3), lease=1))
    one, two = await take(consumer, 2)
    peer.drop()
    again = await server.peer()
    await member_of(again)
    done = one.ack()
    asked = await request(again, "consumer_done")
    assert consuming.decode_done(asked.more) == (DoneRun("c", 1, 1, 1),)
    again.drop()
    last = await server.peer()
    asked = await request(last, "consumer_done")
    assert consuming.decode_done(asked.more) == (DoneRun("c", 1, 1, 1),)
    await member_of(last)
    last.send(control.encode_reply(asked.request, {"left": []}))
    await done
    two.ack()
    asked = await request(last, "consumer_done")
    last.send(control.encode_error(error("UNKNOWN_CONSUMER", "gone"), request=asked.request))
    await consumer.flush()
    await consumer.close()


async def test_acknowledging_through_covers_what_came_before(server: Scripted, bus: Client) -> None:
    consumer, peer, number = await begun(server, bus)
    peer.send(jobs(number, 1, range(1, 4), lease=1), jobs(number, 1, range(4, 8), lease=4, named=False))
    taken = await take(consumer, 7)
    consumer.ack_through(taken[4])
    assert await acked(peer) == (number, 1, [Settle(5, 1, Verdict.ACK_THROUGH)])
    assert [job.settled for job in taken] == [True] * 5 + [False] * 2
    peer.drop()
    again = await server.peer()
    asked = await request(again, "consumer_done")
    assert [run[2:] for run in consuming.decode_done(asked.more)] == [(1, 3), (4, 1), (5, 1)]
    await member_of(again)
    again.send(control.encode_reply(asked.request, {"left": []}))
    await consumer.flush()
    await consumer.close()


async def test_who_was_taken_over_hears_it_and_does_not_come_back(server: Scripted, bus: Client) -> None:
    consumer, peer, number = await begun(server, bus)
    peer.send(control.encode_error(error("CONSUMER_TAKEN", "somebody else"), subscription=number))
    with pytest.raises(BrokerError, match="CONSUMER_TAKEN"):
        await take(consumer, 1)
    assert [event.name for event in consumer.events] == ["taken"]


async def test_a_refused_member_raises_when_it_is_opened(server: Scripted, bus: Client) -> None:
    opening = asyncio.ensure_future(bus.consume("work")._open())
    peer = await server.peer()
    wanted = await peer.subscribe()
    peer.send(control.encode_error(error("UNKNOWN_CONSUMER", "none"), subscription=wanted.subscription))
    with pytest.raises(BrokerError, match="UNKNOWN_CONSUMER"):
        await opening
    with pytest.raises(BrokerError, match="INVALID_CONSUMER"):
        bus.consume("a..b")
    with pytest.raises(BrokerError, match="LIMIT"):
        bus.consume("work", window=0)


async def test_leaving_waits_for_what_was_said_and_tells_the_server(server: Scripted, bus: Client) -> None:
    consumer, peer, number = await begun(server, bus)
    peer.send(jobs(number, 1, range(1, 3), lease=1))
    (job, _) = await take(consumer, 2)
    job.ack()
    closing = asyncio.ensure_future(consumer.close())
    _, turn, _ = await acked(peer)
    await asyncio.sleep(0.01)
    assert not closing.done()
    peer.send(consuming.encode_acked(number, turn))
    assert control.decode_unsubscribe(await peer.expect(Kind.UNSUBSCRIBE)) == number
    await closing
    peer.send(control.encode_unsubscribed(number))


async def test_who_is_not_answered_is_told_so(server: Scripted, bus: Client) -> None:
    consumer, peer, number = await begun(server, bus)
    peer.send(jobs(number, 1, range(1, 2), lease=1))
    (job,) = await take(consumer, 1)
    done = job.ack()
    await acked(peer)
    await consumer.close(timeout_s=0.01)
    with pytest.raises(BrokerError, match="COMMIT_UNKNOWN"):
        await done


async def test_what_waits_to_be_taken_is_extended(server: Scripted, bus: Client) -> None:
    consumer, peer, number = await begun(server, bus)
    peer.send(jobs(number, 1, range(1, 5), lease=1, lease_ms=30))
    await take(consumer, 1)
    assert await acked(peer) == (number, 1, [Settle(2, 3, Verdict.EXTEND)])
    peer.send(consuming.encode_acked(number, 1))
    await consumer.close()


async def test_an_application_that_stands_still_leaves_its_jobs_to_others(server: Scripted, bus: Client) -> None:
    consumer, peer, number = await begun(server, bus)
    peer.send(jobs(number, 1, range(1, 5), lease=1, lease_ms=30))
    (job,) = await take(consumer, 1)
    extended = 0
    while extended < 4:
        _, turn, entries = await acked(peer)
        assert entries == [Settle(2, 3, Verdict.EXTEND)]
        peer.send(consuming.encode_acked(number, turn))
        extended += 1
    async with asyncio.timeout(5):
        while consumer._cursor.queued:  # noqa: ASYNC110
            await asyncio.sleep(0.005)
    assert not job.settled
    await consumer.close()


async def test_a_frame_that_makes_no_sense_costs_the_connection(server: Scripted, bus: Client) -> None:
    _, peer, number = await begun(server, bus)
    peer.send(jobs(number, 1, range(1, 2), lease=1, named=False))
    assert await peer.ended()
    again = await server.peer()
    await member_of(again)


async def test_events_are_told(server: Scripted, bus: Client) -> None:
    heard: asyncio.Queue[Any] = asyncio.Queue()
    consumer = bus.consume("work", on_event=heard.put_nowait)
    opening = asyncio.ensure_future(consumer._open())
    peer = await server.peer()
    number = await member_of(peer)
    await opening
    peer.send(control.encode_event(number, "paused", ""))
    peer.send(control.encode_event(number, "trimmed", "c", {"first": 9, "epoch": 2}))
    async with asyncio.timeout(5):
        assert await heard.get() == ("paused", "", 0, 0, 0, 0)
        assert await heard.get() == ("trimmed", "c", 2, 9, 0, 0)
    await consumer.close()
