"""One slice on its way into the archive: which segments it is made of, and what each transaction of it writes.

A slice is a run of consecutive sealed segments right behind the checkpoint. It goes in by channel: their rows and
chunks first, in as many transactions as it takes, then the producers' lines and the commit index, and the checkpoint
with the last of them. Until then readers take everything of the slice from its segments, and what the archive already
has of it says the same.

A row `slice` says, from the first transaction to the last, how far the slice goes and what it added so far. A slice
that was cut short must be repeated at least as far: a channel that its later segments drop is gone already, and its
earlier segments alone would bring it back.
"""

from __future__ import annotations

import heapq
import struct
from dataclasses import astuple, dataclass, replace
from itertools import groupby, islice
from operator import itemgetter
from typing import TYPE_CHECKING

from broker.log.archive_rows import CHECKPOINT_KEY, GROUPS, LINE_PREFIX
from broker.log.environment import reading_tree
from broker.log.errors import corrupt
from broker.log.lines import merge_lines
from broker_native.archive import GroupsPacker
from broker_native.btree import TreeDamaged
from broker_native.rows import RowDamaged, pack_row, row_body
from broker_native.slices import SliceDamaged, SliceMerger, SliceSource

if TYPE_CHECKING:
    from collections.abc import Iterator
    from contextlib import ExitStack
    from pathlib import Path

    import lmdb

    from broker.log.archive_rows import Checkpoint
    from broker.log.segment import Seal, Segment
    from broker_native.tree import TreeReader

SLICE_KEY = b"\0slice"
GROUPS_PREFIX = bytes([GROUPS])
KIB = 1024
DIRTY_PER_TURN = 256 * KIB
"""What rows may cost that are made at once: about what a processor's second cache holds, with the pages they are in."""
_BEGUN = struct.Struct("<Qqqqq")
_TABLE = struct.Struct("<QI")
_LINES_PER_TURN = 256
_PRODUCER = itemgetter(0)


@dataclass(frozen=True, slots=True)
class Begun:
    """A slice that is on its way: `ordinal` of its last segment, and by how much the totals changed so far."""

    ordinal: int
    channels: int = 0
    producers: int = 0
    records: int = 0
    chunk_bytes: int = 0

    def pack(self) -> bytes:
        """Return the value of the row."""
        return pack_row(SLICE_KEY, _BEGUN.pack(*astuple(self)))

    @classmethod
    def unpack(cls, value: bytes, path: Path) -> Begun:
        """Parse the value of the row.

        Raises:
            StorageError: STORAGE_CORRUPT.
        """
        try:
            return cls(*_BEGUN.unpack(row_body(SLICE_KEY, value)))
        except (RowDamaged, struct.error):
            raise corrupt(path, "the row of the slice on its way is damaged") from None


class SliceSegment:
    """A sealed segment as a slice reads it: mapped and walked without LMDB, as long as `files` is open."""

    def __init__(self, segment: Segment, files: ExitStack) -> None:
        """Map a segment's file.

        Raises:
            StorageError: it is damaged, or the system refuses.
        """
        if segment.seal is None:
            raise AssertionError(f"{segment.path} is not sealed")
        self.path = segment.path
        self.ordinal = segment.ordinal
        self.seal: Seal = segment.seal
        self.lines = segment.line_entries()
        tables = None
        if self.seal.old is not None:
            tables = b"".join(_TABLE.pack(key, len(entries)) + entries for key, entries in segment.table_entries())
        reader = files.enter_context(reading_tree(self.path))
        try:
            self.source = SliceSource(reader, self.seal.last.number, self.seal.groups, self.seal.pages, tables)
        except SliceDamaged as damage:
            raise corrupt(self.path, f"{damage.reason} is wrong: offset {damage.offset}") from damage


