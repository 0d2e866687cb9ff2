"""A new file with what an archive still needs, in the order of keys: nothing deleted, no page half full.

Rows are appended, so leaves are full; the chunks of a channel are merged as far as a chunk may grow, cut where the
channel begins, and what has expired is left out of them. LMDB's own copy drops free pages and packs nothing.

The archive is read as one commit left it, by its only writer. Every row is proved on the way: a rebuild gives damage no
new checksum, it stops and names it.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import groupby
from typing import TYPE_CHECKING

from broker.log.archive_rows import CHANNEL, CHECKPOINT_KEY, CHUNK, LATEST, describe_key
from broker.log.environment import open_lmdb, remove_file
from broker.log.errors import corrupt
from broker_native.btree import TreeDamaged
from broker_native.chunks import chunk_expire, merge_chunks
from broker_native.rows import RowDamaged, row_body
from broker_native.slices import channel_first, channel_totals, row_limit

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from pathlib import Path

    from broker.log.archive_rows import Checkpoint
    from broker_native.tree import TreeReader

KIB = 1024
HELD_BYTES_MAX = 256 * KIB
"""Chunks of one channel that are merged at a time."""
ROWS_PER_READ = 4096
READ_BYTES = 4096 * KIB
_MAP_MARGIN_BYTES = 1 << 30
ROW_CRC_BYTES = 4

_FIRST = slice(24, 32)
_COUNT = slice(32, 36)

Row = tuple[bytes, bytes]


def rebuild(
    path: Path,
    aside: Path,
    reader: TreeReader,
    checkpoint: Checkpoint,
    transaction_bytes: int,
    between: Callable[[], None],
    now_us: int,
) -> Checkpoint:
    """Write a new file; it is whole and synced on return, and removed if anything is raised.

    Args:
        path: the archive, for errors and its size.
        aside: the new file.
        reader: the archive; nobody commits to it meanwhile.
        checkpoint: the archive's, whose totals become the new file's.
        transaction_bytes: about how much goes into one transaction.
        between: called between transactions; what it raises ends the rebuild.
        now_us: the time by which ages are judged, microseconds since 1970: what has expired by then, and by the
            checkpoint's time, is left out.

    Returns:
        The new file's checkpoint.

    Raises:
        StorageError: STORAGE_CORRUPT naming the row. OSError, lmdb.Error: there is no room, or the disk refused.
    """
    remove_file(aside)
    # Groups that were written under a wrong clock do not vouch for the time.
    source = _Source(path, reader, checkpoint, min(checkpoint.time_us, now_us) // 1_000_000)
    try:
        environment = open_lmdb(aside, 2 * path.stat().st_size + _MAP_MARGIN_BYTES, locks=False)
        try:
            newest = b""
            for batch in _batches(source.rows(), transaction_bytes):
                with environment.begin(write=True) as transaction:
                    for key, value in batch:
                        # A row that comes again, when its totals are known, goes to the place that it has.
                        transaction.put(key, value, append=key > newest)
                        newest = max(key, newest)
                between()
        finally:
            environment.close()
    except BaseException:
        remove_file(aside)
        raise
    return source.checkpoint


def _batches(rows: Iterable[Row], bytes_max: int) -> Iterator[list[Row]]:
    batch: list[Row] = []
    size = 0
    for row in rows:
        batch.append(row)
        size += len(row[0]) + len(row[1])
        if size >= bytes_max:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


class _Source:
    """The rows of a new file, from an archive.

    Attributes:
        checkpoint: its totals are the new file's once all rows have been taken.
    """

    def __init__(self, path: Path, reader: TreeReader, checkpoint: Checkpoint, now_s: int) -> None:
        self.checkpoint = checkpoint
        self._path = path
        self._reader = reader
        self._now_s = now_s

    def rows(self) -> Iterator[Row]:
        """Yield the rows; ascending, but that rows with totals come again once these are known."""
        chunks = bytes([CHUNK])
        past = bytes([CHUNK + 1])
        try:
            yield from self._proved(b"\0", chunks)
            for channel, found in _by_channel(self._proved(chunks, past)):
                yield from self._channel(channel, found)
            yield from self._without_stale(self._proved(past, b""))
        except TreeDamaged as damage:
            raise corrupt(self._path, str(damage)) from damage
        yield CHECKPOINT_KEY, self.checkpoint.pack()

    def _without_stale(self, rows: Iterable[Row]) -> Iterator[Row]:
        """Leave out the rows of keys whose latest record was trimmed, or whose channel is no more."""
        channel, first = b"", 0
        for key, value in rows:
            if key[0] == LATEST:
                if key[1:9] != channel:
                    channel = key[1:9]
                    first = self._first(channel)
                if int.from_bytes(value[ROW_CRC_BYTES:], "little") < first:
                    continue
            yield key, value

    def _first(self, channel: bytes) -> int:
        """Return a channel's first sequence; past every sequence for one that is no more."""
        key = bytes([CHANNEL]) + channel
        row = self._reader.get(key)
        if row is None:
            return 1 << 64
        try:
            row_body(key, row)
            return channel_first(row)
        except (RowDamaged, ValueError):
            raise corrupt(self._path, f"{describe_key(key)} is not what was written") from None

    def _proved(self, begin: bytes, end: bytes) -> Iterator[Row]:
        """Yield rows of a range, each of them proved."""
        while rows := self._reader.range(begin, end, ROWS_PER_READ, READ_BYTES):
            for key, value in rows:
                try:
                    row_body(key, value)
                except RowDamaged as damage:
                    raise corrupt(self._path, f"{describe_key(key)} is not what was written") from damage
            yield from rows
            begin = rows[-1][0] + b"\0"

    def _channel(self, channel: bytes, found: Iterator[bytes]) -> Iterator[Row]:
        """Yield a channel's chunks as the new file has them, and its row with the new totals.

        One without a row is a channel whose removal was cut short.
        """
        key = bytes([CHANNEL]) + channel
        row = self._reader.get(key)
        tally = _Tally(found)
        kept = _Tally(iter(()))
        if row is not None:
            try:
                row_body(key, row)
                kept = _Tally(_merged(tally, channel_first(row), self._now_s))
                for chunk in kept:
                    yield bytes([CHUNK]) + channel + chunk[_FIRST][::-1], chunk
                yield key, channel_totals(key, row, kept.bytes, kept.chunks)
            except (RowDamaged, ValueError) as damage:
                number = int.from_bytes(channel, "big")
                raise corrupt(self._path, f"channel {number}: its chunks or its row are damaged: {damage}") from damage
        for _ in tally:
            pass
        self.checkpoint = replace(
            self.checkpoint,
            records=self.checkpoint.records + kept.records - tally.records,
            bytes=self.checkpoint.bytes + kept.bytes - tally.bytes,
        )


