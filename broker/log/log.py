"""The journal as the rest of the broker sees it: one data directory, opened by one process.

Threads: `open`, `recover`, `load_all` and `close` belong to whoever owns the log, `append` and `abandon` to the commit
thread, reads and `stats` to anybody. Nothing may be called while `close` runs or after it, nothing at all in a forked
child.
"""

from __future__ import annotations

import os
import threading
import time
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING

from broker.log.archive import Archive, Checkpoint
from broker.log.archive_task import TIME_MAX_US, aside_path
from broker.log.archiving import Archiving
from broker.log.backlog import Backlog
from broker.log.backup import Manifest, take_backup
from broker.log.directory import Directory
from broker.log.environment import SYNCS_PER_COMMIT, OpenFiles
from broker.log.journal import Journal
from broker.log.reader import sequence_at
from broker.log.recovery import Applier, Recovery, recover
from broker.log.resolve import Tables
from broker.log.retention import NOTHING_HELD
from broker.log.sealer import Sealer
from broker.log.space import Space
from broker.log.view import Reading, View
from broker.model.errors import error

if TYPE_CHECKING:
    from collections.abc import Callable, Container, Mapping
    from concurrent.futures import Future
    from contextlib import AbstractContextManager

    from broker.log.archiver import CompactResult
    from broker.log.retention import Held, Policies, Step
    from broker.log.segment import Segment
    from broker_native.crc32c import Buffer

__all__ = ["Applier", "ArchiveBy", "Log"]

MIB = 1024 * 1024
GIB = 1024 * MIB
COMPACT_POLL_S = 0.05
OPEN_SEALED_MAX = 64
"""Sealed segments that are open at once, one file descriptor each: half of the open files that a server keeps from its
connections."""


def _size_of(path: Path) -> int:
    """Return the bytes of a file, 0 when it is not there."""
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def map_bytes_for(segment_bytes: int, group_bytes_max: int) -> int:
    """Return the address space that a segment can never outgrow.

    A value takes at most one page more than its bytes and at most twice of them; the index takes 40 bytes for each
    chunk of at least 68, the delta no more than the entries and chunks that it sums up; tree pages that were written
    anew are used again. Twice that again costs nothing, as it is address space only.
    """
    return 8 * (segment_bytes + group_bytes_max) + 16 * MIB


class ArchiveBy(Enum):
    """Who moves sealed segments into the archive."""

    NOBODY = "nobody"
    THREAD = "thread"
    PROCESS = "process"


