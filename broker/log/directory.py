"""Whose directory it is: creation, format, identity and the lock of exclusive ownership.

    <data>/lock              flock(2) while somebody has it open; its text, for people, says who
    <data>/format            `broker data 2`, newline, `journal <32 hex digits>`, newline
    <data>/journal/          the segments
    <data>/archive/          archive.mdb, and the lock of the process that writes it
    <data>/restored          `run`, space, a number, newline; there when the data once went back to an older state

A shared directory holds the files of `broker.shared` as well, which mean nothing here.

The lock is the open file's, never a process id's: it ends with its holder however that dies. `format` is written last,
so a directory without one is either empty, or the beginning of a creation that was cut short, or not ours, and only
the last of them is refused. Nothing is written into a directory before it is known to be empty or ours.

Format 1 had no archive. Such a directory gets an empty one and then a new `format`, in this order: cut short between
the two, it is of format 1 still, and nothing has come to the archive.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
import socket
import weakref
from typing import TYPE_CHECKING

from broker.log import durable
from broker.log.archive import create_archive
from broker.log.archive_task import ARCHIVE_FOLDER, archive_path
from broker.log.errors import corrupt, failed
from broker.model.errors import error

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from broker.model.errors import BrokerError

FORMAT = 2
OLDEST_FORMAT = 1
SHARED_OWNER = "a shared server"
"""What the server of a shared directory says of itself, so that those who find it held know that it ends by itself."""
_MAGIC = "broker data "
_FORMAT_BYTES_MAX = 4096
# `lost+found` is what the root of a fresh ext4 holds; the last line is what openers of a shared directory put there.
_BEGUN = frozenset({"lock", "journal", ARCHIVE_FOLDER, "format" + durable.ASIDE_SUFFIX, "lost+found"}) | {
    "starting", "broker.sock", "broker.toml", "shared.toml", "shared.toml.new", "server.json", "server.log",
}  # fmt: skip
_NEWER_HINT = "Run the version of the broker that wrote this directory, or a newer one."
_FOREIGN_HINT = "Name an empty or a new directory; nothing in this one was touched."


class Directory:
    """A data directory that this process owns until `release`.

    Attributes:
        path: the directory.
        journal_path: the folder of the segments.
        archive_path: the archive's file.
        journal_id: the journal's identity, 16 random bytes drawn at creation.
        restored_run: what was stored in runs up to this one went back to an older state after readers had seen more,
            whatever its durability; 0 when that has never happened.
    """

    def __init__(self, path: Path, journal_id: bytes, descriptor: int) -> None:
        self.path = path
        self.restored_run = read_restored(path)
        self.journal_path = path / "journal"
        self.archive_path = archive_path(path)
        self.journal_id = journal_id
        self._descriptor: int | None = descriptor
        _held.add(self)

    @classmethod
    def acquire(cls, path: Path) -> Directory:
        """Take ownership of a directory, creating it if it is not there.

        Args:
            path: where; it may be missing, empty, or a data directory of this format.

        Raises:
            StorageError: STORAGE_IN_USE with the owner, STORAGE_FORMAT when it is not ours or newer, STORAGE_FAILED
                when the system refuses.
        """
        try:
            if not path.exists():
                path.parent.mkdir(parents=True, exist_ok=True)
                # Another opener may be creating it too; the lock decides between the two.
                with contextlib.suppress(FileExistsError):
                    durable.make_folder(path)
            check_ours(path)
            descriptor = _lock(path)
        except OSError as cause:
            raise failed(path, cause) from cause
        try:
            return cls(path, _load(path), descriptor)
        except BaseException as cause:
            os.close(descriptor)
            if isinstance(cause, OSError):
                raise failed(path, cause) from cause
            raise

    def release(self) -> None:
        """Give the directory up. Idempotent.

        The lock is let go explicitly: a child process that was forked meanwhile may still have the file open.
        """
        if self._descriptor is not None:
            fcntl.flock(self._descriptor, fcntl.LOCK_UN)
            self._forget()

    def _forget(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


_held: weakref.WeakSet[Directory] = weakref.WeakSet()


def _forget_in_child() -> None:
    """Close the inherited locks, so that a child which outlives its parent does not hold on to the directory."""
    for directory in list(_held):
        directory._forget()


os.register_at_fork(after_in_child=_forget_in_child)


def check_ours(path: Path) -> None:
    """Refuse a directory that is not empty and not ours, before anything is written into it.

    Raises:
        StorageError: STORAGE_FORMAT; it is something else's, or written by a newer version.
        OSError: it cannot be looked at.
    """
    if not path.is_dir():
        raise error("STORAGE_FORMAT", f"{path}: is not a directory", _FOREIGN_HINT)
    if (path / "format").exists():
        _read_format(path / "format")
        return
    names = {entry.name for entry in path.iterdir()}
    segments = any((path / "journal").glob("*.seg")) if "journal" in names else False
    if segments or not names <= _BEGUN:
        if (path / "format").exists():
            # Somebody has completed its creation since we looked.
            _read_format(path / "format")
            return
        strange = sorted(names - _BEGUN) or ["journal"]
        raise error("STORAGE_FORMAT", f"{path}: not a broker's data directory: found {strange[0]!r}", _FOREIGN_HINT)


def _lock(path: Path) -> int:
    """Take the exclusive lock and write the owner's name into it."""
    descriptor = os.open(path / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, durable.FILE_MODE)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        owner = os.pread(descriptor, 256, 0).decode("utf-8", "replace").strip() or "a process that is just starting"
        os.close(descriptor)
        raise error("STORAGE_IN_USE", f"{path}: held by {owner}") from None
    except BaseException:
        os.close(descriptor)
        raise
    os.ftruncate(descriptor, 0)
    # For people only, so it need not be durable.
    os.pwrite(descriptor, f"process {os.getpid()} on {socket.gethostname()}\n".encode(), 0)
    return descriptor


