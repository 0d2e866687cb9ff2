"""One LMDB file: created durably, checked before it is mapped, opened when used, closed when not.

LMDB maps the file and trusts every byte of its own pages, so a file that was cut, or a bit that flipped in the wrong
place, kills the process instead of raising: `check_file` compares what the meta pages say with what is there, by plain
reads, before anything is mapped, and `check_tree` proves the pages before LMDB sees them. LMDB's own creation is not
atomic either, so a file is created under another name, synced, and renamed.

Invariants: a path is open at most once in a process (two environments of one path break each other's locks);
an environment is closed only while nobody is inside; every transaction ends within the call that began it. Options are
those of full sync and no others: no caller can ask for less.
"""

from __future__ import annotations

import errno
import mmap
import os
import struct
import threading
import time
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import lmdb

from broker.log import durable
from broker.log.errors import corrupt, failed
from broker.model.errors import StorageCorrupt, error
from broker_native.btree import TreeDamaged, check_tree, find_row
from broker_native.tree import MappedFile, TreeReader

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

OPENS_MAX = 1000
OPEN_PAUSE_S = 0.001
"""How often a file is opened that seems to be open. The `lmdb` package knows files by inodes, and forgets one only
after it has closed the file: of one that was removed the inode may be another's by then, which another thread opens."""
READERS_MAX = 1024
LOCK_FILE_BYTES = 17 * 4096
"""Room for the header and READERS_MAX readers of 64 bytes; LMDB takes a larger file as it is."""
LOOKS_MAX = 100
"""How often meta pages are looked at that somebody writes meanwhile; each look takes less than a commit does."""
SYNCS_PER_COMMIT = 2
"""One fdatasync of the pages, and one write of the meta page through a descriptor opened with O_DSYNC."""

_META_AT = 16
_META = struct.Struct("<IIQQ48s48sQQ")
_META_MAGIC = 0xBEEFC0DE
_META_VERSION = 1
_PAGE_BYTES_MIN, _PAGE_BYTES_MAX = 512, 65536

_ALREADY_OPEN = "already open in this process"
# 3.0 bundles two engines whose files the other cannot read; before, there was one and no such option.
_ENGINE: Final[dict[str, Any]] = {"lib_version": 0} if int(lmdb.__version__.split(".")[0]) >= 3 else {}


def open_lmdb(path: Path, map_bytes: int, *, locks: bool = True, readonly: bool = False) -> lmdb.Environment:
    """Open a file with the options that every file here has.

    Args:
        path: the file.
        map_bytes: the address space to reserve for it.
        locks: False only for a file that no second thread uses, or that nobody writes to any more.
        readonly: refuse to write.

    Raises:
        OSError: there is no room for the lock file. lmdb.Error: the file cannot be opened.
    """
    if locks:
        _allocate_lock_file(lock_path(path))
    for _ in range(OPENS_MAX - 1):
        try:
            return _open_lmdb(path, map_bytes, locks=locks, readonly=readonly)
        except lmdb.Error as cause:
            if _ALREADY_OPEN not in str(cause):
                raise
            time.sleep(OPEN_PAUSE_S)
    return _open_lmdb(path, map_bytes, locks=locks, readonly=readonly)


def _open_lmdb(path: Path, map_bytes: int, *, locks: bool, readonly: bool) -> lmdb.Environment:
    return lmdb.open(
        str(path),
        map_size=map_bytes,
        subdir=False,
        readonly=readonly,
        lock=locks,
        sync=True,
        metasync=True,
        writemap=False,
        # What is left of a page would hold what this process had in that memory before: messages deleted since, too.
        meminit=True,
        mode=durable.FILE_MODE,
        max_readers=READERS_MAX,
        max_dbs=0,
        **_ENGINE,
    )


def _allocate_lock_file(path: Path) -> None:
    """Give LMDB's lock file all its bytes before LMDB maps it.

    LMDB would only set its size and then write through the map: on a full disk the first touch of a page that has no
    block yet kills the process with SIGBUS. Written here, the same want of room is an error. What the bytes are does
    not matter to the first who opens the file, as LMDB fills it anew; another process may be in it by then, so bytes
    that are there are left alone.
    """
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, durable.FILE_MODE)
    try:
        size = os.fstat(descriptor).st_size
        done = os.pwrite(descriptor, bytes(max(0, LOCK_FILE_BYTES - size)), size)
    finally:
        os.close(descriptor)
    if size + done < LOCK_FILE_BYTES:
        raise OSError(errno.ENOSPC, f"{size + done} of {LOCK_FILE_BYTES} bytes written", str(path))


def lock_path(path: Path) -> Path:
    """Return the name of the lock file that LMDB keeps beside a file."""
    return path.with_name(path.name + "-lock")