class Slice:
    """Writes one slice, a transaction at a time.

    Args:
        path: the archive, for errors.
        segments: consecutive, oldest first.
        checkpoint: what the archive holds before it.
        begun: the slice that was cut short before, if any.
        dirty_max: about how many bytes of pages a transaction may write.

    Attributes:
        begun: how far it has come.
        dirty_bytes: about what the last step writes.
    """

    def __init__(
        self, path: Path, segments: list[SliceSegment], checkpoint: Checkpoint, begun: Begun | None, dirty_max: int
    ) -> None:
        self._path = path
        self._segments = segments
        self._checkpoint = checkpoint
        self._dirty_max = dirty_max
        _check_chain(segments, checkpoint)
        last = segments[-1].ordinal
        if begun is not None and begun.ordinal > last:
            raise ValueError(f"a slice up to segment {begun.ordinal} was begun, got segments up to {last}")
        self.begun = replace(begun, ordinal=last) if begun is not None else Begun(last)
        self._merger = SliceMerger([segment.source for segment in segments])
        self._merged = False
        self._lines: Iterator[tuple[bytes, list[bytes]]] | None = _grouped(segments)
        self._groups: Iterator[tuple[bytes, bytes]] | None = None
        self.dirty_bytes = 0

    @property
    def progress(self) -> float:
        """How much of it has been put into transactions, 0.0 to 1.0; channels alone count, the rest is little."""
        return self._merger.progress()

    def step(self, transaction: lmdb.Transaction, reader: TreeReader) -> Checkpoint | None:
        """Put the next part of the slice into a transaction.

        Args:
            transaction: a write transaction in which nothing has been done; the caller commits it.
            reader: the archive as the last commit left it.

        Returns:
            The new checkpoint, when this was the last part; None otherwise.

        Raises:
            StorageError: STORAGE_CORRUPT naming the file, channel and group. LMDB's errors pass through.
        """
        try:
            done = self._put(transaction, reader)
        except SliceDamaged as damage:
            raise self._corrupt(damage) from damage
        except TreeDamaged as damage:
            raise corrupt(self._path, str(damage)) from damage
        except RowDamaged as damage:
            raise corrupt(self._path, f"row {damage.key.hex()}: its checksum is wrong") from damage
        if not done:
            transaction.put(SLICE_KEY, self.begun.pack())
            return None
        transaction.delete(SLICE_KEY)
        checkpoint = self._finished()
        transaction.put(CHECKPOINT_KEY, checkpoint.pack())
        return checkpoint

    def _put(self, transaction: lmdb.Transaction, reader: TreeReader) -> bool:
        left = self._dirty_max
        self.dirty_bytes = 0
        if not self._merged:
            left -= self._put_channels(transaction, reader)
        if self._merged and left > 0 and self._lines is not None:
            left -= self._put_lines(transaction, reader, left)
        if not self._merged or self._lines is not None or left <= 0:
            return False
        return self._put_groups(transaction, reader, left)

    def _put_channels(self, transaction: lmdb.Transaction, reader: TreeReader) -> int:
        """Put rows of channels, a few at a time: what is read for them is in the caches when they are written."""
        dirty = channels = records = chunk_bytes = 0
        names: list[tuple[bytes, bytes]] = []
        with transaction.cursor() as by_channel, transaction.cursor() as by_chunk:
            full = False
            while not full and dirty < self._dirty_max:
                rows = self._merger.merge(reader, min(self._dirty_max - dirty, DIRTY_PER_TURN))
                for key in rows.deletes:
                    transaction.delete(key)
                names += rows.names
                by_channel.putmulti(rows.channels)
                by_chunk.putmulti(rows.chunks)
                channels += rows.channels_added
                records += rows.records_added
                chunk_bytes += rows.bytes_added
                dirty += rows.dirty_bytes
                self._merged = rows.done
                full = rows.done or rows.full
            # In an order of their own. A name that a dropped channel gave free is only given to one of a higher id.
            names.sort()
            by_channel.putmulti(names)
        self.begun = replace(
            self.begun,
            channels=self.begun.channels + channels,
            records=self.begun.records + records,
            chunk_bytes=self.begun.chunk_bytes + chunk_bytes,
        )
        self.dirty_bytes += dirty
        return dirty

    def _put_lines(self, transaction: lmdb.Transaction, reader: TreeReader, dirty_max: int) -> int:
        """Put producers' lines until there are none left; `_lines` is None then."""
        assert self._lines is not None
        dirty = producers = 0
        while dirty < dirty_max:
            batch = list(islice(self._lines, _LINES_PER_TURN))
            keys = [LINE_PREFIX + producer for producer, _ in batch]
            for key, stored, (_, entries) in zip(keys, reader.get_sorted(keys), batch, strict=True):
                merged = merge_lines(None if stored is None else row_body(key, stored), entries)
                transaction.put(key, pack_row(key, merged))
                producers += stored is None
                dirty += len(merged) + 4 * KIB
            if len(batch) < _LINES_PER_TURN:
                self._lines = None
                break
        self.begun = replace(self.begun, producers=self.begun.producers + producers)
        self.dirty_bytes += dirty
        return dirty

    def _put_groups(self, transaction: lmdb.Transaction, reader: TreeReader, dirty_max: int) -> bool:
        """Append rows of the commit index; tell whether there are none left."""
        if self._groups is None:
            newest = reader.range_back(b"", GROUPS_PREFIX, 1, 0)
            # Rows of a pass that was cut short count; where they end, this one goes on.
            after = self._checkpoint.group
            for key, value in newest:
                row_body(key, value)
                after = int.from_bytes(key[1:], "big")
            self._groups = self._commit_rows(after)
        for key, value in self._groups:
            transaction.put(key, value, append=True)
            self.dirty_bytes += len(value)
            dirty_max -= len(value)
            if dirty_max <= 0:
                return False
        return True

    def _commit_rows(self, after: int) -> Iterator[tuple[bytes, bytes]]:
        """Yield the rows of the groups past one."""
        packer = GroupsPacker()
        for segment in self._segments:
            for index in range(len(segment.source)):
                number, group = segment.source.group(index)
                if number > after and (row := packer.add(group)) is not None:
                    yield row
        if (row := packer.finish()) is not None:
            yield row

    def _finished(self) -> Checkpoint:
        """Return the checkpoint after the slice."""
        before, begun = self._checkpoint, self.begun
        last = self._segments[-1].seal.last
        return replace(
            before,
            ordinal=begun.ordinal,
            group=last.number,
            chain=last.chain,
            time_us=last.time_us,
            term=last.term,
            run=last.run,
            closed_run=last.closed_run,
            unclean_run=max(before.unclean_run, *(segment.seal.unclean_run for segment in self._segments)),
            id_next=max(before.id_next, *(segment.seal.id_next for segment in self._segments)),
            channels=before.channels + begun.channels,
            producers=before.producers + begun.producers,
            records=before.records + begun.records,
            bytes=before.bytes + begun.chunk_bytes,
        )

    def _corrupt(self, damage: SliceDamaged) -> Exception:
        """Return the error for damage, naming the file that it is in."""
        path = self._path if damage.source is None else self._segments[damage.source].path
        where = f"group {damage.group}, offset {damage.offset}" if damage.group else f"offset {damage.offset}"
        return corrupt(path, f"{damage.reason} is wrong: channel {damage.channel}, {where}")


def _grouped(segments: list[SliceSegment]) -> Iterator[tuple[bytes, list[bytes]]]:
    """Yield (producer, its LINE entries, oldest first), by producer."""
    merged = heapq.merge(*(segment.lines for segment in segments), key=_PRODUCER)
    for producer, rows in groupby(merged, _PRODUCER):
        yield producer, [entry for _, entry in rows]


def _check_chain(segments: list[SliceSegment], checkpoint: Checkpoint) -> None:
    """Check that the segments follow the checkpoint and each other.

    Raises:
        StorageError: STORAGE_CORRUPT: one is missing.
    """
    number, chain = checkpoint.group, checkpoint.chain
    for segment in segments:
        if (segment.seal.predecessor, segment.seal.previous_chain) != (number, chain):
            raise corrupt(
                segment.path,
                f"follows group {segment.seal.predecessor}, but what is archived before it ends with group {number}:"
                " a segment is missing or damaged",
            )
        number, chain = segment.seal.last.number, segment.seal.last.chain
