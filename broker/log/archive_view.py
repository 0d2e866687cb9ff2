"""What retention sees of an archive: its commit index, its channels' rows, and the spans of their chunks.

Reads only, and trusts no row that it has not proved. A view is good as long as the tree that it reads is.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

from broker.log.archive_rows import CHANNEL, CHUNK, CURSOR_KEY, GROUPS
from broker.log.retention import ChannelState, IndexedGroup
from broker_native.archive import unpack_groups
from broker_native.groups import chunk_head
from broker_native.rows import RowDamaged, pack_row, row_body

if TYPE_CHECKING:
    from collections.abc import Iterator

    from broker_native.tree import TreeReader

__all__ = ["ArchiveView", "channel_key", "chunk_key", "cursor_row"]

INDEX_ROWS = 64
SPAN_BYTES = 1 << 20
_COUNTS = struct.Struct("<HHQQ")
_ENTRY = struct.Struct("<IHH")
_NAME = struct.Struct("<QBBBx")
_HEAD = struct.Struct("<QQQQ")
_KIND_CHANNEL, _KIND_HEAD = 1, 4


def channel_key(channel: int) -> bytes:
    """Return the key of a channel's row."""
    return bytes([CHANNEL]) + channel.to_bytes(8, "big")


def chunk_key(channel: int, sequence: int) -> bytes:
    """Return the key of the chunk that begins with a sequence, if there is one."""
    return bytes([CHUNK]) + channel.to_bytes(8, "big") + sequence.to_bytes(8, "big")


def cursor_row(name: bytes, group: int) -> tuple[bytes, bytes]:
    """Return the row of a cursor."""
    key = CURSOR_KEY + name
    return key, pack_row(key, group.to_bytes(8, "little"))


class ArchiveView:
    """One tree of an archive, as `broker.log.retention.View` wants it.

    Args:
        reader: The tree; one thread.

    Every method raises RowDamaged or TreeDamaged when what it meets is not what was written.
    """

    def __init__(self, reader: TreeReader) -> None:
        self.reader = reader

    def index(self, after_group: int, chunks_max: int) -> list[IndexedGroup]:
        """Return groups past one, ascending: about `chunks_max` chunks, at least one group if there is any."""
        found: list[IndexedGroup] = []
        left = chunks_max
        while left > 0:
            rows = self.reader.range(_groups_key(after_group + 1), b"", INDEX_ROWS, SPAN_BYTES)
            for key, value in rows:
                for group, time_us, chunks in unpack_groups(key, value):
                    if group <= after_group:
                        continue
                    if left <= 0:
                        return found
                    found.append(IndexedGroup(group, time_us, chunks))
                    left -= max(1, len(chunks))
            if not rows:
                break
            after_group = int.from_bytes(rows[-1][0][1:], "big")
        return found

    def channels(self, ids: list[int]) -> list[ChannelState | None]:
        """Return the state of each channel, None where there is none any more. The ids ascend."""
        keys = [channel_key(channel) for channel in ids]
        return [
            None if value is None else _state(key, row_body(key, value))
            for key, value in zip(keys, self.reader.get_sorted(keys), strict=True)
        ]

    def chunk_spans(self, channel: int) -> Iterator[tuple[int, int, int]]:
        """Yield (first sequence, count, bytes) of a channel's chunks, oldest first."""
        for _, chunk in self.chunks(channel, 0):
            _, _, first, count = chunk_head(chunk)
            yield first, count, len(chunk)

    def chunks(self, channel: int, begin: int, end: int = 0) -> Iterator[tuple[bytes, bytes]]:
        """Yield (key, chunk) of a channel's rows that have sequences from `begin` on and below `end`, oldest first.

        Args:
            channel: its id.
            begin: a sequence.
            end: the sequence behind the last; 0 for all.
        """
        at = chunk_key(channel, begin)
        past = chunk_key(channel, end) if end else chunk_key(channel + 1, 0)
        for key, value in self.reader.range_back(at, chunk_key(channel, 0), 1, 0):
            _, _, first, count = chunk_head(row_body(key, value))
            if first + count > begin:
                yield key, value
        while rows := self.reader.range(at, past, INDEX_ROWS, SPAN_BYTES):
            for key, value in rows:
                yield key, row_body(key, value)
            at = rows[-1][0] + b"\0"

    def cursors(self) -> dict[bytes, int]:
        """Return every cursor by its name."""
        rows = self.reader.range(CURSOR_KEY, CURSOR_KEY + b"\xff", 1 << 16, 1 << 30)
        return {key[len(CURSOR_KEY) :]: int.from_bytes(row_body(key, value), "little") for key, value in rows}


def _groups_key(group: int) -> bytes:
    return bytes([GROUPS]) + group.to_bytes(8, "big")


def _state(key: bytes, body: bytes) -> ChannelState:
    """Read a channel's row."""
    try:
        _, _, size, _ = _COUNTS.unpack_from(body)
        at, name, first, next_sequence = _COUNTS.size, b"", 1, 1
        while at < len(body):
            entry_size, kind, _ = _ENTRY.unpack_from(body, at)
            if entry_size < _ENTRY.size:
                raise RowDamaged(key)
            if kind == _KIND_CHANNEL:
                *_, name_size = _NAME.unpack_from(body, at + _ENTRY.size)
                begin = at + _ENTRY.size + _NAME.size
                name = body[begin : begin + name_size]
            elif kind == _KIND_HEAD:
                _, _, next_sequence, first = _HEAD.unpack_from(body, at + _ENTRY.size)
            at += entry_size
    except struct.error:
        raise RowDamaged(key) from None
    return ChannelState(name, first, next_sequence, size)
