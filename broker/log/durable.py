"""Files and names that survive a loss of power.

A file is written aside, synced, renamed, and then its folder is synced: at no instant does its name lead to half of
it. Nothing here knows what the files hold.
"""

from __future__ import annotations

import fcntl
import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

FILE_MODE = 0o600
FOLDER_MODE = 0o700
ASIDE_SUFFIX = ".new"

# macOS: fsync leaves the bytes in the drive's cache, only this reaches the platter.
_FULL_SYNC: int | None = getattr(fcntl, "F_FULLFSYNC", None)


def sync_descriptor(descriptor: int) -> None:
    """Bring everything written to an open file or folder to the disk.

    Raises:
        OSError: the disk refused; what was written since the last success may be lost.
    """
    if _FULL_SYNC is None:
        os.fsync(descriptor)
    else:
        fcntl.fcntl(descriptor, _FULL_SYNC)


def sync_path(path: Path) -> None:
    """Bring a file's bytes, or a folder's names, to the disk; see `sync_descriptor`."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        sync_descriptor(descriptor)
    finally:
        os.close(descriptor)


def make_folder(path: Path) -> None:
    """Create a folder that only its owner can enter, and make its name durable; its parent exists."""
    path.mkdir(mode=FOLDER_MODE)
    sync_path(path.parent)


def write_file(path: Path, content: bytes) -> None:
    """Create or replace a small file, whole or not at all.

    Raises:
        OSError: it could not be written; the name still leads to what it led to before.
    """
    aside = path.with_name(path.name + ASIDE_SUFFIX)
    descriptor = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, FILE_MODE)
    try:
        view = memoryview(content)
        while view:
            view = view[os.write(descriptor, view) :]
        sync_descriptor(descriptor)
    finally:
        os.close(descriptor)
    adopt_file(aside, path)


def adopt_file(aside: Path, path: Path) -> None:
    """Give a synced file its durable name."""
    aside.rename(path)
    sync_path(path.parent)


def remove_file(path: Path) -> None:
    """Remove a name if it is there; it may come back after a loss of power unless the folder is synced."""
    path.unlink(missing_ok=True)