@dataclass(slots=True)
class _Shared:
    """An environment that several of this process use."""

    environment: lmdb.Environment
    inode: int
    users: int = 0


_shared: dict[str, _Shared] = {}
_shared_lock = threading.Lock()


def open_shared(path: Path, map_bytes: int) -> lmdb.Environment:
    """Open a file for reading and writing, or join those of this process who have it open; `close_shared` ends it.

    Args:
        path: the file; it is there.
        map_bytes: the address space to reserve for it, the same for all who join.

    Raises:
        ValueError: those who have it open have another file, over which this one was renamed.
        OSError: there is no room for the lock file. lmdb.Error: the file cannot be opened.

    Any thread.
    """
    with _shared_lock:
        inode = path.stat().st_ino
        shared = _shared.get(str(path))
        if shared is None:
            environment = open_lmdb(path, map_bytes)
            # Readers of a process that was killed hold pages back until somebody looks.
            environment.reader_check()
            shared = _shared[str(path)] = _Shared(environment, inode)
        if shared.inode != inode:
            raise ValueError(f"{path}: another file has the name now, and the former one is still open")
        shared.users += 1
        return shared.environment


def close_shared(path: Path) -> None:
    """Leave a file that `open_shared` opened; the last one closes it, when none of its transactions is open."""
    with _shared_lock:
        shared = _shared[str(path)]
        shared.users -= 1
        if shared.users == 0:
            del _shared[str(path)]
            shared.environment.close()


def create_file(path: Path, map_bytes: int) -> int:
    """Create an empty LMDB file, durable and whole when its name appears.

    Returns:
        The syncs that it took.

    Raises:
        OSError, lmdb.Error: there is no room or the disk refused; the name does not appear.
    """
    aside = path.with_name(path.name + durable.ASIDE_SUFFIX)
    remove_file(aside)
    open_lmdb(aside, map_bytes, locks=False).close()
    durable.sync_path(aside)
    durable.adopt_file(aside, path)
    return 2


def remove_file(path: Path) -> None:
    """Remove an LMDB file and its lock file, if they are there; nobody may have it open."""
    durable.remove_file(path)
    durable.remove_file(lock_path(path))


def check_file(path: Path) -> int:
    """Prove that a file may be mapped: it is an LMDB file of our format and none of its pages is cut off.

    The last pages may be missing if they are free: LMDB takes pages at the end that it gives back unwritten.

    Returns:
        Where the newer of its two meta pages begins, bytes.

    Raises:
        StorageError: STORAGE_CORRUPT when it is cut or its meta pages cannot be right, STORAGE_FORMAT when another
            version of LMDB wrote it, STORAGE_FAILED when it cannot be read.
    """
    return _newer_meta(path)[0]


def _newer_meta(path: Path) -> tuple[int, int]:
    """Return where the newer meta page begins and the number of its transaction; see `check_file`.

    Somebody else may be committing, the child of a server that was killed for one. What is found is only wrong when
    the meta pages are still the same afterwards: each commit writes one of them.
    """
    for _ in range(LOOKS_MAX):
        pages, size = _read_metas(path)
        try:
            return _judge_metas(path, pages, size)
        except StorageCorrupt:
            if _read_metas(path)[0] == pages:
                raise
    raise corrupt(path, f"its meta pages contradict each other or its size at {LOOKS_MAX} looks, each at others")


def _read_metas(path: Path) -> tuple[tuple[bytes, bytes], int]:
    """Return what stands where the two meta pages begin, the second one empty without the first, and the file's size.

    The size comes last: the pages of a commit are written before the meta page that counts them.
    """
    try:
        # Without a buffer, and without reading ahead: two small pieces of a file that may be long.
        with path.open("rb", buffering=0) as file:
            if hasattr(os, "posix_fadvise"):
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_RANDOM)
            page = file.read(_META_AT + _META.size)
            first, second = _Meta.read(page), b""
            if first is not None:
                file.seek(first.page_bytes)
                second = file.read(_META_AT + _META.size)
            return (page, second), file.seek(0, 2)
    except OSError as cause:
        raise failed(path, cause) from cause


