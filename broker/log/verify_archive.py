"""Judges an archive: each row by itself, each row against its neighbours, and the sums against what they sum up.

Channels stand in the order of their ids, and so do their chunks, far behind: two walks go side by side, so that one
channel is in memory at a time. Names stand in an order of their own; they are compared with the channels by a sum, and
one by one only if that differs.

A slice that was cut short is no fault: what it has brought is whole, and the checkpoint's counts are those of before.
"""

from __future__ import annotations

import hashlib
import struct
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeAlias

from broker.log.archive_rows import (
    CHANNEL,
    CHECKPOINT_KEY,
    CHUNK,
    GROUPS,
    LATEST,
    LINE,
    META,
    NAME,
    Checkpoint,
    describe_key,
)
from broker.log.environment import check_file
from broker.log.pages import Row, open_pages
from broker.log.parts import CHUNK_HEADER, ENTRY_CHANNEL, ENTRY_EPOCH, ENTRY_HEAD, channel_entry, entries_in, numbers
from broker.log.slice import SLICE_KEY, Begun
from broker.model.errors import StorageError
from broker_native.archive import find_channels, unpack_groups
from broker_native.btree import TreeDamaged
from broker_native.crc32c import crc32c_of
from broker_native.rows import RowDamaged, row_body
from broker_native.tree import MappedFile, TreeReader

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from broker.log.verify import Verifier

_CHANNEL_ROW = struct.Struct("<HHQQ")
_TRANSACTION_AT = 144
_SUM_MASK = 2**64 - 1

# Within a class whose field is called `bytes`.
Value: TypeAlias = bytes


@dataclass(slots=True)
class ChannelRow:
    """What the row of a channel says."""

    id: int
    name: bytes = b""
    bytes: int = 0
    chunks: int = 0
    epochs: list[tuple[int, int]] = field(default_factory=list)
    next: int = 1
    first: int = 1

    @classmethod
    def parse(cls, key: Value, body: Value) -> ChannelRow:
        """Parse a row whose checksum is right."""
        _, _, size, chunks = _CHANNEL_ROW.unpack_from(body)
        row = cls(int.from_bytes(key[1:9], "big"), bytes=size, chunks=chunks)
        row.take(body[_CHANNEL_ROW.size :])
        return row

    def take(self, entries: Value) -> None:
        """Take the entries of the row in."""
        for entry in entries_in(entries):
            if entry.kind == ENTRY_CHANNEL and (created := channel_entry(entry.body)):
                self.name = created[1] if created[0] == self.id else b""
            elif entry.kind == ENTRY_EPOCH and (epoch := numbers(entry.body, 3)):
                self.epochs.append((epoch[1], epoch[2]))
            elif entry.kind == ENTRY_HEAD and (head := numbers(entry.body, 4)):
                self.next, self.first = head[2], head[3]


class ArchiveTables:
    """Looks channels up in an archive that nobody writes to.

    Args:
        path: the file.

    Raises:
        StorageError: the file cannot be read at all.
    """

    def __init__(self, path: Path) -> None:
        meta_at = check_file(path)
        with path.open("rb") as file:
            file.seek(meta_at + _TRANSACTION_AT)
            transaction = int.from_bytes(file.read(8), "little")
        self._mapped = MappedFile(str(path), path.stat().st_size)
        try:
            self._reader: TreeReader | None = TreeReader(self._mapped, transaction)
        except (TreeDamaged, LookupError):
            self._reader = None

    def find(self, ids: list[int]) -> list[ChannelRow | None]:
        """Return the rows of channels, ascending; None for each that is not there, or not readable."""
        if self._reader is None:
            return [None] * len(ids)
        try:
            found = find_channels(self._reader, ids)
        except (TreeDamaged, RowDamaged):
            return [None] * len(ids) if len(ids) == 1 else [row for each in ids for row in self.find([each])]
        rows: list[ChannelRow | None] = []
        for channel, entries in zip(ids, found, strict=True):
            row = ChannelRow(channel)
            row.take(entries)
            rows.append(row if entries else None)
        return rows

    def close(self) -> None:
        """Let the file go."""
        self._reader = None
        self._mapped.close()


