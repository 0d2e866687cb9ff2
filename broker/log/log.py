"""The journal as the rest of the broker sees it: one data directory, opened by one process.

Threads: `open`, `recover_into` and `close` belong to whoever owns the log, `append` and `abandon` to the commit thread,
reads and `stats` to anybody. Nothing may be called while `close` runs or after it, nothing at all in a forked child.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from broker.log.directory import Directory
from broker.log.environment import SYNCS_PER_COMMIT, OpenFiles
from broker.log.journal import Journal
from broker.log.reader import ChannelReader, GroupScan, read_back, sequence_at, time_to_group
from broker.log.recovery import Applier, Recovery, recover
from broker.log.sealer import Sealer
from broker.log.segment import SEQUENCE_MAX
from broker.log.space import Space
from broker.model.errors import error

if TYPE_CHECKING:
    from collections.abc import Container

    from broker_native.crc32c import Buffer

__all__ = ["Applier", "Log"]

MIB = 1024 * 1024
OPEN_SEALED_MAX = 64
"""Sealed segments that are open at once, one file descriptor each: half of the open files that a server keeps from its
connections."""


def map_bytes_for(segment_bytes: int, group_bytes_max: int) -> int:
    """Return the address space that a segment can never outgrow.

    A value takes at most one page more than its bytes and at most twice of them; the index takes 40 bytes for each
    chunk of at least 68, the delta no more than the entries and chunks that it sums up; tree pages that were written
    anew are used again. Twice that again costs nothing, as it is address space only.
    """
    return 8 * (segment_bytes + group_bytes_max) + 16 * MIB


class Log:
    """A journal in a data directory. Use `Log.open`."""

    def __init__(self, directory: Directory, segment_bytes: int, reserve_bytes: int, group_bytes_max: int) -> None:
        """Build the facade over an owned directory; `open` does that."""
        self._directory = directory
        self._process = os.getpid()
        self._segment_bytes = segment_bytes
        self._map_bytes = map_bytes_for(segment_bytes, group_bytes_max)
        self._open_files = OpenFiles(OPEN_SEALED_MAX)
        self._space = Space(directory.journal_path, reserve_bytes)
        self._sealer = Sealer(directory.journal_path, self._map_bytes, self._open_files)
        self._channels = ChannelReader()
        self._journal: Journal | None = None
        self._closed = False

    @classmethod
    def open(
        cls,
        path: str | os.PathLike[str],
        *,
        segment_bytes: int = 64 * MIB,
        reserve_bytes: int = 256 * MIB,
        group_bytes_max: int = 2 * MIB,
    ) -> Log:
        """Take ownership of a data directory, creating it if it is missing or empty.

        Args:
            path: the directory.
            segment_bytes: a segment that holds this much is full, > 0; the group that crosses it goes in whole.
            reserve_bytes: what an append must leave free on the file system, ≥ 0.
            group_bytes_max: the largest group that will be appended.

        Returns:
            A log that has to be replayed by `recover_into` before anything else.

        Raises:
            StorageError: STORAGE_IN_USE naming the owner, STORAGE_FORMAT when the directory is not ours or of a newer
                format, STORAGE_FULL or STORAGE_FAILED when the system refuses.
        """
        return cls(Directory.acquire(Path(path)), segment_bytes, reserve_bytes, group_bytes_max)

    @property
    def journal_id(self) -> bytes:
        """The journal's identity, 16 bytes drawn when it was created."""
        return self._directory.journal_id

    @property
    def last_group(self) -> int:
        """The number of the last good group, 0 when there is none."""
        return self._ready().last.number

    def recover_into(self, applier: Applier) -> Recovery:
        """Replay everything that is stored, oldest first, and make the log ready for use; once, before all else.

        Args:
            applier: gets `apply_entries(table delta)` for each sealed segment, a buffer that is borrowed for the call,
                and `apply_group(bytes)` for each group of the others.

        Returns:
            Where the journal ends.

        Raises:
            StorageError: STORAGE_CORRUPT naming file, group, channel and offset, STORAGE_FORMAT, STORAGE_FULL or
                STORAGE_FAILED; and whatever the applier raises. The log can then only be closed.
        """
        self._guard()
        if self._journal is not None:
            raise ValueError("the log is recovered already")
        found = recover(self._directory.journal_path, self._map_bytes, self._open_files, applier)
        self._sealer.start(found.ready, found.next_ordinal, found.full)
        self._journal = Journal(found.segments, found.last, self._sealer, self._space, self._segment_bytes)
        return found.result

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
        self._ready().append(number, value)

    def abandon(self) -> None:
        """Give the active segment up after an append that failed with `handed_over`; the commit thread only.

        The next group appended names the last good one as its predecessor, which makes the failed one void. Does
        nothing when no append has failed, so it may be repeated.

        Raises:
            AppendFull: there is no room for a fresh segment. AppendError: it cannot be created. Try again later.
        """
        self._ready().abandon()

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
            (group number, index in the group, chunk) each.

        Raises:
            StorageError: STORAGE_CORRUPT when a chunk is not what was written.

        Any thread. A few microseconds a segment looked at, and the copy; a slice that goes on where the last one of
        its channel ended looks at no segment before.
        """
        before_sequence = before_sequence or SEQUENCE_MAX
        return self._channels.read(self._ready().segments, channel_id, after_sequence, bytes_max, before_sequence)

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
            (group number, index in the group, chunk) each.

        Raises:
            StorageError: STORAGE_CORRUPT when a chunk is not what was written.

        Any thread. O(chunks that hold the `count` sequences), and a look-up for each segment on the way back to them.
        """
        return read_back(self._ready().segments, channel_id, before_sequence, count, bytes_max)

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
        scan = GroupScan(after_group, after_index, bytes_max, wanted)
        scan.walk(self._ready().segments)
        return scan.chunks, scan.place

    def time_to_group(self, time_us: int) -> int:
        """Return the number of the first group whose time is `time_us` or later; any thread.

        Args:
            time_us: broker time, microseconds since 1970.

        Returns:
            That number, or the last group's plus one when all are earlier.
        """
        journal = self._ready()
        found = time_to_group(journal.segments, time_us)
        return journal.last.number + 1 if found is None else found

    def stats(self) -> dict[str, int | float]:
        """Return counts since the log was recovered; any thread.

        Returns:
            `commits` (groups appended) and `bytes` (their sizes); `fsyncs`: two for each LMDB commit, appends and
            seals alike (an fdatasync of the pages, a write of the meta page through an O_DSYNC descriptor), one more
            for each seal, and two for each segment made ready (the file and its folder); `segments`, of them
            `sealed`; `seals`, `seal_s` (seconds spent) and `seal_backlog` (full segments that wait).
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
        ready = self._sealer.close()
        segments = self._journal.segments if self._journal is not None else ()
        for segment in (*segments, *([ready] if ready else [])):
            segment.file.close()
        self._directory.release()

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
