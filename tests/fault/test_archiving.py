"""The archiver under a full disk, a reader that holds a snapshot, and kills: delayed, never wrong, and nothing lost."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import closing, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import psutil
import pytest

from broker import connect
from broker.log import ArchiveBy, Log, archiving
from broker.log.archiver import archive_path
from broker.log.care import judge
from broker.log.pages import open_pages
from broker.log.segment import group_key, group_number
from broker.model.errors import BrokerError
from tests.fault.harness import ROOT, Server
from tests.reference.chains import EPOCH, Chain
from tests.reference.groups import Entry, channel_entry, epoch_entry
from tests.unit.log.support import KIB, Opened, last_sequence, segment_files
from tests.unit.log.test_verify import change_row, flip_at

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from broker import Bus
    from broker.log.archive import Snapshot

SMALL_BYTES = 512 * KIB
"""Room for the first slices, and for no more."""
GROUPS = 90
PAYLOAD_BYTES = 4_000
WAIT_S = 60.0
MARGIN_BYTES = 64 * KIB
ROUNDS = 12
KILLS = 2
PUBLISHED_BYTES = 60_000
CHANNELS = range(1, 8)
PYTHONPATH = os.pathsep.join([str(ROOT), str(ROOT / "ext")])


def until(what: Callable[[], bool]) -> None:
    """Wait until something is so."""
    until_s = time.monotonic() + WAIT_S
    while not what():
        assert time.monotonic() < until_s
        time.sleep(0.005)


# -- a full disk -------------------------------------------------------------------------------------------------------


@contextmanager
def small_disk(path: Path) -> Iterator[bool]:
    """Put a small disk in a folder's place, with what the folder holds; tell whether that was possible."""
    options = f"size={SMALL_BYTES},mode=700"
    held = {file.name: file.read_bytes() for file in path.iterdir()}
    possible = shutil.which("mount") is not None and mount(path, options, "-t", "tmpfs", "tmpfs")
    try:
        for name, content in held.items() if possible else ():
            (path / name).write_bytes(content)
        yield possible
    finally:
        if possible:
            subprocess.run(["umount", "-l", str(path)], check=True)


def mount(path: Path, options: str, *what: str) -> bool:
    """Mount, or change what is mounted; tell whether that was possible."""
    return subprocess.run(["mount", "-o", options, *what, str(path)], capture_output=True, check=False).returncode == 0


def may_mount() -> bool:
    """Whether this user may mount a small disk here."""
    with TemporaryDirectory() as folder, small_disk(Path(folder)) as possible:
        return possible


