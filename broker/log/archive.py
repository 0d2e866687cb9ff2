"""The archive as its readers see it: one LMDB file that one process writes and any number of threads read.

A snapshot is one read transaction. LMDB gives it a slot, which keeps the pages of its tree from being written over, and
its number; the pages are read by the walk of `broker_native.tree`, which trusts none of them, and LMDB never sees them.
A slot that is held makes the file grow, so a snapshot is for one bounded slice and is never held across a wait.

What the rows are stands in `archive_rows.py`. Nothing here writes, but `create_archive`.
"""

from __future__ import annotations

import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING

import lmdb

from broker.log import durable
from broker.log.archive_rows import CHECKPOINT_KEY, LINE_PREFIX, NAME_PREFIX, Checkpoint, describe_key
from broker.log.environment import check_file, close_shared, open_lmdb, open_shared, remove_file
from broker.log.errors import corrupt, failed
from broker.model.errors import error
from broker_native import archive as native
from broker_native.archive import ChunkMissing
from broker_native.btree import TreeDamaged
from broker_native.rows import RowDamaged
from broker_native.tree import MappedFile, TreeReader

if TYPE_CHECKING:
    from collections.abc import Callable, Container, Iterator
    from pathlib import Path
    from typing import Concatenate, ParamSpec, TypeVar

    from broker.model.errors import StorageCorrupt
    from broker_native.answers import StretchReader

    Parameters = ParamSpec("Parameters")
    Result = TypeVar("Result")
    Chunk = tuple[int, int, bytes]

__all__ = ["Archive", "Checkpoint", "Snapshot", "create_archive"]

MAP_BYTES = 1 << 42
"""Address space for an archive to grow into, 4 TiB; it costs nothing before it is used."""
BEGIN_ATTEMPTS_MAX = 100
"""Snapshots that may be overtaken by two commits between LMDB's answer and our look, one after the other."""


def create_archive(path: Path) -> None:
    """Create an archive that nothing has come to, durable and whole when its name appears.

    Args:
        path: the file; its folder is there. What has the name is replaced, and nobody may have it open.

    Raises:
        StorageError: STORAGE_FULL or STORAGE_FAILED when the system refuses; the name does not appear.
    """
    aside = path.with_name(path.name + durable.ASIDE_SUFFIX)
    try:
        remove_file(aside)
        environment = open_lmdb(aside, MAP_BYTES, locks=False)
        try:
            with environment.begin(write=True) as transaction:
                transaction.put(CHECKPOINT_KEY, Checkpoint.empty().pack())
        finally:
            environment.close()
        durable.sync_path(aside)
        durable.adopt_file(aside, path)
    except (OSError, lmdb.Error) as cause:
        raise failed(path, cause) from cause


class _Opened:
    """A file that is open, and how many snapshots of it there are."""

    def __init__(self, environment: lmdb.Environment, mapped: MappedFile) -> None:
        self.environment = environment
        self.mapped = mapped
        self.users = 0


