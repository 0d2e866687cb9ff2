"""Care of a data directory that nobody serves: what the command line asks for, under the directory's lock."""

from __future__ import annotations

from typing import TYPE_CHECKING

from broker.log.directory import hold
from broker.log.verify import Report, verify

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


def judge(path: Path, progress: Callable[[int, int], None]) -> Report:
    """Judge a data directory or a backup; see `verify`.

    Args:
        path: the directory.
        progress: called with (bytes looked at, bytes in all).

    Raises:
        StorageError: STORAGE_IN_USE, STORAGE_FORMAT, STORAGE_FAILED.
    """
    with hold(path):
        return verify(path, progress)
