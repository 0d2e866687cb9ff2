"""Deletion is real, over restarts: every bound of retention, what is kept by key, and no canary in any file.

A broker of this process writes, is closed or abandoned, and is opened again. Its archiver is told not to wait for more
segments, and segments are sealed when the test says so; everything else is as it is for users.
"""

from __future__ import annotations

import asyncio
import mmap
from typing import TYPE_CHECKING

import pytest

from broker import Broker, Position, connect
from broker.log.archiving import Archiving
from broker.model.levels import Level
from broker.model.limits import Limits
from broker.model.profiles import Profile
from tests.contract.homes import Server

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from broker import Bus
    from broker.embedded import Opening
    from broker.node.node import Node

MIB = 1 << 20
CANARY = b"c4n4ry-of-a-message"
PROFILES = [
    Profile(b"live.>", Level.EPHEMERAL),
    Profile(b"old.>", retention_s=2),
    Profile(b"few.>", retention_messages=5),
    Profile(b"small.>", retention_bytes=64 * 1024),
    Profile(b"state.>", keep="latest_per_key", tombstone_s=0),
    Profile(b">"),
]
QUICK = Limits(ping_interval_s=0.15, group_bytes_max=64 * 1024, payload_bytes_max=64 * 1024)
"""Housekeeping twenty times a second, and groups that small segments take."""
PATIENCE_S = 30


