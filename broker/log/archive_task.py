"""What the archive's writer and its owner say to each other, whichever process each of them is in, and where it is.

Apart from `archiver`, which a child process runs as its program: no module that the package imports may load that one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from broker.log import durable

if TYPE_CHECKING:
    from pathlib import Path

ARCHIVE_FOLDER = "archive"
ARCHIVE_NAME = "archive.mdb"
TIME_MAX_US = (1 << 63) - 1
"""No time at all, where one bounds another."""


class Stopped(Exception):
    """The owner has asked for an end between two transactions."""


@dataclass(frozen=True, slots=True)
class CompactResult:
    """What a rebuild came to: the file's bytes before and after it."""

    bytes_before: int
    bytes_after: int


def archive_path(data: Path) -> Path:
    """Return where a data directory keeps its archive."""
    return data / ARCHIVE_FOLDER / ARCHIVE_NAME


def aside_path(path: Path) -> Path:
    """Return the name that a rebuilt archive has until it is whole."""
    return path.with_name(path.name + durable.ASIDE_SUFFIX)
