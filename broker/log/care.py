"""Care of a data directory that nobody serves: what the command line asks for, under the directory's lock."""

from __future__ import annotations

import time
from contextlib import closing
from typing import TYPE_CHECKING

from broker.log.backup import MANIFEST, Manifest, digest_of
from broker.log.directory import hold
from broker.log.log import ArchiveBy, Log
from broker.log.mend import mend
from broker.log.verify import Fault, Report, Verifier
from broker.model.errors import StorageCorrupt, error

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from broker.log.archiver import CompactResult

    Progress = Callable[[int, int], None]


def judge(path: Path, progress: Progress) -> Report:
    """Judge a data directory or a backup.

    Args:
        path: the directory.
        progress: called with (bytes looked at, bytes in all).

    Raises:
        StorageError: STORAGE_IN_USE, STORAGE_FORMAT, STORAGE_FAILED.
    """
    if (path / MANIFEST).exists():
        return _judge_backup(path, progress)
    with hold(path), closing(Verifier(path, progress)) as verifier:
        return verifier.run()


def _judge_backup(path: Path, progress: Progress) -> Report:
    """Judge a backup: each file against the manifest, then what the files hold."""
    with closing(Verifier(path, progress, backup=True)) as verifier:
        return _judge_files(path, verifier)


def _judge_files(path: Path, verifier: Verifier) -> Report:
    try:
        manifest = Manifest.read(path)
    except StorageCorrupt as failure:
        verifier.report.faults.append(Fault(MANIFEST, failure.detail, "the backup cannot be restored"))
        return verifier.run()
    for name, expected in sorted(manifest.files.items()):
        digest, size = digest_of(path / name) if (path / name).is_file() else ("", 0)
        if (size, digest) != expected:
            what = f"is not what was backed up: {size} bytes, expected {expected[0]}" if digest else "is missing"
            verifier.report.faults.append(Fault(name, what, "the backup cannot be restored"))
    report = verifier.run()
    if report.sound and report.last_group != manifest.group:
        what = f"ends with group {report.last_group}, the manifest says {manifest.group}"
        report.faults.append(Fault(MANIFEST, what, "groups are missing"))
    return report


def quarantine(path: Path, report: Report, progress: Progress) -> Path:
    """Make a damaged journal open again; see `mend`.

    Args:
        path: the data directory.
        report: what `judge` has found.
        progress: called with (bytes looked at, bytes in all).

    Returns:
        The folder with the journal as it was.

    Raises:
        StorageError: as `hold` and `mend`.
    """
    if (path / MANIFEST).exists():
        raise error("STORAGE_FORMAT", f"{path}: is a backup", "Take another one; a backup is not mended.")
    with hold(path):
        return mend(path, report, progress)


def compact(path: Path, progress: Progress) -> CompactResult:
    """Archive everything that is stored, and rebuild the archive without what was taken out of it.

    Args:
        path: a data directory that nobody serves.
        progress: called with (bytes done, bytes in all) now and then.

    Raises:
        StorageError: as `Log.open`, `Log.recover` and `Log.compact`.
    """
    if not (path / "format").is_file():
        raise error("STORAGE_FORMAT", f"{path}: not a broker's data directory", "Name one, or a broker's URL.")
    log = Log.open(path, archive_by=ArchiveBy.THREAD)
    try:
        log.recover()
        return log.compact(progress, time.time_ns() // 1000)
    finally:
        log.close()


def backup(path: Path, target: Path, progress: Progress) -> Manifest:
    """Take a backup of a data directory that nobody serves.

    Args:
        path: the directory.
        target: a folder that is missing or empty.
        progress: called with (bytes done, bytes in all).

    Raises:
        StorageError: as `Log.open`, `Log.recover` and `Log.backup`.
    """
    if not (path / "format").is_file():
        raise error("STORAGE_FORMAT", f"{path}: not a broker's data directory", "Name one, or a broker's URL.")
    log = Log.open(path)
    try:
        log.recover()
        return log.backup(target, progress)
    finally:
        log.close()
