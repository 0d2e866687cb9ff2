"""SIGKILL of broker and members under a work queue: what was acknowledged stays done, everything is done, in key order.

Members speak frames. Now and then one of them says that it failed, or leaves without a word; the server is killed at
random instants and started again.

BROKER_QUEUE_KILLS chooses how often (5), BROKER_SEED which instants.
"""

from __future__ import annotations

import asyncio
import os
import random
import struct
from typing import TYPE_CHECKING

import pytest

from broker.model.consumers import BACK_OFF, Consume, ConsumerSettings, ConsumerStart, Settle, Verdict
from broker.node.letters import fields_of
from broker.wire import consuming, control
from broker.wire.kinds import Kind
from tests.fault.harness import Server
from tests.golden.conversations import publish
from tests.reference.frames import Record
from tests.sizes import size

if TYPE_CHECKING:
    from pathlib import Path

KILLS = size("BROKER_QUEUE_KILLS", 5, 100)
SEED = int(os.environ.get("BROKER_SEED", random.SystemRandom().randrange(1 << 32)))
JOBS = 600 * KILLS
KEYS = 40
MEMBERS = 4
CHANNEL = "kill.jobs"
SETTINGS = ConsumerSettings("queue", (CHANNEL,), by_key=True, lease_ms=2_000, backoff_ms=(10, 50))


