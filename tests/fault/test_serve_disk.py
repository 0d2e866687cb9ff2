"""A server whose disk fills up or whose files are damaged: a clear error, others untouched, nothing lost."""

from __future__ import annotations

import asyncio
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import pytest

from broker import Level, StorageFull, connect
from broker.cli import ExitCode
from tests.fault.full import ANSWERED_S, publish
from tests.fault.harness import Server
from tests.fault.test_disk import MountedDisk, mounted

if TYPE_CHECKING:
    from collections.abc import Iterator

    from broker import Bus

RECOVERED_S_MAX = 2.0
ENDED_S_MAX = 15.0
BALLAST_BYTES = 6 * 1024 * 1024
# A reserve of nothing, so that the disk itself says no.
NO_RESERVE = ("--set", "storage.reserve_bytes=0")


def may_mount() -> bool:
    """Whether this user may mount a small disk here."""
    with TemporaryDirectory() as folder, mounted(Path(folder) / "disk") as possible:
        return possible


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[MountedDisk]:
    """A disk of 16 MiB."""
    with mounted(tmp_path / "disk") as possible:
        assert possible
        yield MountedDisk(tmp_path / "disk")


async def publish_until_full(bus: Bus) -> tuple[list[bytes], asyncio.Task[bool]]:
    """Publish until it is refused.

    Returns:
        What was acknowledged, and the publish of the last message: one whose commit failed in the midst of it, since
        something else took the last room, has no outcome before there is room.
    """
    kept: list[bytes] = []
    for _ in range(2_000):
        publishing = asyncio.create_task(publish(bus, kept))
        await asyncio.wait([publishing], timeout=ANSWERED_S)
        if not publishing.done() or not publishing.result():
            return kept, publishing
    raise AssertionError("the disk did not fill up")


async def publish_until_it_works(bus: Bus) -> None:
    while True:
        try:
            await bus.publish("full.stored", b"room again")
        except StorageFull:
            await asyncio.sleep(0.02)
        else:
            return


@pytest.mark.skipif(not may_mount(), reason="needs a small disk of its own; tests/fault/test_disk.py does without")
async def test_a_full_disk_stops_publishing_only_while_it_is_full(tmp_path: Path, small_disk: MountedDisk) -> None:
    """Readers and ephemeral channels go on, publishing comes back by itself, and all that was acknowledged is there."""
    folder = tmp_path / "server"
    folder.mkdir()
    ballast = small_disk.path / "ballast"
    ballast.write_bytes(bytes(BALLAST_BYTES))
    server = Server(folder, data=small_disk.path / "data")
    await server.start(*NO_RESERVE)
    try:
        async with connect(server.url) as writer, connect(server.url) as other:
            kept, last = await publish_until_full(writer)
            assert len(kept) > 100
            await assert_others_go_on(other, kept)
            ballast.unlink()
            async with asyncio.timeout(RECOVERED_S_MAX):
                await publish_until_it_works(writer)
                await last
        server.kill()
        await server.start(*NO_RESERVE)
        async with connect(server.url) as bus:
            assert await read_stored(bus, len(kept)) == kept
    finally:
        server.kill()


async def assert_others_go_on(other: Bus, kept: list[bytes]) -> None:
    """Another connection reads what is stored and uses ephemeral channels as if nothing were wrong."""
    assert await read_stored(other, len(kept)) == kept
    async with other.subscribe("ephemeral.typing") as subscription:
        receipt = await other.publish("ephemeral.typing", b"...")
        assert receipt.level is Level.EPHEMERAL
        async for message in subscription:
            assert bytes(message.payload) == b"..."
            break


async def read_stored(bus: Bus, count: int) -> list[bytes]:
    found: list[bytes] = []
    async with bus.subscribe("full.stored", start="start") as subscription:
        async for message in subscription:
            found.append(bytes(message.payload))
            if len(found) == count:
                break
    return found


@pytest.mark.parametrize("damage", ["cut", "flipped", "foreign", "newer"])
async def test_a_directory_that_cannot_be_served_is_said_so(tmp_path: Path, damage: str) -> None:
    """The status is that of storage, and the line names what is wrong."""
    folder = tmp_path / "server"
    folder.mkdir()
    server = Server(folder)
    await server.start()
    async with connect(server.url) as bus:
        await bus.publish("some.channel", b"x" * 5_000)
    server.kill()
    DAMAGE[damage](server.data)
    process = server.spawn()
    try:
        status = await asyncio.to_thread(process.wait, ENDED_S_MAX)
    finally:
        server.kill()
    assert status == ExitCode.STORAGE, server.said()
    assert ("STORAGE_CORRUPT" if damage in ("cut", "flipped") else "STORAGE_FORMAT") in server.said()


def largest_segment(data: Path) -> Path:
    return max((data / "journal").glob("*.seg"), key=lambda path: path.stat().st_size)


def cut(data: Path) -> None:
    segment = largest_segment(data)
    with segment.open("r+b") as file:
        file.truncate(segment.stat().st_size - 4096)


def flip(data: Path) -> None:
    segment = largest_segment(data)
    content = bytearray(segment.read_bytes())
    content[content.index(b"x" * 64)] ^= 1
    segment.write_bytes(content)


def make_foreign(data: Path) -> None:
    path = data / "format"
    path.write_text("something else\n")


def make_newer(data: Path) -> None:
    path = data / "format"
    path.write_text(path.read_text().replace("broker data 2", "broker data 3"))


DAMAGE = {"cut": cut, "flipped": flip, "foreign": make_foreign, "newer": make_newer}