class Log:
    """A journal in a data directory, and its archive. Use `Log.open`."""

    def __init__(
        self,
        directory: Directory,
        segment_bytes: int,
        reserve_bytes: int,
        group_bytes_max: int,
        archive_by: ArchiveBy,
        backlog_bytes_max: int,
    ) -> None:
        """Build the facade over an owned directory; `open` does that."""
        self._directory = directory
        self._process = os.getpid()
        self._segment_bytes = segment_bytes
        self._archive_by = archive_by
        self._map_bytes = map_bytes_for(segment_bytes, group_bytes_max)
        self._open_files = OpenFiles(OPEN_SEALED_MAX)
        self._space = Space(directory.journal_path, reserve_bytes)
        self._sealer = Sealer(directory.journal_path, self._map_bytes, self._open_files, self._queue_sealed)
        self._backlog = Backlog(self._backlog_bytes, self._steps, self._relief_s, backlog_bytes_max)
        self._journal: Journal | None = None
        self._archive: Archive | None = None
        self._archiving: Archiving | None = None
        self._queueing = threading.Lock()
        self._queued_ordinal = 0
        self._checkpoint = Checkpoint.empty()
        self._closed = False

    @classmethod
    def open(
        cls,
        path: str | os.PathLike[str],
        *,
        segment_bytes: int = 64 * MIB,
        reserve_bytes: int = 256 * MIB,
        group_bytes_max: int = 2 * MIB,
        archive_by: ArchiveBy = ArchiveBy.NOBODY,
        backlog_bytes_max: int = 4 * GIB,
    ) -> Log:
        """Take ownership of a data directory, creating it if it is missing or empty.

        Args:
            path: the directory.
            segment_bytes: a segment that holds this much is full, > 0; the group that crosses it goes in whole.
            reserve_bytes: what an append must leave free on the file system, ≥ 0.
            group_bytes_max: the largest group that will be appended.
            archive_by: who moves sealed segments into the archive.
            backlog_bytes_max: how much may wait for the archive, > 0, while somebody moves it.

        Returns:
            A log that has to be recovered by `recover` before anything else.

        Raises:
            StorageError: STORAGE_IN_USE naming the owner, STORAGE_FORMAT when the directory is not ours or of a newer
                format, STORAGE_FULL or STORAGE_FAILED when the system refuses.
        """
        directory = Directory.acquire(Path(path))
        return cls(directory, segment_bytes, reserve_bytes, group_bytes_max, archive_by, backlog_bytes_max)

    @property
    def journal_id(self) -> bytes:
        """The journal's identity, 16 bytes drawn when it was created."""
        return self._directory.journal_id

    @property
    def restored_run(self) -> int:
        """Runs up to this one are of a past that was restored, see `Directory.restored_run`; 0 when there is none."""
        return self._directory.restored_run

    @property
    def last_group(self) -> int:
        """The number of the last good group, 0 when there is none."""
        return self._ready().last.number

    @property
    def archived_group(self) -> int:
        """The last group that is in the archive, 0 when there is none."""
        self._ready()
        return self._checkpoint.group

    @property
    def settled_group(self) -> int:
        """All that groups up to this one changed in the tables is found by `resolve`; any thread.

        What later ones changed is known only to who applied them.
        """
        settled = self.archived_group
        for segment in self._segments():
            if segment.tables is None:
                break
            settled = max(settled, segment.tables_last)
            if segment.tables_last < segment.last.number:
                break
        return settled

    def recover(self) -> Recovery:
        """Find where the journal ends, and make the log ready for use; once, before all else.

        Nothing is replayed: what is stored is looked up by `resolve`, or loaded whole by `load_all`.

        Returns:
            Where the journal ends, and what it holds.

        Raises:
            StorageError: STORAGE_CORRUPT naming file, group, channel and offset, STORAGE_FORMAT, STORAGE_FULL or
                STORAGE_FAILED. The log can then only be closed.
        """
        self._guard()
        if self._journal is not None:
            raise ValueError("the log is recovered already")
        archive = self._archive = Archive(self._directory.archive_path)
        with archive.snapshot() as snapshot:
            self._checkpoint = snapshot.checkpoint
        found = recover(self._directory.journal_path, self._map_bytes, self._open_files, self._checkpoint)
        self._journal = Journal(found.segments, found.last, self._sealer, self._space, self._segment_bytes)
        self._tables = Tables(archive, self._segments)
        self._view = View(archive, self._segments)
        if self._archive_by is not ArchiveBy.NOBODY:
            self._archiving = Archiving(
                self._directory.path,
                in_process=self._archive_by is ArchiveBy.THREAD,
                on_archived=self._on_archived,
                on_compacted=lambda _: archive.reopen(),
                backlog_bytes_max=self._backlog.bytes_max,
            )
        self._sealer.start(found.ready, found.next_ordinal, found.full)
        self._queue_sealed()
        return found.result

    def load_all(self, applier: Applier) -> None:
        """Apply everything that is stored, after `recover` and before the first append.

        Args:
            applier: gets `apply_entries` with whole channels' and lines' entries; the buffers are borrowed.

        Raises:
            StorageError: STORAGE_CORRUPT when a page is not what was written; and whatever the applier raises.
        """
        self._ready()
        self._tables.load_all(applier)

    # --- Looking up -----------------------------------------------------------------------------------------------

    def resolve(self, names: list[bytes]) -> list[bytes]:
        """Return for each name the entries of its channel, to be applied in one go; b"" when no such channel is stored.

        What groups past `settled_group` changed is not in them. Any thread.

        Raises:
            StorageError: STORAGE_CORRUPT when a page is not what was written.
        """
        self._ready()
        return self._tables.resolve(names)

    def resolve_lines(self, producers: list[bytes]) -> list[bytes]:
        """Return for each producer the entries of its line, b"" when none is stored; as `resolve`."""
        self._ready()
        return self._tables.resolve_lines(producers)

    def names_of(self, ids: list[int]) -> list[bytes | None]:
        """Return the name of each stored channel, None when there is none of that id; as `resolve`."""
        self._ready()
        return self._tables.names_of(ids)

    def names(self, prefix: bytes, after: bytes, count_max: int) -> list[bytes]:
        """Return the names of stored channels with a prefix that follow another name, ascending; as `resolve`.

        Args:
            prefix: of all of them.
            after: names up to this one are left out; b"" for none.
            count_max: at most so many, > 0.
        """
        self._ready()
        return self._tables.names(prefix, after, count_max)

    # --- Appending ------------------------------------------------------------------------------------------------

    def append(self, number: int, value: Buffer) -> None:
        """Store a group; it is durable on return. The commit thread only; it blocks for the disk.

        Args:
            number: the group's number, greater than every number that was ever passed here.
            value: the group's bytes; borrowed for the call. Its predecessor and previous chain are those of the last
                group that was stored.

        Raises:
            AppendFull: STORAGE_FULL, there is no room. AppendError: STORAGE_FAILED. Both say `handed_over`: False
                means that nothing is stored; True that the group may be, and that `abandon` must succeed before the
                next append.
            ValueError: the group does not follow the last one; nothing is stored.
        """
        journal = self._ready()
        archiving = self._archiving
        if archiving is None:
            journal.append(number, value)
            return
        self._backlog.take(len(value))
        began_s = time.monotonic()
        journal.append(number, value)
        archiving.pace(time.monotonic() - began_s, len(value))

    def abandon(self) -> None:
        """Give the active segment up after an append that failed with `handed_over`; the commit thread only.

        The next group appended names the last good one as its predecessor, which makes the failed one void. Does
        nothing when no append has failed, so it may be repeated.

        Raises:
            AppendFull: there is no room for a fresh segment. AppendError: it cannot be created. Try again later.
        """
        self._ready().abandon()

    def rotate(self) -> None:
        """Have the active segment sealed now, though it is not full, so that it can be archived.

        Waits for the commit that is on its way: any thread but a loop's.

        Raises:
            AppendFull: there is no room for a fresh segment. AppendError: it cannot be created.
        """
        self._ready().rotate()

    def retain(
        self, policies: Policies, cursors: Mapping[bytes, int], now_us: int, held: Held = NOTHING_HELD
    ) -> Future[Step]:
        """Have the archiver take a step of retention; any thread, and it does not wait.

        Args:
            policies: of the channels.
            cursors: of the last step, if all its proposals are trims in the journal; else empty.
            now_us: the time by which ages are judged, microseconds since 1970; never ahead of what is true.
            held: what of earlier steps consumers hold.

        Returns:
            What to trim, and the cursors to pass on when that is done, or why the step was not taken; on the
            archiver's thread.

        Raises:
            Unavailable: nobody moves anything into the archive.
        """
        self._ready()
        if self._archiving is None:
            raise error("UNAVAILABLE", f"{self._directory.path}: nobody moves anything into the archive")
        return self._archiving.retain(policies, cursors, now_us, held)

    # --- Reading --------------------------------------------------------------------------------------------------

    def read_channel(
        self, channel_id: int, after_sequence: int, bytes_max: int, before_sequence: int = 0
    ) -> list[tuple[int, int, bytes]]:
        """Return chunks of a channel, in the order of their sequences.

        Args:
            channel_id: the channel.
            after_sequence: chunks whose last sequence is greater are returned; 0 for all.
            bytes_max: at least one chunk is returned if there is any, further ones up to this sum of sizes.
            before_sequence: only chunks that begin before it; 0 for all.

        Returns:
            (group number, index in the group, chunk) each; (0, 0, chunk) from the archive.

        Raises:
            StorageError: STORAGE_CORRUPT when a chunk is not what was written.

        Any thread. A few microseconds a segment looked at, and the copy; a slice that goes on where the last one of
        its channel ended looks at no segment before.
        """
        self._ready()
        return self._view.channel(channel_id, after_sequence, bytes_max, before_sequence)

    def read_channel_back(
        self, channel_id: int, before_sequence: int, count: int, bytes_max: int
    ) -> list[tuple[int, int, bytes]]:
        """Return the newest chunks of a channel before a sequence, in the order of their sequences.

        Args:
            channel_id: the channel.
            before_sequence: only chunks that begin before it; the last of them may go past it.
            count: how many sequences before it are wanted; the first chunk may begin before these.
            bytes_max: at least one chunk is returned if there is any, older ones up to this sum of sizes.

        Returns:
            (group number, index in the group, chunk) each; (0, 0, chunk) from the archive.

        Raises:
            StorageError: STORAGE_CORRUPT when a chunk is not what was written.

        Any thread. O(chunks that hold the `count` sequences), and a look-up for each segment on the way back to them.
        """
        self._ready()
        return self._view.channel_back(channel_id, before_sequence, count, bytes_max)

    def sequence_at(self, channel_id: int, first: int, next_sequence: int, time_us: int) -> int:
        """Return the first sequence of a channel whose record is of a time or later; any thread.

        Args:
            channel_id: the channel.
            first, next_sequence: the sequences to look among: from the one, before the other.
            time_us: broker time, microseconds since 1970.

        Returns:
            That sequence, `next_sequence` when all are earlier. Where a clock went back between two runs, one of those
            whose record is of that time or later while the one before it is not.

        Raises:
            StorageError: STORAGE_CORRUPT when a chunk is not what was written.

        Reads one chunk for each halving: about 20 for a million sequences.
        """
        return sequence_at(
            lambda after: self.read_channel(channel_id, after, 0, next_sequence), first, next_sequence, time_us
        )

    def reading(self) -> AbstractContextManager[Reading]:
        """Hold what is stored as it is now, for a bounded number of `read_channel`, `read_channel_back`, `sequence_at`.

        Beginning costs about ten times what a short read does. Any thread, which reads nothing else of the log within
        the block; the files of a compaction and of segments that are archived stay until it ends.

        Raises:
            StorageError: STORAGE_CORRUPT when the archive is damaged; of a read, as that of the log, and also when a
                segment has gone to the archive meanwhile: `overtaken` tells.
        """
        self._ready()
        return self._view.reading()

    def read_groups(
        self, after_group: int, after_index: int, bytes_max: int, wanted: Container[int] | None
    ) -> tuple[list[tuple[int, int, bytes]], tuple[int, int]]:
        """Return chunks in bus order, after a place.

        Args:
            after_group: the group of the place; 0 for the beginning.
            after_index: the index in that group up to which everything is passed over.
            bytes_max: at least one wanted chunk is returned if the call meets any, further ones up to this.
            wanted: the ids of the channels whose chunks are returned; None for all.

        Returns:
            (group number, index in the group, chunk) each, and the place (group, index) up to which everything was
            looked at. When that place equals the one passed in, the journal holds nothing after it.

        Raises:
            StorageError: STORAGE_CORRUPT when a group is not what was written.

        Any thread. One call looks at about 16 MiB of groups at most, wanted or not.
        """
        self._ready()
        return self._view.groups(after_group, after_index, bytes_max, wanted)

    def time_to_group(self, time_us: int) -> int:
        """Return the number of the first group whose time is `time_us` or later; any thread.

        Args:
            time_us: broker time, microseconds since 1970.

        Returns:
            That number, or the last group's plus one when all are earlier.
        """
        journal = self._ready()
        found = self._view.time_to_group(time_us)
        return journal.last.number + 1 if found is None else found

    def compact(self, between: Callable[[int, int], None], now_us: int = TIME_MAX_US) -> CompactResult:
        """Rebuild the archive without what was taken out of it, once all that is stored now is in it; any thread.

        Args:
            between: called with (bytes done, bytes in all) several times a second; what it raises ends the waiting,
                while a rebuild that has begun goes on. What is not archived yet counts, and then the archive, which is
                written anew; both may change on the way.
            now_us: the time by which ages are judged, microseconds since 1970; no more has expired.

        Returns:
            The archive's bytes before and after it.

        Raises:
            StorageError: as `rotate`, or STORAGE_CORRUPT, and the archive is as it was: it or a segment that it has to
                take in is damaged. Unavailable: UNAVAILABLE, nobody archives.
        """
        archiving, last = self._archiving, self._ready().last.number
        if archiving is None:
            raise error("UNAVAILABLE", f"{self._directory.path}: nobody archives what is stored")
        # What was taken out is gone for good when no segment has it either.
        path = self._directory.archive_path
        with archiving.hurry():
            self.rotate()
            backlog = archiving.backlog_bytes
            between(0, backlog + path.stat().st_size)
            while self.archived_group < last:
                if archiving.damage is not None:
                    raise error(archiving.damage.name, archiving.damage.detail)
                time.sleep(COMPACT_POLL_S)
                between(max(backlog - archiving.backlog_bytes, 0), backlog + path.stat().st_size)
        rebuilt = archiving.compact(now_us)
        while True:
            try:
                return rebuilt.result(COMPACT_POLL_S)
            except TimeoutError:
                size = path.stat().st_size
                between(backlog + min(_size_of(aside_path(path)), size), backlog + size)

    def backup(self, target: Path, between: Callable[[int, int], None]) -> Manifest:
        """Copy everything up to the last good group of this moment; any thread, while commits go on.

        Args:
            target: a folder that is missing or empty; on failure it is left as it was.
            between: called with (bytes done, bytes in all) between small steps; what it raises ends the backup.

        Raises:
            StorageError: as `take_backup`.
        """
        journal = self._ready()
        return take_backup(self._directory, lambda: journal.segments, target, self._map_bytes, between)

    def stats(self) -> dict[str, int | float]:
        """Return counts since the log was recovered; any thread.

        Returns:
            `commits` (groups appended) and `bytes` (their sizes); `fsyncs`: two for each LMDB commit, appends and
            seals alike (an fdatasync of the pages, a write of the meta page through an O_DSYNC descriptor), one more
            for each seal, and two for each segment made ready (the file and its folder); `segments`, of them
            `sealed`; `seals`, `seal_s` (seconds spent) and `seal_backlog` (full segments that wait);
            `archived_group`, `archived_bytes` (the chunks' sizes); `commit_delays`, `commit_delay_s` and
            `commit_refusals` (groups that waited for the archive, or waited in vain); and those of `Archiving.stats`.
        """
        journal = self._ready()
        sealer = self._sealer.stats()
        segments = journal.segments
        return {
            "commits": journal.commits,
            "bytes": journal.bytes,
            "fsyncs": SYNCS_PER_COMMIT * journal.commits + int(sealer["syncs"]),
            "segments": len(segments),
            "sealed": sum(segment.sealed for segment in segments),
            "seals": sealer["seals"],
            "seal_s": sealer["seal_s"],
            "seal_backlog": sealer["seal_backlog"],
            "archived_group": self._checkpoint.group,
            "archived_bytes": self._checkpoint.bytes,
            "commit_delays": self._backlog.delays,
            "commit_delay_s": self._backlog.delay_s,
            "commit_refusals": self._backlog.refusals,
            **(self._archiving.stats() if self._archiving is not None else {}),
        }

    def wait_sealed(self, timeout_s: float) -> bool:
        """Wait until no full segment waits to be sealed; tell whether that came to pass in time. Any thread."""
        self._ready()
        return self._sealer.wait_sealed(timeout_s)

    def close(self) -> None:
        """End the background thread, close the files and release the directory. Idempotent.

        What is full and not sealed yet is sealed after the next start.
        """
        if self._closed or os.getpid() != self._process:
            return
        self._closed = True
        if self._archiving is not None:
            self._archiving.close()
        ready = self._sealer.close()
        segments = self._journal.segments if self._journal is not None else ()
        for segment in (*segments, *([ready] if ready else [])):
            segment.file.close()
        if self._archive is not None:
            self._archive.close()
        self._directory.release()

    # --- The archive ----------------------------------------------------------------------------------------------

    def _segments(self) -> tuple[Segment, ...]:
        return self._ready().segments

    def _queue_sealed(self) -> None:
        """Hand the sealed segments to the archive, oldest first; one that is not sealed holds up those after it."""
        if self._archiving is None or self._journal is None:
            return
        with self._queueing:
            for segment in self._journal.segments:
                if segment.ordinal <= self._queued_ordinal:
                    continue
                if not segment.sealed:
                    return
                self._archiving.queue(segment)
                self._queued_ordinal = segment.ordinal

    def _on_archived(self, checkpoint: Checkpoint) -> None:
        """Let go of the segments that the archive has durably; the archiving thread."""
        self._checkpoint = checkpoint
        if self._journal is not None:
            self._journal.remove_archived(checkpoint.ordinal)

    def _backlog_bytes(self) -> int:
        """Return how much is in segments, sealed or not, that the archive has not taken in."""
        journal, archiving = self._journal, self._archiving
        if journal is None or archiving is None:
            return 0
        queued = self._queued_ordinal
        return archiving.backlog_bytes + sum(segment.bytes for segment in journal.segments if segment.ordinal > queued)

    def _steps(self) -> int:
        """Return how many transactions have been written to the archive."""
        return self._archiving.steps if self._archiving is not None else 0

    def _relief_s(self) -> float | None:
        """Return when the archive will have taken in the slice that it is at, None when nobody can tell."""
        return self._archiving.relief_s() if self._archiving is not None else None

    def _guard(self) -> None:
        if os.getpid() != self._process:
            raise error("FORKED", f"{self._directory.path}: opened by process {self._process}, used in {os.getpid()}")
        if self._closed:
            raise error("CLOSED", f"{self._directory.path}: the journal is closed")

    def _ready(self) -> Journal:
        self._guard()
        if self._journal is None:
            raise error("UNAVAILABLE", f"{self._directory.path}: the journal is not recovered yet")
        return self._journal
