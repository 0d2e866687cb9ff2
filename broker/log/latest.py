"""Keeping, in the archive, of each key only the latest record: the compacted channels.

A table row per (channel, key) says which sequence is the latest. A walk of the commit index, with a cursor of its own,
looks at every chunk that came: it moves the rows of the keys that it meets forward, and puts GONE runs in the place of
the records that they pointed at, and of those that are superseded where they stand. A second walk follows at the
distance of the policy's tombstones: a record that deletes its key is taken out itself, with its row.

Sequences stay dense and chunks keep their keys, so readers and cursors notice nothing but the runs. What is behind the
walk, in the archive or not yet in it, may show a reader older records of a key, and always the latest after them.

Invariants: a row never goes back; of a key, everything below its row's sequence that the walk has passed is gone; the
second walk is never ahead of the first, so a tombstone is the last record of its key that there is. A step is whole in
one transaction with its cursors, and repeating it changes nothing.
"""

from __future__ import annotations

import struct
from dataclasses import replace
from itertools import takewhile
from typing import TYPE_CHECKING

from broker.log.archive_rows import CHECKPOINT_KEY, LATEST, Checkpoint
from broker.log.archive_view import ArchiveView, channel_key, chunk_key, cursor_row
from broker.log.errors import corrupt
from broker_native.chunks import chunk_compact, chunk_keys
from broker_native.rows import pack_row, row_body

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from pathlib import Path

    from broker.log.retention import ChannelState, IndexedGroup, Policies

__all__ = ["LatestStep", "cursor_names"]

STEP_CHUNKS_MAX = 1_024
"""Chunks of the index that a step looks at: at most 64 MiB of records, as a chunk has 64 KiB."""
_SIZE_AT = 4
_SIZE = struct.Struct("<Q")


def cursor_names(policies: Policies) -> set[bytes]:
    """Return the cursors that compaction keeps under these policies."""
    if not policies.compacted:
        return set()
    return {_latest_cursor(policies), *(_deleted_cursor(policies, us) for us in policies.tombstones_us)}


def _latest_cursor(policies: Policies) -> bytes:
    return f"latest {policies.fingerprint:08x}".encode()


def _deleted_cursor(policies: Policies, tombstone_us: int) -> bytes:
    return f"deleted {tombstone_us} {policies.fingerprint:08x}".encode()


