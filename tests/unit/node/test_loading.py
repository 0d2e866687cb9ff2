"""Loading from a real log: what a broker that has been started anew does when its channels are named."""

from __future__ import annotations

import asyncio
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest

from broker import Broker, BrokerError
from broker.client.client import Client
from broker.log.log import ArchiveBy, Log
from broker.model.limits import Limits
from broker.node.loader import JOB_NAMES_MAX
from broker.node.node import Node

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

CHANNELS = 2_000
LAG_S_MAX = 5.0
"""Generous: on a machine that others use, the loop waits for a core."""


def names(count: int = CHANNELS, prefix: str = "s") -> list[str]:
    return [f"{prefix}.{number % 37}.{number:06d}" for number in range(count)]


def opened(folder: Path, **options: Any) -> Any:
    return Broker.open(folder / "data", segment_bytes=256 << 10, reserve_bytes=0, **options)


async def filled(folder: Path, prefix: str = "s") -> None:
    """Fill a directory: one record a channel, over several segments."""
    async with opened(folder, limits=Limits(group_bytes_max=64 << 10)) as bus:
        for name in names(prefix=prefix):
            bus.post(name, b"first")
        await bus.flush()
        assert await asyncio.to_thread(bus._node._log.wait_sealed, 10)


@pytest.fixture
def jobs(monkeypatch: pytest.MonkeyPatch) -> list[list[bytes]]:
    """The names that each look-up was for."""
    every: list[list[bytes]] = []
    resolve = Log.resolve

    def noted(self: Log, wanted: list[bytes]) -> list[bytes]:
        every.append(wanted)
        return resolve(self, wanted)

    monkeypatch.setattr(Log, "resolve", noted)
    return every


