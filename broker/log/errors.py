"""What goes wrong with storage, in the words of the broker's registry.

LMDB and the operating system name a cause as they see it: a full disk shows first as EIO on tmpfs and ext4, a failed
meta page as PANIC. So `append_error` asks the file system itself before it decides between "full" and "failed".
"""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING

import lmdb

from broker.model.errors import BY_NAME, StorageCorrupt, StorageError, StorageFull, error

if TYPE_CHECKING:
    from pathlib import Path

    from broker.model.errors import BrokerError
    from broker_native.index import GroupDamaged

_FULL_ERRNOS = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
FULL_BYTES = 64 * 1024
"""With less free than this, a write that came to nothing is taken for one that found no room."""
FULL_HINT = "Free space on the file system of the data directory; publishing recovers by itself."


class AppendError(StorageError):
    """A group could not be appended.

    Attributes:
        handed_over: whether the group had been given to the disk, so that it may be stored nevertheless. If so, the
            journal takes nothing until `abandon` has succeeded.
    """

    handed_over: bool = False


class AppendFull(StorageFull, AppendError):
    """A group could not be appended because there is no room."""


def append_full(detail: str, hint: str = FULL_HINT, *, handed_over: bool = False) -> AppendFull:
    """Return the error for a group that found no room."""
    full = AppendFull(BY_NAME["STORAGE_FULL"].code, detail, hint)
    full.handed_over = handed_over
    return full


def append_error(cause: BaseException, path: Path, need_bytes: int, *, handed_over: bool) -> AppendError:
    """Return what a failed write means, full or failed, by asking the file system.

    Args:
        cause: what LMDB or the operating system raised.
        path: the file that was written to.
        need_bytes: how much the write needed.
        handed_over: as in `AppendError`.

    Returns:
        An `AppendFull` when the cause or the free space says so, else an `AppendError` of code STORAGE_FAILED.
    """
    if is_full(cause) or free_bytes(path.parent) < need_bytes:
        return append_full(f"{path}: no room for {need_bytes} bytes: {cause}", handed_over=handed_over)
    failed = AppendError(BY_NAME["STORAGE_FAILED"].code, f"{path}: {cause}")
    failed.handed_over = handed_over
    return failed


def is_full(cause: BaseException) -> bool:
    """Tell whether an error names a full disk by itself."""
    if isinstance(cause, lmdb.MapFullError | lmdb.DiskError):
        return True
    if isinstance(cause, lmdb.Error):
        # The code is there on what the engine raised, from lmdb 2.0 on.
        return getattr(cause, "code", 0) in _FULL_ERRNOS
    return isinstance(cause, OSError) and cause.errno in _FULL_ERRNOS


def _is_short(cause: BaseException) -> bool:
    """Tell whether an error may mean a write that was cut short, which is how LMDB meets a full disk first."""
    return isinstance(cause, lmdb.Error) and getattr(cause, "code", 0) == errno.EIO


def free_bytes(folder: Path) -> int:
    """Return the bytes that this process may still write below a folder, 0 when the file system does not answer."""
    try:
        status = os.statvfs(folder)
    except OSError:
        return 0
    return status.f_bavail * status.f_frsize


def failed(path: Path, cause: Exception) -> BrokerError:
    """Return the error for a file that the system refuses to read or write."""
    if is_full(cause) or (_is_short(cause) and free_bytes(path.parent) < FULL_BYTES):
        return append_full(f"{path}: {cause}")
    return error("STORAGE_FAILED", f"{path}: {cause}")


def corrupt(path: Path, what: str) -> StorageCorrupt:
    """Return the error for a file whose bytes are not what was written."""
    return StorageCorrupt(BY_NAME["STORAGE_CORRUPT"].code, f"{path}: {what}")


def damaged(path: Path, group: int, damage: GroupDamaged) -> BrokerError:
    """Return the error for damage inside a stored group, naming file, group, channel and offset.

    Args:
        path: the segment's file.
        group: the group's number, as its key says.
        damage: what the native walk found.
    """
    where = f"group {group}, offset {damage.offset}"
    if damage.channel:
        where += f", channel {damage.channel}"
    if damage.reason in ("format", "unknown entry"):
        hint = "Run the version of the broker that wrote this directory, or a newer one."
        return error("STORAGE_FORMAT", f"{path}: {damage.reason} that this version does not know: {where}", hint)
    return corrupt(path, f"{damage.reason} is wrong: {where}")
