"""A full disk, a failing disk and a damaged one: clear errors, nothing acknowledged lost, and it goes on by itself.

The full disk is a small tmpfs where the test may mount one; elsewhere a limit on the size of files, which makes the
same writes fail in the same places, takes its part.
"""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
from contextlib import contextmanager
from typing import TYPE_CHECKING, Protocol

import pytest

from broker.log import AppendError, AppendFull, space
from broker.model.errors import StorageFull
from tests.fault.flips import run
from tests.reference.chains import Chain
from tests.unit.log.support import KIB, Opened, opened

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

MIB = 1024 * KIB
DISK_BYTES = 16 * MIB


class SmallDisk(Protocol):
    """A place for data that can be made full, and have room again."""

    path: Path

    def fill(self) -> None:
        """Leave no room."""

    def free(self) -> None:
        """Make room again."""


class MountedDisk:
    """A tmpfs of its own, filled by a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def fill(self) -> None:
        """Write until nothing more fits, down to the last page."""
        with (self.path / "ballast").open("ab", buffering=0) as file:
            for size in (MIB, 4 * KIB):
                try:
                    while True:
                        file.write(bytes(size))
                except OSError:
                    continue

    def free(self) -> None:
        """Remove the file."""
        (self.path / "ballast").unlink()


class LimitedFiles:
    """A limit on the size of files: writes past it fail as on a full disk (EFBIG, which LMDB reports as EIO)."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._limits = resource.getrlimit(resource.RLIMIT_FSIZE)

    def fill(self) -> None:
        """Let no segment grow, and none be created."""
        resource.setrlimit(resource.RLIMIT_FSIZE, (4 * KIB, self._limits[1]))

    def free(self) -> None:
        """Lift the limit."""
        resource.setrlimit(resource.RLIMIT_FSIZE, self._limits)


@contextmanager
def mounted(path: Path) -> Iterator[bool]:
    """Mount a small tmpfs; tell whether that was possible."""
    path.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES},mode=700", "tmpfs", str(path)]
    mount = shutil.which("mount")
    possible = mount is not None and subprocess.run(command, capture_output=True, check=False).returncode == 0
    try:
        yield possible
    finally:
        if possible:
            subprocess.run(["umount", "-l", str(path)], check=True)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[SmallDisk]:
    """The smallest disk that can be had here."""
    with mounted(tmp_path / "disk") as possible:
        small: SmallDisk = MountedDisk(tmp_path / "disk") if possible else LimitedFiles(tmp_path / "disk")
        try:
            yield small
        finally:
            if isinstance(small, LimitedFiles):
                small.free()


def check(one: Opened, chain: Chain) -> None:
    assert one.all_groups() == chain.bus()
    for channel in (1, 4):
        assert one.all_of_channel(channel) == chain.channel(channel)


def append_until_full(one: Opened, chain: Chain, groups_max: int) -> AppendError:
    """Append until it fails; the failed group does not count."""
    for _ in range(groups_max):
        value = chain.build([(1, [bytes(3_000)]), (4, [b"x"])])
        try:
            one.log.append(chain.number, value)
        except AppendError as failure:
            if not failure.handed_over:
                chain.number -= 1
            return failure
        chain.commit(value)
    raise AssertionError("the disk did not fill up")


def test_the_reserve_is_refused_before_anything_is_written(disk: SmallDisk) -> None:
    """Twenty times full and free again: each time it stops in time and goes on at once, without a restart."""
    chain = Chain()
    path = disk.path / "data"
    with opened(path, reserve_bytes=4 * MIB) as one:
        for _ in range(20):
            one.fill(chain, 3)
            free = os.statvfs(disk.path).f_bavail * os.statvfs(disk.path).f_frsize
            ballast = disk.path / "ballast"
            ballast.touch()
            if isinstance(disk, MountedDisk):
                with ballast.open("wb") as file:
                    os.posix_fallocate(file.fileno(), 0, free - 4 * MIB - 40 * KIB)
                one.log._space._credit_bytes = 0  # ask now, not in a quarter of a second
            else:
                one.log._space._reserve_bytes = free
                one.log._space._credit_bytes = 0
            failure = append_until_full(one, chain, 50)
            assert isinstance(failure, AppendFull)
            assert isinstance(failure, StorageFull)
            assert not failure.handed_over
            check(one, chain)
            ballast.unlink()
            one.log._space._reserve_bytes = 4 * MIB
            one.fill(chain, 3)
        assert one.log.wait_sealed(10)
        check(one, chain)
    with opened(path) as one:
        check(one, chain)


def test_a_disk_that_fills_up_inside_a_commit(disk: SmallDisk, monkeypatch: pytest.MonkeyPatch) -> None:
    """As when another program takes the last bytes between the question and the write."""
    monkeypatch.setattr(space.Space, "take", lambda self, size: None)
    chain = Chain()
    path = disk.path / "data"
    with opened(path) as one:
        for cycle in range(6):
            one.fill(chain, 5 + cycle)
            disk.fill()
            failure = append_until_full(one, chain, 20)
            assert failure.handed_over
            if isinstance(disk, MountedDisk):
                assert isinstance(failure, AppendFull)
            check(one, chain)
            with_room = cycle % 2 == 0  # the segment that was made ready needs none; the one after it does
            if not with_room and one.log._sealer._ready is None:
                with pytest.raises(AppendError):
                    one.log.abandon()
            disk.free()
            one.log.abandon()
            one.append(chain, [(1, [b"fence"])])
            check(one, chain)
        assert one.log.wait_sealed(30)
        check(one, chain)
    with opened(path) as one:
        assert one.recovery.group == chain.last
        assert one.tables == chain.tables()
        check(one, chain)


def test_a_full_disk_during_a_seal(disk: SmallDisk, caplog: pytest.LogCaptureFixture) -> None:
    chain = Chain()
    path = disk.path / "data"
    with opened(path) as one:
        one.fill(chain, 35)
        disk.fill()
        assert one.log._journal is not None
        taken = one.log._journal.segments[-1]
        one.log._journal._segment_bytes = 1
        one.log._journal._active()  # goes on to the segment that is ready, and leaves a full one to be sealed
        assert not one.log.wait_sealed(0.3)
        assert not taken.sealed
        check(one, chain)
        disk.free()
        assert one.log.wait_sealed(10)
        check(one, chain)
    assert "segment_seal_delayed segment=" in caplog.text
    with opened(path) as one:
        check(one, chain)


def test_a_full_disk_at_start(disk: SmallDisk) -> None:
    """What is stored can be read; a directory that cannot be created says why."""
    chain = Chain()
    with opened(disk.path / "data") as one:
        one.fill(chain, 60)
        assert one.log.wait_sealed(10)
    disk.fill()
    with opened(disk.path / "data") as one:
        check(one, chain)
    with pytest.raises(StorageFull), opened(disk.path / "other"):
        pass
    disk.free()
    with opened(disk.path / "data") as one:
        one.fill(chain, 60)
        check(one, chain)


FLIPS = 250


def test_flipped_bits_anywhere() -> None:
    """One bit anywhere in a segment's file: an error that says where, or all as it was; no other bytes, no crash."""
    verdict = run(FLIPS)
    print(verdict)
    assert verdict.wrong == []
    assert verdict.died == []
    assert verdict.flips == FLIPS
    assert verdict.named > FLIPS // 3
    assert verdict.same > 0