class Archive:
    """An archive to read from; any thread.

    Args:
        path: the file; it is there.
        map_bytes: address space that it may grow into.

    Raises:
        StorageError: STORAGE_CORRUPT when it is cut or damaged, STORAGE_FORMAT when a newer version wrote it,
            STORAGE_FULL or STORAGE_FAILED when the system refuses.
    """

    def __init__(self, path: Path, map_bytes: int = MAP_BYTES) -> None:
        self.path = path
        self._map_bytes = map_bytes
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)
        self._closed = False
        self._opened: _Opened | None = self._open()
        try:
            with self.snapshot() as snapshot:
                snapshot.checkpoint  # noqa: B018  (its format is the archive's)
        except BaseException:
            self.close()
            raise

    @contextmanager
    def snapshot(self) -> Iterator[Snapshot]:
        """Hold the archive as it is now, for one slice of reading; the snapshot is good within the block only.

        Costs about three microseconds. A thread has no two at a time.

        Raises:
            StorageError: STORAGE_CORRUPT when the file is damaged, STORAGE_FAILED when the system refuses.
        """
        opened = self._enter()
        try:
            transaction, reader = self._begin(opened)
            try:
                yield Snapshot(self.path, reader)
            finally:
                transaction.abort()
        finally:
            self._leave(opened)

    def reopen(self) -> None:
        """Take the file that has the name now, once the snapshots of the former one have ended.

        Whoever renamed a file over it has closed the former one before, in this process. Not within a snapshot.

        Raises:
            StorageError: as of the constructor; the archive is closed then.
        """
        self._shut()
        try:
            opened = self._open()
        except BaseException:
            self.close()
            raise
        with self._lock:
            self._opened = opened
            self._changed.notify_all()

    def close(self) -> None:
        """Close the file once its snapshots have ended. Idempotent; not within a snapshot."""
        with self._lock:
            self._closed = True
            self._changed.notify_all()
        self._shut()

    def _open(self) -> _Opened:
        check_file(self.path)
        try:
            environment = open_shared(self.path, self._map_bytes)
            try:
                return _Opened(environment, MappedFile(str(self.path), self._map_bytes))
            except OSError:
                close_shared(self.path)
                raise
        except (OSError, lmdb.Error) as cause:
            raise failed(self.path, cause) from cause

    def _shut(self) -> None:
        """Let nobody enter any more, wait for those who are in, and close."""
        with self._lock:
            opened, self._opened = self._opened, None
            self._changed.notify_all()
            if opened is None:
                return
            self._changed.wait_for(lambda: opened.users == 0)
        opened.mapped.close()
        close_shared(self.path)

    def _enter(self) -> _Opened:
        with self._lock:
            while self._opened is None:
                if self._closed:
                    raise error("CLOSED", f"{self.path}: the archive is closed")
                self._changed.wait()
            self._opened.users += 1
            return self._opened

    def _leave(self, opened: _Opened) -> None:
        with self._lock:
            opened.users -= 1
            if opened.users == 0:
                self._changed.notify_all()

    def _begin(self, opened: _Opened) -> tuple[lmdb.Transaction[memoryview], TreeReader]:
        """Begin a read transaction and look at its tree."""
        transaction = self._begin_lmdb(opened)
        for _ in range(BEGIN_ATTEMPTS_MAX):
            try:
                reader = TreeReader(opened.mapped, transaction.id())
                if not reader.overtaken:
                    return transaction, reader
            except LookupError:
                reader = None
            except TreeDamaged as damage:
                transaction.abort()
                raise corrupt(self.path, str(damage)) from damage
            later = self._begin_lmdb(opened)
            if reader is not None and later.id() == transaction.id():
                later.abort()
                return transaction, reader
            transaction.abort()
            transaction = later
        transaction.abort()
        raise corrupt(self.path, "its meta pages are not those of the snapshot that LMDB sees")

    def _begin_lmdb(self, opened: _Opened) -> lmdb.Transaction[memoryview]:
        try:
            return opened.environment.begin(None, None, False, True)
        except lmdb.Error as cause:
            raise failed(self.path, cause) from cause