class ArchiveCheck:
    """Judges one archive.

    Args:
        verifier: whose report it adds to.
        path: the file.
        tables: the same file, for look-ups.

    Attributes:
        checkpoint: up to where the archive goes; None when that cannot be read.
        begun_ordinal: the last segment of a slice that was cut short, 0 when none was.
    """

    def __init__(self, verifier: Verifier, path: Path, tables: ArchiveTables) -> None:
        self.checkpoint: Checkpoint | None = None
        self.begun_ordinal = 0
        self._verifier = verifier
        self._path = path
        self._tables = tables
        self._damaged = False
        self._counts = dict.fromkeys((NAME, CHANNEL, LINE, CHUNK), 0)
        self._sums = {NAME: 0, CHANNEL: 0}
        self._bytes = self._records = 0
        self._channels: Iterator[ChannelRow] = iter(())
        self._ahead: ChannelRow | None = None
        self._channel: ChannelRow | None = None
        self._expected = self._seen_bytes = self._seen_chunks = 0
        self._last_group = 0

    def run(self) -> None:
        """Walk the file."""
        with open_pages(self._path, self._tell_page) as pages, open_pages(self._path, _ignore) as beside:
            self._channels = _channel_rows(beside.rows())
            self._ahead = next(self._channels, None)
            for row in pages.rows():
                self._verifier.advance(len(row.key) + len(row.value))
                _JUDGES.get(row.key[0], ArchiveCheck._take_unknown)(self, row)
            self._finish_channels(None)
        self._check_sums()

    def tell(self, what: str, cost: str, **more: object) -> None:
        """Report a fault of the archive."""
        self._damaged = True
        self._verifier.tell(self._path, what, cost, **more)

    def _tell_page(self, offset: int, what: str) -> None:
        self.tell(what, "the rows below it cannot be reached; what they hold is named below", offset=offset)

    def _body(self, row: Row, cost: str) -> bytes | None:
        try:
            return row_body(row.key, row.value)
        except RowDamaged:
            self.tell(f"{describe_key(row.key)}: its checksum is wrong", cost, offset=row.offset)
            return None

    def _take_unknown(self, row: Row) -> None:
        self.tell(f"holds an unknown row {row.key!r:.80}", "nothing is lost", offset=row.offset)

    def _take_meta(self, row: Row) -> None:
        if row.key == CHECKPOINT_KEY:
            try:
                self.checkpoint = Checkpoint.unpack(row.value, self._path)
            except StorageError as failure:
                self.tell(failure.detail.removeprefix(f"{self._path}: "), "the archive cannot be opened",
                          offset=row.offset)  # fmt: skip
            return
        if self._body(row, "work that was begun is begun once more") is not None and row.key == SLICE_KEY:
            try:
                self.begun_ordinal = Begun.unpack(row.value, self._path).ordinal
            except StorageError:
                self.tell(f"{describe_key(row.key)}: says nothing", "nothing more is archived", offset=row.offset)

    def _take_name(self, row: Row) -> None:
        self._counts[NAME] += 1
        body = self._body(row, "the channel is not found by its name")
        if body is not None:
            self._sums[NAME] += _mixed(int.from_bytes(body, "little"), row.key[1:])

    def _take_channel(self, row: Row) -> None:
        self._counts[CHANNEL] += 1
        body = self._body(row, "the channel cannot be read")
        if body is not None:
            found = ChannelRow.parse(row.key, body)
            self._sums[CHANNEL] += _mixed(found.id, found.name)
            if not found.name or not 1 <= found.first <= found.next:
                self.tell(f"{describe_key(row.key)}: its entries contradict each other", "the channel cannot be read",
                          offset=row.offset, channel=_named(found))  # fmt: skip

    def _take_line(self, row: Row) -> None:
        self._counts[LINE] += 1
        self._body(row, "repeated publishes of the producer are not recognised")

    def _take_latest(self, row: Row) -> None:
        self._body(row, "the newest record of the key is not found by it")

    # --- Chunks -----------------------------------------------------------------------------------------------------

    def _take_chunk(self, row: Row) -> None:
        channel, first = int.from_bytes(row.key[1:9], "big"), int.from_bytes(row.key[9:17], "big")
        if self._channel is None or self._channel.id != channel:
            self._finish_channels(channel)
            self._begin_channel(row, channel, first)
        name = _named(self._channel)
        size, crc, said, epoch, chunk_first, sequences = _header(row.value)
        if (size, said, chunk_first) != (len(row.value), channel, first) or crc != crc32c_of(row.value[8:]):
            self.tell("a chunk is not what was written", "its messages are lost", offset=row.offset, channel=name,
                      epoch=epoch, first=first, last=first)  # fmt: skip
            return
        if first != self._expected:
            self._tell_gap(row, name, epoch, first)
        if self._channel is not None and epoch != _epoch_at(self._channel, first):
            self.tell("a chunk's epoch is not its channel's", "positions of the epoch are refused as diverged",
                      offset=row.offset, channel=name, epoch=epoch, first=first,
                      last=first + sequences - 1)  # fmt: skip
        self._counts[CHUNK] += 1
        self._expected = first + sequences
        self._seen_bytes += size
        self._seen_chunks += 1
        self._bytes += size
        self._records += sequences
        self._verifier.report.chunks += 1
        self._verifier.report.records += sequences
        self._verifier.on_chunk(channel, row.value)

    def _tell_gap(self, row: Row, name: str, epoch: int, first: int) -> None:
        twice = first < self._expected
        self.tell(
            "sequences are there twice" if twice else "sequences are missing before this chunk",
            "a position names two messages" if twice else "these messages are lost",
            offset=row.offset, channel=name, epoch=epoch, first=min(first, self._expected),
            last=max(first, self._expected) - 1,
        )  # fmt: skip

    def _begin_channel(self, row: Row, channel: int, first: int) -> None:
        """Begin with a channel's chunks; its row, if there is one, is the one ahead now."""
        if self._ahead is None or self._ahead.id != channel:
            self.tell("a chunk's channel has no row", "its messages cannot be asked for by a name",
                      offset=row.offset, channel=f"(id {channel})")  # fmt: skip
            self._channel = ChannelRow(channel, next=0)
        else:
            self._channel = self._ahead
            self._ahead = next(self._channels, None)
        # The first row may begin before what the channel still has.
        self._expected = first if first <= self._channel.first or not self._channel.next else self._channel.first
        self._seen_bytes = self._seen_chunks = 0

    def _finish_channels(self, until: int | None) -> None:
        """End the channel whose chunks were walked, and pass over those before `until`, which have none."""
        if self._channel is not None and self._channel.next:
            self._finish(self._channel)
        self._channel = None
        while self._ahead is not None and (until is None or self._ahead.id < until):
            self._expected, self._seen_bytes, self._seen_chunks = self._ahead.first, 0, 0
            self._finish(self._ahead)
            self._ahead = next(self._channels, None)

    def _finish(self, row: ChannelRow) -> None:
        """Compare what a channel's row says with the chunks that were met."""
        if self._expected < row.next:
            self.tell("sequences are missing at the end of the channel's chunks", "these messages are lost",
                      channel=_named(row), epoch=_epoch_at(row, row.next - 1), first=self._expected,
                      last=row.next - 1)  # fmt: skip
        elif (self._expected, self._seen_bytes, self._seen_chunks) != (row.next, row.bytes, row.chunks):
            self.tell(
                f"its row says next {row.next}, {row.bytes} bytes in {row.chunks} chunks; there are next "
                f"{self._expected}, {self._seen_bytes} bytes in {self._seen_chunks} chunks",
                "retention counts wrongly", channel=_named(row),
            )  # fmt: skip

    # --- The commit index, and sums ---------------------------------------------------------------------------------

    def _take_groups(self, row: Row) -> None:
        try:
            groups = unpack_groups(row.key, row.value)
        except RowDamaged:
            self.tell(f"{describe_key(row.key)}: its checksum is wrong",
                      "reading in the order of commits misses these groups", offset=row.offset)  # fmt: skip
            return
        if groups and (groups[0][0] <= self._last_group or groups[-1][0] != int.from_bytes(row.key[1:9], "big")):
            self.tell(f"{describe_key(row.key)}: its groups are not past those before it",
                      "reading in the order of commits is wrong", offset=row.offset)  # fmt: skip
        self._last_group = groups[-1][0] if groups else self._last_group
        self._verifier.report.groups += len(groups)
        ends: dict[int, int] = {}
        for _, _, chunks in groups:
            for channel, first, count in chunks:
                ends[channel] = max(ends.get(channel, 0), first + count)
        ids = sorted(ends)
        for channel, found in zip(ids, self._tables.find(ids), strict=True):
            # A channel that was dropped since is not there any more.
            if found is not None and ends[channel] > found.next:
                self.tell(f"the commit index names sequence {ends[channel] - 1}, the channel ends before "
                          f"{found.next}", "reading in the order of commits is wrong", offset=row.offset,
                          channel=_named(found))  # fmt: skip

    def _check_sums(self) -> None:
        if self._sums[NAME] & _SUM_MASK != self._sums[CHANNEL] & _SUM_MASK and not self._damaged:
            self._compare_names()
        if self.checkpoint is None:
            if not self._damaged:
                self.tell("it has no checkpoint", "the archive cannot be opened")
            return
        if self._last_group > self.checkpoint.group and not self.begun_ordinal:
            self.tell(f"the commit index goes up to group {self._last_group}, the checkpoint to "
                      f"{self.checkpoint.group}", "groups may be there twice")  # fmt: skip
        if self.begun_ordinal or self._damaged:
            return
        said = (self.checkpoint.channels, self.checkpoint.producers, self.checkpoint.records, self.checkpoint.bytes)
        found = (self._counts[CHANNEL], self._counts[LINE], self._records, self._bytes)
        if said != found:
            self.tell(f"the checkpoint counts (channels, producers, records, bytes) {said}, there are {found}",
                      "figures are wrong, nothing is lost")  # fmt: skip

    def _compare_names(self) -> None:
        """Find out which name leads to a channel of another one, or to none."""
        with open_pages(self._path, _ignore) as pages:
            names = {row.key[1:]: int.from_bytes(row_body(row.key, row.value), "little")
                     for row in pages.rows() if row.key[0] == NAME}  # fmt: skip
        with open_pages(self._path, _ignore) as pages:
            for row in _channel_rows(pages.rows()):
                if names.pop(row.name, None) != row.id:
                    self.tell("its name does not lead to it", "the channel is not found by its name",
                              channel=_named(row))  # fmt: skip
        for name in names:
            self.tell("the name leads to no channel", "it cannot be created or read",
                      channel=name.decode("ascii", "backslashreplace"))  # fmt: skip