class Peer:
    """One connection. EOFError and OSError mean that it is lost."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer
        self.run = self.acks = 0

    @classmethod
    async def connect(cls, server: Server) -> Peer:
        while True:
            peer = None
            try:
                peer = cls(*await asyncio.open_connection("127.0.0.1", server.port))
                peer.send(control.encode_hello("queue"))
                kind, body = await peer.next()
                assert kind == Kind.WELCOME
                peer.run = control.decode_welcome(body).run
            except (EOFError, OSError):
                if peer is not None:
                    peer.close()
                await asyncio.sleep(0.02)
            else:
                return peer

    def send(self, *sent: bytes) -> None:
        self._writer.write(b"".join(sent))

    async def next(self) -> tuple[int, bytes]:
        header = await self._reader.readexactly(8)
        count, kind = struct.unpack_from("<IB", header)
        return kind, await self._reader.readexactly(count)

    async def ask(self, op: str, **arguments: object) -> dict[str, object]:
        """Ask, on a connection that does nothing else."""
        self.send(control.encode_request(1, op, arguments))
        while True:
            kind, body = await self.next()
            assert kind != Kind.ERROR, control.decode_error(body)
            if kind == Kind.REPLY:
                return control.decode_reply(body)[1]

    def close(self) -> None:
        self._writer.transport.abort()


class History:
    """What members have seen and said, and what they were promised."""

    def __init__(self) -> None:
        self.seen: dict[int, int] = {}
        self.done: set[int] = set()
        self.open: dict[tuple[int, bytes], int] = {}
        self.wrong: list[str] = []

    def deliver(self, run: int, job: consuming.Job) -> bytes:
        key = fields_of(job.record).key
        if job.sequence in self.done:
            self.wrong.append(f"{job.sequence} came after it was acknowledged for good")
        if job.sequence in self.seen and not job.redelivered:
            self.wrong.append(f"{job.sequence} came again and did not say so")
        if (run, key) in self.open:
            self.wrong.append(f"{job.sequence} came while {self.open[run, key]} of its key was under way")
        self.seen[job.sequence] = self.seen.get(job.sequence, 0) + 1
        self.open[run, key] = job.sequence
        return key


async def work(server: Server, history: History, chance: random.Random) -> None:
    """Be a member, across connections, until cancelled."""
    while True:
        peer = await Peer.connect(server)
        mine: set[tuple[int, bytes]] = set()
        said: dict[int, list[int]] = {}
        try:
            consume = Consume(SETTINGS.name, 8, 1 << 20)
            peer.send(control.encode_subscribe(control.Subscribe(1, (), 0, consumer=consume)))
            while chance.random() > 0.001:
                kind, body = await peer.next()
                if kind == Kind.ACKED:
                    _, number = consuming.decode_acked(body)
                    for told in [each for each in said if each <= number]:
                        history.done.update(said.pop(told))
                elif kind == Kind.ERROR:
                    refusal = control.decode_error(body)
                    assert refusal.ack is not None, refusal
                    said.pop(refusal.ack, None)
                elif kind == Kind.JOBS:
                    settle(peer, history, chance, consuming.decode_jobs(body), mine, said)
        except (EOFError, OSError):
            pass
        finally:
            for each in mine:
                history.open.pop(each, None)
            peer.close()


def settle(
    peer: Peer,
    history: History,
    chance: random.Random,
    jobs: consuming.Jobs,
    mine: set[tuple[int, bytes]],
    said: dict[int, list[int]],
) -> None:
    """Say of each job that it is done, or that it failed."""
    entries = []
    acked = []
    keys = [(peer.run, history.deliver(peer.run, job)) for job in jobs.jobs]
    mine.update(keys)
    for job, key in zip(jobs.jobs, keys, strict=True):
        failed = chance.random() < 0.02
        entries.append(Settle(job.lease, 1, Verdict.NACK if failed else Verdict.ACK, BACK_OFF if failed else 0))
        if not failed:
            acked.append(job.sequence)
        history.open.pop(key, None)
        mine.discard(key)
    peer.acks += 1
    said[peer.acks] = acked
    peer.send(consuming.encode_ack(1, peer.acks, entries))


async def fill(server: Server) -> None:
    """Publish all jobs and make the queue."""
    peer = await Peer.connect(server)
    peer.send(control.encode_channel(0, CHANNEL.encode()))
    records = [Record(b"%d" % at, key=b"k%d" % (at % KEYS)) for at in range(JOBS)]
    for at in range(0, JOBS, 200):
        peer.send(publish(0, at + 1, *records[at : at + 200]))
    stored = 0
    while stored < JOBS:
        kind, body = await peer.next()
        assert kind == Kind.PUBLISHED
        stored += sum(struct.unpack_from("<I", body, at + 24)[0] for at in range(0, len(body), 40))
    await peer.ask("consumer_set", **consuming.pack_consumer_set(SETTINGS, ConsumerStart()))
    peer.close()


async def until_done(server: Server, seconds: float) -> dict[str, object]:
    """Wait until nothing is left of the queue."""
    peer = await Peer.connect(server)
    end_s = asyncio.get_running_loop().time() + seconds
    while True:
        info = await peer.ask("consumer", name=SETTINGS.name)
        left = [info.get(key) for key in ("ready", "leased", "delayed", "lag")]
        if left == [0, 0, 0, 0]:
            peer.close()
            return info
        assert asyncio.get_running_loop().time() < end_s, info
        await asyncio.sleep(0.05)


@pytest.mark.slow
@pytest.mark.timeout(120 + KILLS * 5)
async def test_a_queue_survives_kills(tmp_path: Path) -> None:
    print(f"BROKER_QUEUE_KILLS={KILLS} BROKER_SEED={SEED}")
    chance = random.Random(SEED)
    server = Server(tmp_path)
    history = History()
    try:
        await server.start()
        await fill(server)
        members = [asyncio.create_task(work(server, history, random.Random(SEED + at))) for at in range(MEMBERS)]
        for _ in range(KILLS):
            await asyncio.sleep(chance.uniform(0.02, 0.25))
            server.kill()
            await server.start()
        info = await until_done(server, 60)
        for member in members:
            member.cancel()
        outcomes = await asyncio.gather(*members, return_exceptions=True)
        assert all(isinstance(outcome, asyncio.CancelledError) for outcome in outcomes), outcomes
        assert await server.stop() == 0, server.said()
    finally:
        server.kill()
    assert not history.wrong, history.wrong[:10]
    assert set(history.seen) == set(range(1, JOBS + 1))
    assert info["acked"] >= len(history.done)  # type: ignore[operator]
    assert len(history.done) > JOBS // 2