class _Tally:
    """Chunks, counted as they go by."""

    def __init__(self, chunks: Iterator[bytes]) -> None:
        self._all = chunks
        self.chunks = self.records = self.bytes = 0

    def __iter__(self) -> Iterator[bytes]:
        for chunk in self._all:
            self.chunks += 1
            self.records += int.from_bytes(chunk[_COUNT], "little")
            self.bytes += len(chunk)
            yield chunk


def _by_channel(rows: Iterator[Row]) -> Iterator[tuple[bytes, Iterator[bytes]]]:
    """Yield (a channel's id as in keys, its chunks); the caller takes all of one before the next."""
    for channel, found in groupby(rows, lambda row: row[0][1:9]):
        yield channel, (chunk for _, chunk in found)


def _merged(chunks: Iterable[bytes], first: int, now_s: int) -> Iterator[bytes]:
    """Yield the chunks of a channel merged, from its first sequence on, without what has expired."""
    held: list[bytes] = []
    size = 0
    for chunk in chunks:
        held.append(chunk_expire(chunk, now_s))
        size += len(held[-1])
        if size > HELD_BYTES_MAX:
            held = merge_chunks(held, row_limit(size), first - 1)
            # The last one may have room for more.
            yield from held[:-1]
            held = held[-1:]
            size = sum(map(len, held))
    while held:
        limit = row_limit(sum(map(len, held)))
        held = merge_chunks(held, limit, first - 1)
        # What is left after the first row of whole pages is looked at anew; small ones before it end with their epoch.
        end = next((at for at, chunk in enumerate(held, 1) if 2 * len(chunk) > limit), len(held))
        yield from held[:end]
        held = held[end:]
