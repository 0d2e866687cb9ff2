"""A disk that fills up and has room again, twenty times, under a server that goes on through all of it.

The disks are of 16 MiB: a tmpfs, and an ext4 in a file behind a loop device. Each time another program takes all the
room but a little, a client publishes until it is told STORAGE_FULL, others read what is stored and talk on an
ephemeral channel as before, the room comes back, and publishing has to work again by itself. At last the server is
killed, and all that was ever acknowledged is read back.

`python -m tests.fault.full` prints the figures of both disks. It needs the right to mount; a disk that cannot be had is
said so, and the status is then 2.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import shutil
import subprocess
import sys
import tempfile
import time
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from broker import BrokerError, CommitUnknown, Level, StorageFull, connect
from tests.fault.harness import BACKOFF, Server

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from broker.bus import Bus

MIB = 1024 * 1024
DISK_BYTES = 16 * MIB
CYCLES = 20
ROOM_BYTES = 256 * 1024
"""What is left to the server before it finds the disk full."""
UNUSABLE_BYTES = {"tmpfs": 0, "ext4": DISK_BYTES // 50 + 32 * 1024}
"""What a file system calls free and does not give out: ext4 keeps 2 % to itself."""
PAYLOAD_BYTES = 16_000
ANSWERED_S = 0.3
"""What is not answered by then waits for room."""
RESUMED_S_MAX = 2.0
NO_RESERVE = ("--set", "storage.reserve_bytes=0")
"""So that the disk itself says no."""


@contextmanager
def mounted_tmpfs(path: Path) -> Iterator[bool]:
    """Mount a small tmpfs; tell whether that was possible."""
    path.mkdir()
    options = f"size={DISK_BYTES},mode=700"
    with _mounted(path, ["-t", "tmpfs", "-o", options, "tmpfs"]) as possible:
        yield possible


@contextmanager
def mounted_ext4(path: Path) -> Iterator[bool]:
    """Mount a small ext4 that is made in a file beside `path`; tell whether that was possible."""
    path.mkdir()
    image = path.with_name(path.name + ".image")
    with image.open("wb") as file:
        file.truncate(DISK_BYTES)
    if not _succeeds("mkfs.ext4", "-q", "-F", "-m", "0", str(image)):
        yield False
        return
    with _mounted(path, ["-t", "ext4", "-o", "loop", str(image)]) as possible:
        yield possible


DISKS: dict[str, Callable[[Path], AbstractContextManager[bool]]] = {"tmpfs": mounted_tmpfs, "ext4": mounted_ext4}


@contextmanager
def _mounted(path: Path, arguments: list[str]) -> Iterator[bool]:
    possible = _succeeds("mount", *arguments, str(path))
    try:
        yield possible
    finally:
        if possible:
            subprocess.run(["umount", "-l", str(path)], check=True)


def _succeeds(program: str, *arguments: str) -> bool:
    """Run a program of the system's administrator, and tell whether it is there and succeeds."""
    found = shutil.which(program) or shutil.which(program, path="/usr/sbin:/sbin")
    return found is not None and subprocess.run([found, *arguments], capture_output=True, check=False).returncode == 0


def may_have(disk: str) -> bool:
    """Tell whether such a disk can be had here."""
    with tempfile.TemporaryDirectory() as folder, DISKS[disk](Path(folder) / "disk") as possible:
        return possible


@dataclass(frozen=True, slots=True)
class Figures:
    """What the cycles came to.

    Attributes:
        disk: the kind of disk.
        cycles: how often it was full and had room again.
        deaths: how often the server ended by itself.
        acknowledged, lost: messages; of the former, those that are not there after a kill.
        resumed_s: the longest time until publishing worked again after there was room.
    """

    disk: str
    cycles: int
    deaths: int
    acknowledged: int
    lost: int
    resumed_s: float

    def __str__(self) -> str:
        return (
            f"{self.disk:6} full and free {self.cycles} times: {self.deaths} deaths, {self.lost} of "
            f"{self.acknowledged} acknowledged messages lost, publishing again after {self.resumed_s * 1e3:.0f} ms "
            "at most"
        )


def take_room(path: Path, room_bytes: int) -> Path:
    """Leave little room on a disk; returns what takes it."""
    ballast = path / "ballast"
    status = os.statvfs(path)
    with ballast.open("wb") as file, suppress(OSError):
        os.posix_fallocate(file.fileno(), 0, max(status.f_bfree * status.f_frsize - room_bytes, 1))
    return ballast