class Snapshot:
    """The archive at one instant. Use `Archive.snapshot`; one thread.

    Every method raises StorageError, STORAGE_CORRUPT naming the file and the row, channel and sequence, or offset, when
    what it looked at is not what was written. What is sorted is looked up fastest.
    """

    __slots__ = ("_path", "_reader")

    def __init__(self, path: Path, reader: TreeReader) -> None:
        """Look at a tree; `Archive.snapshot` does that."""
        self._path = path
        self._reader = reader

    @property
    def checkpoint(self) -> Checkpoint:
        """Up to where the journal is in the archive."""
        return Checkpoint.unpack(self._read(TreeReader.get, CHECKPOINT_KEY), self._path)

    def ids(self, names: list[bytes]) -> list[int]:
        """Return the ids of channels by their names, 0 for each that is not there."""
        return self._read(native.find_names, names)

    def channels(self, ids: list[int]) -> list[bytes]:
        """Return the entries of channels by their ids (CHANNEL, EPOCH…, HEAD), b"" for each that is not there."""
        return self._read(native.find_channels, ids)

    def lines(self, producers: list[bytes]) -> list[bytes]:
        """Return the LINE entry of each producer, b"" for each that is not there."""
        found = self._read(native.find_bodies, [LINE_PREFIX + producer for producer in producers])
        return [line or b"" for line in found]

    def names(self, prefix: bytes, after: bytes, count_max: int) -> list[tuple[bytes, int]]:
        """Return channels that begin with a prefix and are past a name, ascending: (name, id), at most `count_max`."""
        rows = self._read(native.list_rows, NAME_PREFIX + prefix, NAME_PREFIX + after, count_max)
        return [(key[1:], int.from_bytes(body, "little")) for key, body in rows]

    def producers(self, after: bytes, count_max: int) -> list[tuple[bytes, bytes]]:
        """Return producers past one, ascending: (producer, LINE entry), at most `count_max`."""
        rows = self._read(native.list_rows, LINE_PREFIX, LINE_PREFIX + after, count_max)
        return [(key[1:], body) for key, body in rows]

    def chunks(self, channel: int, after_sequence: int, bytes_max: int, before_sequence: int = 0) -> list[bytes]:
        """Return chunks of a channel, ascending.

        Args:
            channel: its id.
            after_sequence: chunks whose last sequence is greater are returned; 0 for all.
            bytes_max: at least one chunk is returned if there is any, further ones up to this sum of sizes.
            before_sequence: and whose first sequence is less than this; 0 for no bound.

        Returns:
            Whole chunks; only what the archive knows to be trimmed is cut off.
        """
        return self._read(native.read_chunks, channel, after_sequence, bytes_max, before_sequence)

    def chunks_back(self, channel: int, before_sequence: int, count: int, bytes_max: int) -> list[bytes]:
        """Return the chunks that hold the last sequences of a channel, ascending.

        Args:
            channel: its id.
            before_sequence: the sequence that they end before; 0 for the end of the channel.
            count: how many sequences are wanted; the first chunk may have more.
            bytes_max: at least the newest chunk is returned if there is any, further ones up to this sum of sizes.
        """
        return self._read(native.read_chunks_back, channel, before_sequence, count, bytes_max)

    def answer(self, stretches: StretchReader, begin: int, bytes_max: int, now_s: int) -> int:
        """Answer questions about channels as far as the archive has all of it; see `StretchReader.read`.

        Raises:
            ValueError: the first of them meets a chunk whose records are not what its checksum vouches for.
        """
        return self._read(stretches.read, begin, bytes_max, now_s)

    def groups(
        self, after_group: int, after_index: int, bytes_max: int, wanted: Container[int] | None
    ) -> tuple[list[Chunk], tuple[int, int]]:
        """Return chunks in bus order, after a place; arguments and results are those of `Log.read_groups`.

        A chunk has the records that its group committed, however the archive keeps them now. What was trimmed, and
        channels that were removed, are left out.
        """
        return self._read(native.read_groups, after_group, after_index, bytes_max, wanted)

    def group_at(self, time_us: int) -> int | None:
        """Return the first group of a time (microseconds since 1970) or later, None when all are earlier."""
        return self._read(native.group_at, time_us)

    def sequence_at(self, channel: int, time_us: int) -> int:
        """Return a channel's first sequence of a time or later, its next one when all are earlier."""
        return self._read(native.sequence_at, channel, time_us)

    def _read(
        self,
        function: Callable[Concatenate[TreeReader, Parameters], Result],
        *args: Parameters.args,
        **kwargs: Parameters.kwargs,
    ) -> Result:
        try:
            return function(self._reader, *args, **kwargs)
        except (TreeDamaged, RowDamaged, ChunkMissing) as damage:
            raise self._corrupt(damage, function.__name__, args) from damage

    def _corrupt(
        self, damage: TreeDamaged | RowDamaged | ChunkMissing, reading: str, args: tuple[object, ...]
    ) -> StorageCorrupt:
        if isinstance(damage, RowDamaged):
            return corrupt(self._path, f"{describe_key(damage.key)} is not what was written")
        if isinstance(damage, ChunkMissing):
            return corrupt(self._path, f"channel {damage.channel}: sequence {damage.sequence} is missing")
        numbers = ", ".join(str(arg) for arg in args if isinstance(arg, int))
        return corrupt(self._path, f"{damage}; met by {reading}({numbers})")