def _judge_metas(path: Path, pages: tuple[bytes, bytes], size: int) -> tuple[int, int]:
    """Return what `_newer_meta` does, of meta pages that nobody has written to since.

    Raises:
        StorageError: as `check_file`.
    """
    first, second = map(_Meta.read, pages)
    if first is None:
        raise corrupt(path, f"is {size} bytes and has no meta page")
    if first.version != _META_VERSION:
        hint = "It was written through another version of LMDB; use one whose data format is 1."
        raise error("STORAGE_FORMAT", f"{path}: got LMDB data format {first.version}, expected {_META_VERSION}", hint)
    if second is None or second.page_bytes != first.page_bytes or second.version != first.version:
        raise corrupt(path, "its two meta pages disagree")
    newer = _check_metas(path, first, second)
    meta_at = 0 if newer is first else first.page_bytes
    need = (newer.last_page + 1) * newer.page_bytes
    if size < need and not _is_tail_free(path, meta_at):
        raise corrupt(path, f"is cut: {size} bytes are there, its pages need {need}")
    return meta_at, newer.transaction


def _is_tail_free(path: Path, meta_at: int) -> bool:
    """Tell whether the pages that a short file lacks are in its list of free ones, and nothing refers to them."""
    with _mapped(path) as content:
        try:
            check_tree(content, meta_at, True)
        except TreeDamaged:
            return False
    return True


def _check_metas(path: Path, first: _Meta, second: _Meta) -> _Meta:
    """Return the newer meta; their transactions can follow each other."""
    newest = max(first.transaction, second.transaction)
    # Transaction n is written to meta n mod 2, so they are neighbours, or both 0 in a file without a commit.
    if newest > 0 and (abs(first.transaction - second.transaction) != 1 or first.transaction % 2 != 0):
        raise corrupt(path, f"its meta pages name transactions {first.transaction} and {second.transaction}")
    return first if first.transaction == newest else second


@contextmanager
def _mapped(path: Path, *, scattered: bool = False) -> Iterator[mmap.mmap]:
    """Map a whole file to read it; `check_file` has found it long enough.

    Args:
        path: the file.
        scattered: a few pages of it are wanted, and the system is to read those alone: what it reads ahead by itself
            may be megabytes, in each of a hundred files.
    """
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            if scattered and hasattr(mmap, "MADV_RANDOM"):
                content.madvise(mmap.MADV_RANDOM)
            yield content
    except OSError as cause:
        raise failed(path, cause) from cause


def check_pages(path: Path, *, writable: bool) -> None:
    """Prove that a file's pages may be handed to LMDB.

    Args:
        path: the file; nobody writes to it meanwhile.
        writable: whether it will be written to, so that the list of free pages must be right as well.

    Raises:
        StorageError: the file is damaged, or the system refuses.
    """
    _prove_pages(path, check_file(path), writable=writable)


def _prove_pages(path: Path, meta_at: int, *, writable: bool) -> None:
    with _mapped(path) as content:
        try:
            check_tree(content, meta_at, writable)
        except TreeDamaged as damage:
            raise corrupt(path, str(damage)) from damage


def read_row(path: Path, key: bytes) -> bytes | None:
    """Return one row of a file that nobody writes to, without LMDB and without opening an environment.

    Args:
        path: the file.
        key: the row's key.

    Returns:
        Its value, copied; None when there is no such row.

    Raises:
        StorageError: the file is damaged, or the system refuses.
    """
    meta_at = check_file(path)
    with _mapped(path, scattered=True) as content:
        try:
            found = find_row(content, meta_at, key)
        except TreeDamaged as damage:
            raise corrupt(path, str(damage)) from damage
        return None if found is None else content[found[0] : found[0] + found[1]]


@contextmanager
def reading_tree(path: Path) -> Iterator[TreeReader]:
    """Hold a file that nobody writes to any more mapped, to be read row by row without LMDB.

    Only what is looked up is read and proved. No environment is opened, and none has to be closed for it.

    Raises:
        StorageError: STORAGE_CORRUPT when a page on the way is damaged, or the system refuses.
    """
    _, transaction = _newer_meta(path)
    try:
        mapped = MappedFile(str(path), path.stat().st_size)
    except OSError as cause:
        raise failed(path, cause) from cause
    try:
        yield TreeReader(mapped, transaction)
    except (TreeDamaged, LookupError) as damage:
        raise corrupt(path, f"a page of its tree is wrong: {damage}") from damage
    finally:
        mapped.close()


class _Meta:
    """What one of the two meta pages says."""

    __slots__ = ("last_page", "page_bytes", "transaction", "version")

    def __init__(self, version: int, page_bytes: int, last_page: int, transaction: int) -> None:
        self.version = version
        self.page_bytes = page_bytes
        self.last_page = last_page
        self.transaction = transaction

    @classmethod
    def read(cls, page: bytes) -> _Meta | None:
        """Parse the beginning of a page; None when it is no meta page."""
        if len(page) < _META_AT + _META.size:
            return None
        magic, version, _, _, free, _, last_page, transaction = _META.unpack_from(page, _META_AT)
        page_bytes = int.from_bytes(free[:4], "little")
        plausible = _PAGE_BYTES_MIN <= page_bytes <= _PAGE_BYTES_MAX and page_bytes & (page_bytes - 1) == 0
        return cls(version, page_bytes, last_page, transaction) if magic == _META_MAGIC and plausible else None