def describe_owner(path: Path, words: str) -> None:
    """Say more of this process, which owns the directory, to those who find it held.

    Args:
        path: the directory.
        words: put behind the process and its machine; one line.
    """
    descriptor = os.open(path / "lock", os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.pwrite(descriptor, f"process {os.getpid()} on {socket.gethostname()}, {words}\n".encode(), 0)
    finally:
        os.close(descriptor)


def read_owner(path: Path) -> str:
    """Return what the directory's owner says of itself, or its last one did; empty when there has been none."""
    try:
        return (path / "lock").read_bytes()[:256].decode("utf-8", "replace").strip()
    except OSError:
        return ""


def is_held(path: Path) -> bool:
    """Whether somebody owns the directory at this moment.

    Whoever opens it at the very same moment may be refused because of this look. OSError: it cannot be looked at.
    """
    descriptor = os.open(path / "lock", os.O_RDWR | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


def write_identity(path: Path, data_format: int, journal_id: bytes) -> None:
    """Write a directory's format file, which makes it one that opens; durable.

    Args:
        path: the directory.
        data_format: of what is in it, at most `FORMAT`.
        journal_id: 16 bytes.
    """
    durable.write_file(path / "format", f"{_MAGIC}{data_format}\njournal {journal_id.hex()}\n".encode())


def write_restored(path: Path, run: int) -> None:
    """Note that what was stored in runs up to this one is an older state than readers may have seen; durable."""
    durable.write_file(path / "restored", f"run {run}\n".encode())


def read_restored(path: Path) -> int:
    """Return the run that `write_restored` noted, 0 for none.

    Raises:
        StorageError: STORAGE_CORRUPT; the note is unreadable.
    """
    try:
        text = (path / "restored").read_bytes()[:_FORMAT_BYTES_MAX].decode("utf-8", "replace")
    except FileNotFoundError:
        return 0
    run = text.removeprefix("run ").removesuffix("\n")
    if not text.startswith("run ") or not run.isascii() or not run.isdecimal():
        raise corrupt(path / "restored", "expected `run` and a number")
    return int(run)


@contextlib.contextmanager
def hold(path: Path) -> Iterator[None]:
    """Hold a directory's lock for care of its data, whatever state the data is in; nothing else is written.

    Args:
        path: a directory that is there.

    Raises:
        StorageError: STORAGE_IN_USE with the owner; STORAGE_FORMAT when there is no journal in it; STORAGE_FAILED.
    """
    if not (path / "journal").is_dir():
        raise error("STORAGE_FORMAT", f"{path}: not a broker's data directory: it has no journal", _FOREIGN_HINT)
    try:
        descriptor = _lock(path)
    except OSError as cause:
        raise failed(path, cause) from cause
    try:
        yield
    finally:
        os.close(descriptor)


def read_identity(path: Path) -> bytes:
    """Return the journal's identity from a format file.

    Raises:
        StorageError: STORAGE_FORMAT, STORAGE_CORRUPT. FileNotFoundError: there is none.
    """
    return _read_format(path)[1]


def _load(path: Path) -> bytes:
    """Return the journal's identity, completing the creation of the directory if there is none yet."""
    if (path / "format").exists():
        version, journal_id = _read_format(path / "format")
        if version < FORMAT:
            _make_archive(path)
            write_identity(path, FORMAT, journal_id)
        return journal_id
    # The directory was there already, for instance made by hand: from now on it is ours.
    path.chmod(durable.FOLDER_MODE)
    if not (path / "journal").exists():
        durable.make_folder(path / "journal")
    _make_archive(path)
    journal_id = secrets.token_bytes(16)
    write_identity(path, FORMAT, journal_id)
    return journal_id


def _make_archive(path: Path) -> None:
    """Give a directory an archive, unless a start before this one has come so far."""
    archive = archive_path(path)
    if not archive.parent.exists():
        durable.make_folder(archive.parent)
    if not archive.exists():
        create_archive(archive)


def _read_format(path: Path) -> tuple[int, bytes]:
    """Return the directory's format and the journal's identity from the format file.

    Raises:
        StorageError: STORAGE_FORMAT, when it is another program's file, a newer version's, or damaged.
    """
    with path.open("rb") as file:
        lines = file.read(_FORMAT_BYTES_MAX).decode("utf-8", "replace").splitlines()
    version = lines[0].removeprefix(_MAGIC) if lines and lines[0].startswith(_MAGIC) else ""
    if not version.isdecimal():
        raise error("STORAGE_FORMAT", f"{path}: not a broker's format file", _FOREIGN_HINT)
    if not OLDEST_FORMAT <= int(version) <= FORMAT:
        raise error("STORAGE_FORMAT", f"{path}: got data format {version}, this version knows {FORMAT}", _NEWER_HINT)
    if len(lines) < 2 or not lines[1].startswith("journal "):
        raise _no_identity(path)
    try:
        journal_id = bytes.fromhex(lines[1].removeprefix("journal "))
    except ValueError:
        raise _no_identity(path) from None
    if len(journal_id) != 16:
        raise _no_identity(path)
    return int(version), journal_id


def _no_identity(path: Path) -> BrokerError:
    return error("STORAGE_CORRUPT", f"{path}: the journal's identity is unreadable: expected 32 hex digits")
