"""What the archive's writer and its owner say to each other, whichever process each of them is in.

Apart from `archiver`, which a child process runs as its program: no module that the package imports may load that one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

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
    return data / "archive" / ARCHIVE_NAME
