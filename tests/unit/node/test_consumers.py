"""Consumers of a real node, on a real log: through restarts in good order, and in and out of memory."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from broker.access.gate import Identity
from broker.edge.session import Session
from broker.model.consumers import Consume, ConsumerSettings, ConsumerStart, Settle, Verdict
from broker.model.limits import Limits
from broker.model.profiles import Profiles
from broker.node import consumers as consumers_module
from broker.node.letters import fields_of
from broker.node.node import Node
from broker.wire import consuming, control
from broker.wire.kinds import Kind
from tests.golden.annotate import frames
from tests.golden.conversations import publish

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    import pytest

from contextlib import asynccontextmanager

SETTINGS = ConsumerSettings("work", ("s.one", "s.two"), dead_letter="s.dead")


class Peer:
    """The other end of a session in this process."""

    def __init__(self, node: Node) -> None:
        self.session = Session(node, Identity(peer="test"))
        self.received = b""
        self.answers = asyncio.Event()
        self.session.start(self)
        self.session.feed(control.encode_hello("test"))

    def writelines(self, pieces: list[bytes]) -> None:
        self.received += b"".join(bytes(piece) for piece in pieces)
        self.answers.set()

    def close(self) -> None:
        self.session.stopped()

    abort = close

    def pause_reading(self) -> None:
        """It is fed by hand."""

    def resume_reading(self) -> None:
        """It is fed by hand."""

    async def until(self, kind: Kind, count: int = 1) -> list[bytes]:
        """Wait for so many frames of a kind; returns their bodies."""
        while True:
            found = [frame[8:] for frame in frames(self.received) if frame[4] == kind]
            if len(found) >= count:
                self.received = b""
                return found
            self.answers.clear()
            await asyncio.wait_for(self.answers.wait(), 20)

    async def ask(self, op: str, **arguments: object) -> dict[str, object]:
        self.session.feed(control.encode_request(1, op, arguments))
        return control.decode_reply((await self.until(Kind.REPLY))[0])[1]

    async def publish(self, channel: str, number: int, *payloads: bytes) -> None:
        self.session.feed(control.encode_channel(0, channel.encode()) + publish(0, number, *payloads))
        await self.until(Kind.PUBLISHED)

    async def join(self, window: int, jobs: int) -> list[consuming.Job]:
        """Join, and wait for so many jobs."""
        consume = Consume("work", window, 1 << 20)
        self.session.feed(control.encode_subscribe(control.Subscribe(1, (), 0, consumer=consume)))
        came: list[consuming.Job] = []
        while len(came) < jobs:
            for body in await self.until(Kind.JOBS):
                came += consuming.decode_jobs(body).jobs
        return came


@asynccontextmanager
async def running(folder: Path) -> AsyncIterator[Node]:
    node = await Node.open(folder, profiles=Profiles(), limits=Limits(), segment_bytes=8 << 20, reserve_bytes=0)
    try:
        yield node
    finally:
        await node.close()


async def test_a_stop_in_good_order_remembers_what_was_seen(tmp_path: Path) -> None:
    async with running(tmp_path / "data") as node:
        peer = Peer(node)
        await peer.publish("s.one", 1, b"one", b"two")
        await peer.publish("s.two", 3, b"three")
        await peer.ask("consumer_set", **consuming.pack_consumer_set(SETTINGS, ConsumerStart()))
        [one] = await peer.join(1, 1)
        peer.session.feed(consuming.encode_ack(1, 1, [Settle(one.lease, 1, Verdict.ACK)]))
        await peer.until(Kind.ACKED)
        peer.close()
    async with running(tmp_path / "data") as node:
        peer = Peer(node)
        info = consuming.decode_info(await peer.ask("consumer", name="work"))
        assert (info.settings, info.acked, info.members) == (SETTINGS, 1, 0)
        jobs = await peer.join(9, 2)
        assert [(fields_of(job.record).payload, job.redelivered) for job in jobs] == [(b"two", True), (b"three", False)]
        peer.close()


async def test_one_that_left_memory_goes_on_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(consumers_module, "IDLE_US", -1)
    async with running(tmp_path / "data") as node:
        peer = Peer(node)
        await peer.publish("s.one", 1, *[b"%d" % at for at in range(50)])
        await peer.ask("consumer_set", **consuming.pack_consumer_set(SETTINGS, ConsumerStart()))
        for turn in range(5):
            jobs = await peer.join(10, 10)
            assert [fields_of(job.record).payload for job in jobs] == [
                b"%d" % at for at in range(turn * 10, turn * 10 + 10)
            ]
            peer.session.feed(consuming.encode_ack(1, 1, [Settle(jobs[-1].lease, 1, Verdict.ACK_THROUGH)]))
            peer.session.feed(control.encode_unsubscribe(1))
            await peer.until(Kind.UNSUBSCRIBED)
            for _ in range(3):
                node.consumers.tick()
                await peer.ask("channel", name="s.one")
                await asyncio.sleep(0.02)
            assert node.consumers.stats()["consumers_in_memory"] == 0
        info = consuming.decode_info(await peer.ask("consumer", name="work"))
        assert (info.acked, info.lag) == (50, 0)
        peer.close()


async def test_names_are_known_after_a_restart_and_none_is_read_before_it_is_asked_for(tmp_path: Path) -> None:
    async with running(tmp_path / "data") as node:
        peer = Peer(node)
        for name in ("b", "a", "c"):
            settings = ConsumerSettings(name, ("s.>",), "exclusive")
            await peer.ask("consumer_set", **consuming.pack_consumer_set(settings, ConsumerStart()))
        await peer.ask("consumer_remove", name="c")
        peer.close()
    async with running(tmp_path / "data") as node:
        peer = Peer(node)
        node.consumers.tick()
        await peer.ask("channel", name="s.one")
        await asyncio.sleep(0.05)
        stats = node.consumers.stats()
        assert (stats["consumers"], stats["consumers_in_memory"]) == (2, 0)
        part = consuming.decode_infos(await peer.ask("consumers"))
        assert [info.settings.name for info in part.consumers] == ["a", "b"]
        assert (await peer.ask("channels"))["channels"] == []
        peer.close()