@pytest.mark.skipif(
    not may_mount(), reason="needs a small disk of its own; tests/unit/log/test_archiver.py does without"
)
@pytest.mark.parametrize("archive_by", [ArchiveBy.THREAD, ArchiveBy.PROCESS])
def test_a_full_disk_delays_the_archive_alone(
    archive_by: ArchiveBy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Slices fail in their writes and say so; commits and readers go on, and with room all of it is archived."""
    told: list[Any] = []
    monkeypatch.setattr(archiving, "RETRY_S", 0.02)
    monkeypatch.setattr(archiving, "RETRY_S_MAX", 0.02)
    monkeypatch.setattr(archiving, "emit", lambda name, **fields: told.append((name, fields.get("error"))))
    with opened(tmp_path, ArchiveBy.NOBODY):
        pass
    chain = Chain()
    with small_disk(tmp_path / "archive") as possible:
        assert possible
        with opened(tmp_path, archive_by) as one:
            one.append(chain, entries=[entry for channel in CHANNELS for entry in birth(channel)])
            one.fill(chain, GROUPS, payload_bytes=PAYLOAD_BYTES)
            until(lambda: one.log.stats()["archive_failures"] >= 3)
            one.fill(chain, 10, payload_bytes=PAYLOAD_BYTES)
            check(one, chain)
            assert one.log.archived_group < one.log.last_group
        names = {(name, error.name) for name, error in told}
        assert names == {("archiving_delayed", "STORAGE_FULL")}
        with opened(tmp_path, archive_by) as one:
            until(lambda: one.log.stats()["archive_failures"] >= 1)
            assert mount(tmp_path / "archive", "remount,size=64m")
            one.log.rotate()
            until(lambda: one.log.archived_group == chain.last)
            check(one, chain)
        assert judge(tmp_path, lambda done, total: None).faults == []


@pytest.mark.skipif(not may_mount(), reason="needs a small disk of its own")
@pytest.mark.parametrize("archive_by", [ArchiveBy.THREAD, ArchiveBy.PROCESS])
def test_a_disk_with_little_room_is_archived_piece_by_piece(archive_by: ArchiveBy, tmp_path: Path) -> None:
    """What waits is more than there is room for: each slice is as wide as fits, and its segments make room again."""
    chain = Chain()
    with small_disk(tmp_path) as possible:
        assert possible
        assert mount(tmp_path, f"remount,size={16 * SMALL_BYTES}")
        with opened(tmp_path, ArchiveBy.NOBODY) as one:
            one.append(chain, entries=[entry for channel in CHANNELS for entry in birth(channel)])
            one.fill(chain, 4 * GROUPS, payload_bytes=PAYLOAD_BYTES)
            one.log.rotate()
        used = sum(file.stat().st_size for file in tmp_path.rglob("*.seg"))
        assert mount(tmp_path, f"remount,size={used + 2 * SMALL_BYTES}")
        with opened(tmp_path, archive_by) as one:
            one.log.rotate()
            until(lambda: one.log.archived_group == chain.last)
            check(one, chain)
        assert judge(tmp_path, lambda done, total: None).faults == []


@contextmanager
def opened(path: Path, archive_by: ArchiveBy) -> Iterator[Opened]:
    """Open a log whose archiver waits for nothing."""
    log = Log.open(path, segment_bytes=256 * KIB, reserve_bytes=0, group_bytes_max=64 * KIB, archive_by=archive_by)
    try:
        one = Opened(log)
        if log._archiving is not None:
            log._archiving._segments_min, log._archiving._wait_s = 1, 0.0
        yield one
    finally:
        log.close()


def birth(channel: int) -> list[Entry]:
    """Return the entries with which a channel begins."""
    return [channel_entry(channel, f"c.{channel}"), epoch_entry(channel, EPOCH, 1)]


def check(one: Opened, chain: Chain) -> None:
    """Compare every channel with what was appended."""
    for channel in CHANNELS:
        whole = records_of([chunk for _, _, chunk in chain.channel(channel)])
        chunks: list[bytes] = []
        while found := one.log.read_channel(channel, last_sequence([(0, 0, chunk) for chunk in chunks]), 100 * KIB):
            chunks += [chunk for _, _, chunk in found]
        assert records_of(chunks) == whole


def records_of(chunks: list[bytes]) -> dict[int, bytes]:
    """Return the payloads by their sequences; one that comes again must be the same."""
    found: dict[int, bytes] = {}
    for chunk in chunks:
        sequence, at = int.from_bytes(chunk[24:32], "little"), 56
        while at < len(chunk):
            size = int.from_bytes(chunk[at : at + 4], "little")
            assert found.setdefault(sequence, chunk[at + 12 : at + size]) == chunk[at + 12 : at + size]
            sequence, at = sequence + 1, at + size
    return found


# -- a held reader -----------------------------------------------------------------------------------------------------


def test_a_held_reader_keeps_its_view_and_costs_what_is_written_meanwhile(tmp_path: Path) -> None:
    """The file grows by no more than the commits of the time that it is held; what is freed then is used again."""
    chain = Chain()
    path = archive_path(tmp_path)
    with opened(tmp_path, ArchiveBy.THREAD) as one:
        one.append(chain, entries=[entry for channel in CHANNELS for entry in birth(channel)])
        rounds(one, chain, 3)
        archive = one.log._archive
        assert archive is not None
        with archive.snapshot() as snapshot:
            before, size, written = read(snapshot), path.stat().st_size, one.log.stats()["archive_written_bytes"]
            rounds(one, chain, ROUNDS)
            assert read(snapshot) == before
            grown = path.stat().st_size - size
            assert grown <= one.log.stats()["archive_written_bytes"] - written + MARGIN_BYTES
            with archive.snapshot() as newer:
                assert len(read(newer)) > len(before)
        check(one, chain)
        size = path.stat().st_size
        live = sum(len(chunk) for _, _, chunk in chain.bus())
        rounds(one, chain, ROUNDS)
        added = sum(len(chunk) for _, _, chunk in chain.bus()) - live
        assert path.stat().st_size - size <= 2 * added
        check(one, chain)
        del snapshot, newer
    assert judge(tmp_path, lambda done, total: None).faults == []


def rounds(one: Opened, chain: Chain, count: int) -> None:
    """Append a little to every channel and have it archived, again and again: that rewrites every last chunk."""
    for _ in range(count):
        one.fill(chain, 4, payload_bytes=100)
        one.log.rotate()
        until(lambda: one.log.archived_group == chain.last)


def read(snapshot: Snapshot) -> list[bytes]:
    """Return everything that a snapshot has of the channels."""
    return [chunk for channel in CHANNELS for chunk in snapshot.chunks(channel, 0, 1 << 30)]


# -- a killed child ----------------------------------------------------------------------------------------------------


async def test_a_killed_child_of_a_server_is_started_again(tmp_path: Path) -> None:
    """The server goes on, what the child had begun is repeated, and everything is archived and readable."""
    server = Server(tmp_path, program="tests.fault.early")
    await server.start()
    try:
        sent: list[bytes] = []
        killed: set[int] = set()
        async with connect(server.url) as bus:
            async with asyncio.timeout(WAIT_S):
                while len(killed) < KILLS:
                    await publish(bus, sent)
                    for child in children(server):
                        if child not in killed:
                            os.kill(child, signal.SIGKILL)
                            killed.add(child)
                            break
                group = (await bus.stats())["groups"]
                await publish(bus, sent)
                while (await bus.stats())["archived_group"] < group:  # noqa: ASYNC110  (a process sets no event)
                    await asyncio.sleep(0.02)
            assert (await bus.stats())["archive_failures"] >= 1
            assert [message.payload for message in await bus.history("some.stored").messages()] == sent
        assert await server.stop() == 0
        assert "archiving_delayed" in server.said()
    finally:
        server.kill()
    assert judge(server.data, lambda done, total: None).faults == []


async def publish(bus: Bus, sent: list[bytes]) -> None:
    """Publish more than a segment takes, and then the group that leaves the full segment."""
    for count in (20, 1):
        payloads = [b"%d " % (len(sent) + number) + bytes(PUBLISHED_BYTES) for number in range(count)]
        sent += payloads
        for payload in payloads:
            bus.post("some.stored", payload)
        await bus.flush()


def children(server: Server) -> list[int]:
    """Return the archivers that a server has now."""
    assert server.process is not None
    found = psutil.Process(server.process.pid).children()
    return [child.pid for child in found if "broker.log.archiver" in " ".join(child.cmdline())]


# -- a damaged segment -------------------------------------------------------------------------------------------------


async def test_a_damaged_segment_is_mended_and_the_archive_goes_on(tmp_path: Path) -> None:
    """The server says what is damaged and serves on; `broker verify --quarantine` lets its archiver go on."""
    server = Server(tmp_path, config="[storage]\nreserve_bytes = 0\n")
    chain = Chain()
    with closing(Log.open(server.data, segment_bytes=16 * KIB, archive_by=ArchiveBy.NOBODY, reserve_bytes=0)) as log:
        one = Opened(log)
        one.append(chain, entries=[entry for channel in CHANNELS for entry in birth(channel)])
        one.fill(chain, 100, payload_bytes=500)
    damaged = segment_files(server.data)[2]
    lost = groups_in(damaged)[1]
    change_row(damaged, group_key(lost), flip_at(1000))

    try:
        await server.start()
        until(lambda: "archiving_blocked" in server.said())
        assert damaged.name in server.said()
        async with connect(server.url) as bus:
            assert (await bus.stats())["archive_blocked"] == 1
            with pytest.raises(BrokerError, match=f"STORAGE_CORRUPT.*{damaged.name}"):
                await bus.compact()
            await bus.publish("goes.on", b"x")
        assert await server.stop() == 0

        assert verify(server.data, "--quarantine").returncode == 1, "something is lost, and nobody said that it may be"
        assert verify(server.data, "--quarantine", "--yes").returncode == 0
        assert damaged.name in {file.name for file in (server.data / "quarantine").rglob("*.seg")}

        await server.start()
        async with connect(server.url) as bus:
            await bus.compact()
            stats = await bus.stats()
            assert (stats["archive_blocked"], stats["archive_backlog"], stats["archived_group"] > chain.last) == (
                0,
                0,
                True,
            )
        assert await server.stop() == 0
        assert verify(server.data).returncode == 0
    finally:
        server.kill()


def groups_in(segment: Path) -> list[int]:
    """Return the numbers of a segment's groups."""
    with open_pages(segment, lambda offset, what: None) as pages:
        return [number for row in pages.rows() if (number := group_number(row.key)) is not None]


def verify(data: Path, *options: str) -> subprocess.CompletedProcess[bytes]:
    """Run `broker verify` on a data directory that nobody serves."""
    command = [sys.executable, "-m", "broker", "verify", str(data), *options]
    return subprocess.run(command, capture_output=True, check=False, env={**os.environ, "PYTHONPATH": PYTHONPATH})