class EnvironmentFile:
    """An LMDB file that is opened by its first user and closed when asked, once nobody is inside.

    Any thread may read at any time; at most one thread writes. `OpenFiles` bounds how many are open.
    """

    def __init__(self, path: Path, map_bytes: int, *, readonly: bool, open_files: OpenFiles) -> None:
        self.path = path
        self._map_bytes = map_bytes
        self._readonly = readonly
        self._open_files = open_files
        self._environment: lmdb.Environment | None = None
        self._proved = False
        self._users = 0
        self._condition = threading.Condition()

    @property
    def readonly(self) -> bool:
        """Whether nothing will ever be written to it again."""
        return self._readonly

    @contextmanager
    def reading(self) -> Iterator[lmdb.Transaction[memoryview]]:
        """Hold a read transaction whose values are borrowed views; nothing of it may outlive the block.

        Raises:
            StorageError: the file is damaged, or the system refuses.
        """
        environment = self._enter()
        try:
            with environment.begin(None, None, False, True) as transaction:
                yield transaction
        except lmdb.Error as cause:
            raise self.damage(cause) from cause
        finally:
            self._leave()

    @contextmanager
    def writing(self) -> Iterator[lmdb.Environment]:
        """Hold the environment open for a writer, which begins and commits by itself.

        Raises:
            StorageError: the file is damaged, or the system refuses to open it. LMDB's errors pass through.
        """
        environment = self._enter()
        try:
            yield environment
        finally:
            self._leave()

    def open(self) -> None:
        """Open the environment now, so that its first user need not wait for that.

        Raises:
            StorageError: the file is damaged, or the system refuses.
        """
        self._enter()
        self._leave()

    def damage(self, cause: lmdb.Error) -> Exception:
        """Return what an error of reading means: pages that are not what LMDB wrote, or a system that refuses."""
        if isinstance(cause, lmdb.CorruptedError | lmdb.PageNotFoundError | lmdb.InvalidError | lmdb.NotFoundError):
            return corrupt(self.path, f"LMDB cannot read it: {cause}")
        return failed(self.path, cause)

    def close(self, *, readonly: bool = False) -> None:
        """Close the environment after the last user has left; the next one opens it again.

        Args:
            readonly: from now on nothing is written to it: it is opened without locks, and its lock file is removed.
        """
        with self._condition:
            self._condition.wait_for(lambda: self._users == 0)
            self._close()
            if readonly:
                self._readonly = True
                # One that stays behind does no harm, and the next start removes it.
                with suppress(OSError):
                    durable.remove_file(lock_path(self.path))

    def close_if_idle(self) -> bool:
        """Close the environment unless somebody is inside; tell whether it is closed now."""
        with self._condition:
            if self._users == 0:
                self._close()
            return self._environment is None

    def _close(self) -> None:
        if self._environment is not None:
            self._environment.close()
            self._environment = None

    def _enter(self) -> lmdb.Environment:
        with self._condition:
            if self._environment is None:
                self._environment = self._open()
            self._users += 1
            environment = self._environment
        if self._readonly:
            self._open_files.used(self)
        return environment

    def _leave(self) -> None:
        with self._condition:
            self._users -= 1
            if self._users == 0:
                self._condition.notify_all()

    def _open(self) -> lmdb.Environment:
        meta_at = check_file(self.path)
        # A file that nobody writes to needs the proof once, however often it is opened.
        if not (self._readonly and self._proved):
            _prove_pages(self.path, meta_at, writable=not self._readonly)
            self._proved = self._readonly
        try:
            return open_lmdb(self.path, self._map_bytes, locks=not self._readonly, readonly=self._readonly)
        except lmdb.Error as cause:
            raise self.damage(cause) from cause
        except OSError as cause:
            raise failed(self.path, cause) from cause


class OpenFiles:
    """Keeps at most so many read-only files open, the most recently used ones.

    A file that somebody is inside of stays open past the bound until a later file pushes it out.
    """

    def __init__(self, files_max: int) -> None:
        self._files_max = files_max
        self._lock = threading.Lock()
        self._files: dict[EnvironmentFile, None] = {}

    def used(self, file: EnvironmentFile) -> None:
        """Note that a file is in use now, and close the ones that have not been for longest."""
        with self._lock:
            self._files.pop(file, None)
            self._files[file] = None
            surplus = len(self._files) - self._files_max
            for oldest in list(self._files)[: max(surplus, 0)]:
                if oldest is not file and oldest.close_if_idle():
                    del self._files[oldest]