async def publish(bus: Bus, kept: list[bytes]) -> bool:
    """Publish one message, keep it if it is acknowledged, and tell whether it was."""
    payload = len(kept).to_bytes(4, "big") + bytes(PAYLOAD_BYTES)
    try:
        await bus.publish("full.stored", payload)
    except (StorageFull, CommitUnknown):
        return False
    kept.append(payload)
    return True


async def publish_until_full(bus: Bus, kept: list[bytes]) -> asyncio.Task[bool]:
    """Publish until the disk is full, and keep what is acknowledged; the archiver may make room meanwhile.

    Returns:
        The publish of the last message: one whose commit failed in the midst of it has no outcome before there is room.
    """
    for _ in range(DISK_BYTES // 2 // PAYLOAD_BYTES):
        publishing = asyncio.create_task(publish(bus, kept))
        await asyncio.wait([publishing], timeout=ANSWERED_S)
        if not publishing.done() or not publishing.result():
            return publishing
    raise AssertionError("the disk did not fill up")


async def publish_until_it_works(bus: Bus, kept: list[bytes]) -> None:
    """Publish one message, however often it takes."""
    payload = len(kept).to_bytes(4, "big") + b"room again"
    while True:
        try:
            await bus.publish("full.stored", payload)
        except BrokerError as failure:
            if not failure.temporary:
                raise
            await asyncio.sleep(0.01)
        else:
            kept.append(payload)
            return


async def talk(bus: Bus) -> None:
    """Send an ephemeral message and get it back."""
    async with bus.subscribe("ephemeral.typing") as subscription:
        receipt = await bus.publish("ephemeral.typing", b"...")
        assert receipt.level is Level.EPHEMERAL
        async for message in subscription:
            assert bytes(message.payload) == b"..."
            return


async def read_stored(bus: Bus) -> set[bytes]:
    """Return what is stored."""
    info = await bus.channel("full.stored")
    found: set[bytes] = set()
    async with bus.subscribe("full.stored", start="start") as subscription:
        async for batch in subscription.batches():
            found.update(bytes(payload) for payload in batch.payloads())
            if batch.last >= info.head:
                return found
    return found


async def run(folder: Path, disk: str, path: Path, cycles: int) -> Figures:
    """Fill and free a mounted disk under a server."""
    server = Server(folder, data=path / "data")
    await server.start(*NO_RESERVE)
    kept: list[bytes] = []
    resumed_s, deaths = 0.0, 0
    try:
        url = server.url
        async with connect(url, backoff=BACKOFF) as writer, connect(url) as other, connect(url) as third:
            await publish_until_it_works(writer, kept)
            for _ in range(cycles):
                ballast = await asyncio.to_thread(take_room, path, ROOM_BYTES + UNUSABLE_BYTES[disk])
                last = await publish_until_full(writer, kept)
                await talk(other)
                assert set(kept) <= await read_stored(other)
                ballast.unlink()
                began_s = time.monotonic()
                await publish_until_it_works(third, kept)
                resumed_s = max(resumed_s, time.monotonic() - began_s)
                await last
                assert server.process is not None
                deaths += server.process.poll() is not None
        server.kill()
        await server.start(*NO_RESERVE)
        async with connect(server.url) as bus:
            lost = len(set(kept) - await read_stored(bus))
    finally:
        server.kill()
    return Figures(disk, cycles, deaths, len(kept), lost, resumed_s)


def main() -> int:
    """Run as the module's docstring says."""
    parser = argparse.ArgumentParser(description="Fill a disk and free it, again and again.")
    parser.add_argument("--cycles", type=int, default=CYCLES)
    cycles = parser.parse_args().cycles
    status = 0
    for disk, mounted in DISKS.items():
        with tempfile.TemporaryDirectory() as folder, mounted(Path(folder) / "disk") as possible:
            if not possible:
                print(f"{disk}: cannot be mounted here", file=sys.stderr)
                status = 2
                continue
            figures = asyncio.run(run(Path(folder), disk, Path(folder) / "disk", cycles))
            print(figures, flush=True)
            if figures.deaths or figures.lost or figures.resumed_s > RESUMED_S_MAX:
                status = 1
    return status


if __name__ == "__main__":
    sys.exit(main())