def _ignore(offset: int, what: str) -> None:
    """The other walk tells it."""


def _channel_rows(rows: Iterator[Row]) -> Iterator[ChannelRow]:
    """Yield the channels whose rows are sound, in the order of their ids."""
    for row in rows:
        if row.key[0] > CHANNEL:
            return
        if row.key[0] == CHANNEL:
            try:
                yield ChannelRow.parse(row.key, row_body(row.key, row.value))
            except RowDamaged:
                continue


def _header(chunk: bytes) -> tuple[int, int, int, int, int, int]:
    """Return size, crc, channel, epoch, first and sequences of a chunk, zeros when it is too short."""
    return CHUNK_HEADER.unpack_from(chunk)[:6] if len(chunk) >= CHUNK_HEADER.size else (0,) * 6


def _epoch_at(row: ChannelRow, sequence: int) -> int:
    """Return the epoch of a sequence, 0 when the channel had none yet."""
    return max(((first, epoch) for epoch, first in row.epochs if first <= sequence), default=(0, 0))[1]


def _named(row: ChannelRow | None) -> str:
    if row is None or not row.name:
        return f"(id {row.id})" if row is not None else ""
    return row.name.decode("ascii", "backslashreplace")


def _mixed(channel: int, name: bytes) -> int:
    return int.from_bytes(hashlib.blake2b(channel.to_bytes(8, "little") + name, digest_size=8).digest(), "little")


_JUDGES: dict[int, Callable[[ArchiveCheck, Row], None]] = {
    META: ArchiveCheck._take_meta,
    NAME: ArchiveCheck._take_name,
    CHANNEL: ArchiveCheck._take_channel,
    LINE: ArchiveCheck._take_line,
    CHUNK: ArchiveCheck._take_chunk,
    LATEST: ArchiveCheck._take_latest,
    GROUPS: ArchiveCheck._take_groups,
}