class LatestStep:
    """One bounded step of compaction by key: rows to put and to delete.

    Args:
        path: The archive, for errors.
        view: Of the archive as the last commit left it.
        policies: Of the channels.
        cursors: As they are stored.

    Attributes:
        puts: Rows to put, the cursors' among them.
        deletes: Keys of rows to delete.
        more: Whether a walk has not reached its end.
    """

    def __init__(self, path: Path, view: ArchiveView, policies: Policies, cursors: Mapping[bytes, int]) -> None:
        self.puts: dict[bytes, bytes] = {}
        self.deletes: set[bytes] = set()
        self.more = False
        self._path = path
        self._view = view
        self._policies = policies
        self._cursors = dict(cursors)
        self._saved = 0

    def run(self, now_us: int, chunks_max: int = STEP_CHUNKS_MAX) -> None:
        """Take the step.

        Args:
            now_us: The time by which the age of tombstones is judged.
            chunks_max: About how many chunks of the index each walk looks at.

        Raises:
            StorageError: STORAGE_CORRUPT. RowDamaged, TreeDamaged: a row is not what was written.
        """
        if not self._policies.compacted:
            return
        latest = self._walk_latest(chunks_max)
        for tombstone_us in self._policies.tombstones_us:
            self._walk_deleted(tombstone_us, now_us - tombstone_us, latest, chunks_max)
        if self._saved:
            checkpoint = Checkpoint.unpack(self._view.reader.get(CHECKPOINT_KEY), self._path)
            if checkpoint.bytes < self._saved:
                raise corrupt(self._path, "the checkpoint counts fewer bytes than the chunks have")
            self.puts[CHECKPOINT_KEY] = replace(checkpoint, bytes=checkpoint.bytes - self._saved).pack()

    def _walk_latest(self, chunks_max: int) -> int:
        """Take in what came; answers up to which group the rows are right."""
        name = _latest_cursor(self._policies)
        at = self._cursors.get(name, 0)
        spans, at = self._spans(self._view.index(at, chunks_max), at)
        for channel, state in self._states(spans):
            self._take_in(channel, state, *spans[channel])
        self._put_cursor(name, at)
        return at

    def _walk_deleted(self, tombstone_us: int, until_us: int, latest: int, chunks_max: int) -> None:
        """Take out tombstones whose time is up."""
        name = _deleted_cursor(self._policies, tombstone_us)
        at = self._cursors.get(name, 0)
        due = takewhile(
            lambda group: group.time_us <= until_us and group.group <= latest, self._view.index(at, chunks_max)
        )
        spans, at = self._spans(due, at)
        for channel, state in self._states(spans):
            policy = self._policies(state.name)
            if policy is not None and policy.tombstone_us == tombstone_us:
                self._take_out(channel, state, *spans[channel], until_us)
        self._put_cursor(name, at)

    def _spans(self, groups: Iterable[IndexedGroup], at: int) -> tuple[dict[int, tuple[int, int]], int]:
        """Return from where before where each channel has chunks in groups, and the last group, `at` without any."""
        spans: dict[int, tuple[int, int]] = {}
        for group in groups:
            for channel, first, count in group.chunks:
                begin, end = spans.get(channel, (first, first))
                spans[channel] = (min(begin, first), max(end, first + count))
            at = group.group
            self.more = True
        return spans, at

    def _put_cursor(self, name: bytes, group: int) -> None:
        if self._cursors.get(name, 0) != group:
            key, value = cursor_row(name, group)
            self.puts[key] = value

    def _states(self, spans: Mapping[int, tuple[int, int]]) -> Iterator[tuple[int, ChannelState]]:
        """Yield the compacted ones among channels."""
        ids = sorted(spans)
        for channel, state in zip(ids, self._view.channels(ids), strict=True):
            policy = None if state is None else self._policies(state.name)
            if state is not None and policy is not None and policy.latest_per_key:
                yield channel, state

    # -- one channel ---------------------------------------------------------------------------------------------------

    def _take_in(self, channel: int, state: ChannelState, begin: int, end: int) -> None:
        """Move the rows of the keys in [begin, end) forward, and take out what they supersede."""
        begin = max(begin, state.first)
        newest: dict[bytes, int] = {}
        others: set[bytes] = set()
        for _, chunk in self._chunks(channel, begin, end):
            for key, sequence, _, _ in chunk_keys(chunk):
                if sequence >= begin:
                    newest[key] = sequence
                else:
                    others.add(key)
        stored = self._stored(channel, {*newest, *others})
        latest = {key: max(stored.get(key, 0), newest.get(key, 0)) for key in {*newest, *others}}
        superseded = sorted(
            stored[key] for key, sequence in newest.items() if state.first <= stored.get(key, sequence) < sequence
        )
        for sequence in superseded:
            for key, chunk in self._chunks(channel, sequence, sequence + 1):
                self._rewrite(channel, key, chunk, latest, 0)
        for key, chunk in self._chunks(channel, begin, end):
            self._rewrite(channel, key, chunk, latest, 0)
        for key, sequence in newest.items():
            if stored.get(key, 0) < sequence:
                self._put_latest(channel, key, sequence)

    def _take_out(self, channel: int, state: ChannelState, begin: int, end: int, until_us: int) -> None:
        """Take out the tombstones in [begin, end) that are the latest of their keys, and the rows of these."""
        for row, chunk in self._chunks(channel, max(begin, state.first), end):
            deleting = {
                key: sequence
                for key, sequence, time_us, deletes in chunk_keys(chunk)
                if deletes and time_us <= until_us
            }
            stored = self._stored(channel, set(deleting))
            gone = {key: sequence for key, sequence in deleting.items() if stored.get(key) == sequence}
            self._rewrite(channel, row, chunk, gone, until_us)
            for key in gone:
                self.puts.pop(latest_key(channel, key), None)
                self.deletes.add(latest_key(channel, key))

    def _chunks(self, channel: int, begin: int, end: int) -> Iterator[tuple[bytes, bytes]]:
        """Yield the rows of a channel's chunks as this step has made them so far."""
        for key, chunk in self._view.chunks(channel, begin, end):
            yield key, self.puts.get(key, chunk)

    def _rewrite(self, channel: int, row: bytes, chunk: bytes, latest: dict[bytes, int], until_us: int) -> None:
        compacted = chunk_compact(chunk, latest, until_us)
        if compacted is not chunk:
            self.puts[row] = compacted
            self._resize(channel, len(chunk) - len(compacted))

    def _resize(self, channel: int, saved: int) -> None:
        """Have a channel's row and the checkpoint say that chunks got smaller, or larger."""
        key = channel_key(channel)
        value = self.puts.get(key) or self._view.reader.get(key)
        body = bytearray(row_body(key, value or b""))
        (size,) = _SIZE.unpack_from(body, _SIZE_AT)
        _SIZE.pack_into(body, _SIZE_AT, size - saved)
        self.puts[key] = pack_row(key, bytes(body))
        self._saved += saved

    def _stored(self, channel: int, keys: set[bytes]) -> dict[bytes, int]:
        """Return the sequences that the rows of keys say, as this step has made them so far."""
        rows = [latest_key(channel, key) for key in sorted(keys)]
        found: dict[bytes, int] = {}
        for row, value in zip(rows, self._view.reader.get_sorted(rows), strict=True):
            value = None if row in self.deletes else self.puts.get(row, value)
            if value is not None:
                found[row[len(latest_key(channel, b"")) :]] = int.from_bytes(row_body(row, value), "little")
        return found

    def _put_latest(self, channel: int, key: bytes, sequence: int) -> None:
        row = latest_key(channel, key)
        self.deletes.discard(row)
        self.puts[row] = pack_row(row, sequence.to_bytes(8, "little"))


def latest_key(channel: int, key: bytes) -> bytes:
    """Return the key of the row that says which record of a channel is the latest with a key."""
    return bytes([LATEST]) + chunk_key(channel, 0)[1:9] + key