@pytest.fixture
def unarchived(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is moved into the archive, so that a test knows where it is."""
    open_node: Callable[..., Any] = Node.open.__func__  # type: ignore[attr-defined]

    async def opened_so(cls: type[Node], path: object, /, **options: Any) -> Node:
        node: Node = await open_node(cls, path, **{**options, "archive_by": ArchiveBy.NOBODY})
        return node

    monkeypatch.setattr(Node, "open", classmethod(opened_so))


async def watched(late_s: list[float]) -> None:
    while True:
        due = time.monotonic() + 0.001
        await asyncio.sleep(0.001)
        late_s.append(time.monotonic() - due)


async def test_first_publishes_after_a_start_load_in_few_batches(
    tmp_path: Path, jobs: list[list[bytes]], capsys: pytest.CaptureFixture[str]
) -> None:
    await filled(tmp_path)
    async with opened(tmp_path) as bus:
        node = bus._node
        assert len(node.tails) == 0
        assert node.core.channels == CHANNELS
        late_s: list[float] = []
        watching = asyncio.create_task(watched(late_s))
        del jobs[:]
        publications = [bus.publish(name, b"again") for name in reversed(names())]
        assert {receipt.sequence for receipt in await asyncio.gather(*publications)} == {2}
        watching.cancel()
        with capsys.disabled():
            late_ms = max(late_s) * 1e3
            print(f"\n{CHANNELS} cold channels in {len(jobs)} look-ups, the loop at most {late_ms:.1f} ms late")
        assert max(late_s) < LAG_S_MAX
        assert sum(map(len, jobs)) <= 2 * CHANNELS
        assert len(jobs) <= CHANNELS // 20
        assert max(map(len, jobs)) <= JOB_NAMES_MAX
        assert node.loader.loaded == CHANNELS
        assert node.loader.waiting_bytes == 0


async def test_others_are_served_while_one_names_very_many(tmp_path: Path, jobs: list[list[bytes]]) -> None:
    """One that names channels which do not exist delays another's first publish by a look-up or two."""
    await filled(tmp_path)
    async with opened(tmp_path, limits=Limits(channels_max=100_000)) as bus:
        stranger, guest = await Client(bus._open_pipe).start(), await Client(bus._open_pipe).start()
        await guest.publish(names()[0], b"warm")
        for name in names(30_000, "none"):
            stranger.post(name, b"")
        for name in names()[1:6]:
            begun = len(jobs)
            assert (await guest.publish(name, b"again")).sequence == 2
            # What the loop had still to do when it asked is not a matter of turns.
            assert [name.encode() in job for job in jobs[begun : begun + 5]].count(True) == 1
        await stranger.close()
        await guest.close()


@pytest.mark.usefixtures("unarchived")
async def test_a_damaged_page_refuses_those_alone_whose_channels_are_in_it(tmp_path: Path) -> None:
    # Long names, so that a page holds few of them.
    prefix = "s." + "x" * 100
    await filled(tmp_path, prefix)
    every = names(prefix=prefix)
    broken = every[70]
    damage(tmp_path / "data" / "journal", broken.encode())
    async with opened(tmp_path) as bus:
        outcomes = await asyncio.gather(*(bus.publish(name, b"again") for name in every), return_exceptions=True)
        refused = [name for name, outcome in zip(every, outcomes, strict=True) if isinstance(outcome, BaseException)]
        assert broken in refused
        # The tables of every segment name a channel in two places, each of them in a page with many others.
        assert len(refused) < len(every) // 2
        for outcome in outcomes:
            assert not isinstance(outcome, BaseException) or "STORAGE_CORRUPT" in str(outcome)
        assert bus._node.loader.waiting_bytes == 0
        assert (await bus.publish("s.new", b"")).sequence == 1


def damage(folder: Path, name: bytes) -> None:
    """Flip a bit of a name wherever a sealed segment's tables have it; its groups hold it in another place."""
    hits = 0
    for path in sorted(folder.glob("*.seg")):
        content = bytearray(path.read_bytes())
        at = content.find(name)
        while at >= 0 and (at := content.find(name, at + 1)) >= 0:
            content[at] ^= 1
            hits += 1
        path.write_bytes(content)
    assert hits, "the name is in no sealed segment's tables"


async def test_closing_while_a_look_up_is_under_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A client that leaves while its frames wait leaves nothing behind, and the broker ends when the look-up does."""
    await filled(tmp_path)
    gate, under_way = threading.Event(), threading.Event()
    resolve = Log.resolve

    def gated(self: Log, wanted: list[bytes]) -> list[bytes]:
        under_way.set()
        assert gate.wait(10)
        return resolve(self, wanted)

    monkeypatch.setattr(Log, "resolve", gated)
    async with opened(tmp_path) as bus:
        node = bus._node
        client = await Client(bus._open_pipe).start()
        publication = client.publish(names()[5], b"again")
        assert await asyncio.to_thread(under_way.wait, 10)
        await client.close(timeout_s=0)
        with pytest.raises(BrokerError):
            await publication
        # The session hears of it in the pipe's next turns.
        for _ in range(100):
            await asyncio.sleep(0.001)
            if not node.loader.waiting_bytes:
                break
        assert node.loader.waiting_bytes == 0
        gate.set()
        receipt = await bus.publish(names()[6], b"again")
        assert receipt.sequence == 2
        assert [name for name in node.tails.names() if name != names()[6].encode()] == []
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("broker-load")]


async def test_what_was_removed_does_not_come_back_for_being_removed_twice(tmp_path: Path, unarchived: None) -> None:
    """Between the two the name was asked for, and nothing published: there is no group that says so."""
    await filled(tmp_path)
    name = names()[0]
    async with opened(tmp_path) as bus:
        await bus.remove(name)
        async with bus.subscribe(name):
            assert bus._node.tails.ready(name.encode())
        for _ in range(100):
            if not bus._node.tails.held(name.encode()):
                break
            await asyncio.sleep(0.01)
        await bus.remove(name)
        receipt = await bus.publish(name, b"new")
        assert receipt.sequence == 1
    async with opened(tmp_path) as bus:
        assert [message.payload for message in await bus.history(name).messages()] == [b"new"]