@pytest.fixture(autouse=True)
def _at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Archive each sealed segment at once."""
    assert Archiving.__init__.__kwdefaults__ is not None
    monkeypatch.setitem(Archiving.__init__.__kwdefaults__, "wait_s", 0.0)


@pytest.fixture
def own_server() -> Iterator[Server]:
    """A server that the test may kill."""
    server = Server()
    try:
        yield server.start()
    finally:
        server.stop()


def opened(path: Path, profiles: list[Profile] | None = None) -> Opening:
    return Broker.open(path, profiles=profiles or PROFILES, limits=QUICK, segment_bytes=4 * MIB, reserve_bytes=0)


def node_of(broker: Broker) -> Node:
    return broker._node


async def until(what: Callable[[], bool]) -> None:
    """Wait until something is so."""
    async with asyncio.timeout(PATIENCE_S):
        while not what():  # noqa: ASYNC110  (what happens on threads and in files sets no event)
            await asyncio.sleep(0.02)


async def archived(broker: Broker) -> None:
    """Have everything that is committed in the archive, and nothing of it in the journal."""
    node = node_of(broker)
    last = node.core.applied_number
    await asyncio.to_thread(node._log.rotate)
    await until(lambda: node._log.archived_group >= last)


async def cycled(broker: Broker) -> None:
    """Have retention plan, trim and plan again until it finds nothing more, with all of it in the archive."""
    node = node_of(broker)
    for _ in range(20):
        trims = node._retention.trims
        await archived(broker)
        for _ in range(2):
            steps = node._retention.steps
            node._retention._due_us = 0
            await until(lambda before=steps: node._retention.steps > before and not node._retention._busy)  # type: ignore[misc]
        if node._retention.trims == trims:
            return
    raise AssertionError("retention does not come to an end")


async def compacted(broker: Broker) -> None:
    """Have the archive rebuilt."""
    archiving = node_of(broker)._log._archiving
    assert archiving is not None
    await asyncio.wrap_future(archiving.compact())


def files_with(path: Path, canary: bytes) -> list[str]:
    """Return the files that have some bytes anywhere, in free pages too."""
    found = []
    for file in sorted(path.rglob("*")):
        if file.is_file() and file.stat().st_size:
            with file.open("rb") as opened_file, mmap.mmap(opened_file.fileno(), 0, access=mmap.ACCESS_READ) as content:
                if content.find(canary) >= 0:
                    found.append(str(file.relative_to(path)))
    return found


async def read_all(broker: Bus, channel: str, count: int) -> list[bytes]:
    """Return the first messages of a channel from its start."""
    payloads = []
    async with broker.subscribe(channel, start="start") as subscription, asyncio.timeout(PATIENCE_S):
        async for message in subscription:
            payloads.append(message.payload)
            if len(payloads) == count:
                break
    return payloads


# -- each bound, over restarts -----------------------------------------------------------------------------------------


async def test_each_bound_holds_and_survives_a_restart(tmp_path: Path) -> None:
    async with opened(tmp_path) as broker:
        for number in range(20):
            for channel in ("old.a", "few.a", "small.a", "keep.a"):
                await broker.publish(channel, b"%02d" % number + bytes(6_000))
            await archived(broker)
        await cycled(broker)
        assert (await broker.channel("few.a")).first == 16
        assert 2 < (await broker.channel("small.a")).first < 14
        assert (await broker.channel("keep.a")).first == 1
        await asyncio.sleep(2)  # the age itself: what is younger stays
        await cycled(broker)
        assert (await broker.channel("old.a")).first == 21
        before = [await broker.channel(channel) for channel in ("old.a", "few.a", "small.a", "keep.a")]
        small = before[2].first
    async with opened(tmp_path) as broker:
        assert [await broker.channel(channel) for channel in ("old.a", "few.a", "small.a", "keep.a")] == before
        assert [payload[:2] for payload in await read_all(broker, "few.a", 5)] == [b"15", b"16", b"17", b"18", b"19"]
        assert (await read_all(broker, "small.a", 1))[0][:2] == b"%02d" % (small - 1)
        assert (await broker.publish("old.a", b"next")).sequence == 21, "publishers go on where they were"
        assert await read_all(broker, "old.a", 1) == [b"next"]
        assert len(await read_all(broker, "keep.a", 20)) == 20


async def test_what_is_young_stays(tmp_path: Path) -> None:
    profiles = [Profile(b"old.>", retention_s=3_600), Profile(b">", retention_messages=1_000)]
    async with opened(tmp_path, profiles) as broker:
        for number in range(5):
            await broker.publish("old.a", b"%d" % number)
            await broker.publish("b", b"%d" % number)
        await cycled(broker)
        assert node_of(broker)._retention.trims == 0
        assert (await broker.channel("old.a")).first == 1


async def test_a_profile_that_changes_trims_what_nobody_writes_to(tmp_path: Path) -> None:
    async with opened(tmp_path, [Profile(b">")]) as broker:
        await broker.publish_many("a", [b"x"] * 50)
        await archived(broker)
    async with opened(tmp_path, [Profile(b">", retention_messages=10)]) as broker:
        await cycled(broker)
        assert (await broker.channel("a")).first == 41


async def test_a_reader_that_is_behind_is_told(tmp_path: Path) -> None:
    async with opened(tmp_path) as broker:
        await broker.publish_many("few.a", [b"%d" % number for number in range(20)])
        async with broker.subscribe("few.a", start="start") as early:
            assert (await anext(aiter(early))).sequence == 1
            await cycled(broker)
            # What was on its way to the reader stays its own.
            assert (await anext(aiter(early))).sequence == 2
        position = Position((await broker.channel("few.a")).epoch, 3)
        async with broker.subscribe("few.a", start=position) as late:
            assert (await anext(aiter(late))).sequence == 16
            assert [(event.name, event.at) for event in late.events] == [("trimmed", 16)]


async def test_trims_race_a_reader(tmp_path: Path) -> None:
    """A reader that is trimmed from under its feet gets every message in order, but for those that it is told of."""
    count = 300
    async with opened(tmp_path) as broker, broker.subscribe("keep.a", start="start", credit_bytes=64 * 1024) as reader:
        for number in range(count):
            await broker.publish("keep.a", b"%d" % number + bytes(3_000))
        skipped, trims = 0, 0
        expected = 1
        async with asyncio.timeout(PATIENCE_S):
            async for message in reader:
                if message.sequence != expected:
                    told = [event.at for event in reader.events if event.name == "trimmed"]
                    assert message.sequence in told
                    skipped += message.sequence - expected
                assert message.payload.startswith(b"%d\0" % (message.sequence - 1))
                expected = message.sequence + 1
                if expected > count:
                    break
                if message.sequence % 20 == 0 and trims < 5:
                    trims += 1
                    # Beyond what is on its way to the reader.
                    await broker.trim("keep.a", min(message.sequence + 60, count))
        assert skipped


async def test_a_trim_survives_a_kill(own_server: Server) -> None:
    async with connect(own_server.tcp_url) as bus:
        await bus.publish_many("s.a", [b"%d" % number for number in range(10)])
        assert await bus.trim("s.a", 7) == 7
        own_server.kill()
        await asyncio.to_thread(own_server.start)
        info = await bus.channel("s.a")
        assert (info.first, info.head) == (7, 10)
        assert await read_all(bus, "s.a", 4) == [b"6", b"7", b"8", b"9"]


# -- by key ------------------------------------------------------------------------------------------------------------


async def test_snapshot_then_follow_over_a_restart(tmp_path: Path) -> None:
    async with opened(tmp_path) as broker:
        for number in range(30):
            await broker.publish("state.a", b"%02d" % number, key=b"k%d" % (number % 3))
        await broker.publish("state.a", b"", key=b"k0")
        await cycled(broker)
        assert await read_all(broker, "state.a", 2) == [b"28", b"29"]
        await broker.publish("state.a", b"again", key=b"k0")
        assert await read_all(broker, "state.a", 3) == [b"28", b"29", b"again"]
    async with opened(tmp_path) as broker:
        assert await read_all(broker, "state.a", 3) == [b"28", b"29", b"again"]


# -- canaries ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["trimmed", "removed", "too old", "too many", "expired", "superseded", "deleted"])
async def test_what_is_deleted_is_in_no_file(how: str, tmp_path: Path) -> None:
    channel = {"too old": "old.a", "too many": "few.a", "superseded": "state.a", "deleted": "state.a"}.get(
        how, "keep.a"
    )
    async with opened(tmp_path) as broker:
        await broker.publish("keep.b", b"something else")
        for _ in range(3):
            await broker.publish(channel, CANARY, key=b"k", expiry_s=1 if how == "expired" else None)
        assert files_with(tmp_path, CANARY)
        await archived(broker)
    async with opened(tmp_path) as broker:  # in which nobody publishes to the channel: such a one is not removed
        if how == "trimmed":
            assert await broker.trim(channel, 4) == 4
        elif how == "removed":
            await broker.remove(channel)
        elif how == "too many":
            await broker.publish_many(channel, [b"x"] * 5)
        elif how in ("superseded", "deleted"):
            await broker.publish(channel, b"later" if how == "superseded" else b"", key=b"k")
        else:
            await asyncio.sleep(2.1)
            await broker.publish("keep.b", b"time goes by in what is archived")
        await cycled(broker)
        await compacted(broker)
        assert files_with(tmp_path, CANARY) == []
        assert await read_all(broker, "keep.b", 1) == [b"something else"]
        if how not in ("removed", "too old"):
            await broker.publish(channel, b"last", key=b"l")
            assert (await read_all(broker, channel, 1))[0] in (b"last", b"later", b"x")
    assert files_with(tmp_path, CANARY) == []
    async with opened(tmp_path) as broker:
        assert await read_all(broker, "keep.b", 1) == [b"something else"]


@pytest.mark.parametrize("how", ["trimmed", "removed"])
async def test_a_key_is_deleted_with_its_messages(how: str, tmp_path: Path) -> None:
    async with opened(tmp_path) as broker:
        await broker.publish("state.a", b"x", key=CANARY)
        await broker.publish("state.b", b"x", key=b"stays")
        await cycled(broker)
    async with opened(tmp_path) as broker:
        await (broker.trim("state.a", 2) if how == "trimmed" else broker.remove("state.a"))
        await cycled(broker)
        await compacted(broker)
        assert files_with(tmp_path, CANARY) == []
        assert files_with(tmp_path, b"stays")
        assert await read_all(broker, "state.b", 1) == [b"x"]


async def test_what_is_not_deleted_is_in_some_file(tmp_path: Path) -> None:
    """The judge of the test above can find something."""
    async with opened(tmp_path) as broker:
        await broker.publish("keep.a", CANARY)
        await cycled(broker)
        await compacted(broker)
        assert files_with(tmp_path, CANARY) == ["archive/archive.mdb"]
