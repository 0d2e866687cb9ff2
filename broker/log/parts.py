"""The parts of a stored group, one by one: for who must go on where a checksum is wrong.

`check_group` proves a group as a whole and stops at the first fault. Here each entry and each chunk is taken for
itself, bounds-checked, with its own checksum where it has one, so that what is damaged can be told from what is not.
Plain Python, for care of the data and never for serving. The layouts are drawn in `ext/broker_native/layout.pxd` and
in the specification, §3 and §4.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, NamedTuple

from broker_native.crc32c import crc32c_of

if TYPE_CHECKING:
    from collections.abc import Iterator

GROUP_HEADER = struct.Struct("<IHHQQQQQQIIIIQIIQ")
CHAIN_AT, PREVIOUS_CHAIN_AT = 80, 84
CHUNK_HEADER = struct.Struct("<IIQQQIIQQ")
_ENTRIES_BYTES_AT = 56
_ENTRY_HEADER = struct.Struct("<IHH")
_U64 = struct.Struct("<Q")

ENTRY_CHANNEL, ENTRY_EPOCH, ENTRY_LINE, ENTRY_HEAD, ENTRY_RUN, ENTRY_CLOSE, ENTRY_TRIM, ENTRY_DROP = range(1, 9)
FLAG_GONE = 0x8000
GONE_LOST = 6
"""The reason of a run of sequences whose messages a damaged file took."""


class Entry(NamedTuple):
    """One state change of a group: its kind, and the bytes behind its header."""

    kind: int
    flags: int
    body: bytes


class ChunkPart(NamedTuple):
    """One chunk of a group as its header says it, whether or not its checksum is right.

    `offset` and `size` are bytes in the group, `sequences` is how many it covers from `first` on, and `sound` tells
    whether the checksum is right.
    """

    offset: int
    size: int
    channel: int
    epoch: int
    first: int
    sequences: int
    time_us: int
    sound: bool


def entries_in(entries: bytes) -> Iterator[Entry]:
    """Yield entries one after the other, up to the first whose size cannot be."""
    at = 0
    while len(entries) - at >= _ENTRY_HEADER.size:
        size, kind, flags = _ENTRY_HEADER.unpack_from(entries, at)
        if not _ENTRY_HEADER.size <= size <= len(entries) - at:
            return
        yield Entry(kind, flags, entries[at + _ENTRY_HEADER.size : at + size])
        at += size


def entries_of(group: bytes) -> bytes:
    """Return the bytes of all entries of a group; fewer than its header says if it is shorter."""
    begin = GROUP_HEADER.size
    return group[begin : begin + int.from_bytes(group[_ENTRIES_BYTES_AT : _ENTRIES_BYTES_AT + 4], "little")]


def chunks_of(group: bytes) -> Iterator[ChunkPart]:
    """Yield the chunks of a group, sound or not, up to the first whose size cannot be."""
    at = GROUP_HEADER.size + int.from_bytes(group[_ENTRIES_BYTES_AT : _ENTRIES_BYTES_AT + 4], "little")
    while len(group) - at >= CHUNK_HEADER.size:
        size, crc, channel, epoch, first, count, _, time_us, _ = CHUNK_HEADER.unpack_from(group, at)
        if not CHUNK_HEADER.size <= size <= len(group) - at:
            return
        sound = count > 0 and first > 0 and crc == crc32c_of(memoryview(group)[at + 8 : at + size])
        yield ChunkPart(at, size, channel, epoch, first, count, time_us, sound)
        at += size


def channel_entry(body: bytes) -> tuple[int, bytes] | None:
    """Return (id, name) of a CHANNEL entry's body; None when it is too short to be one."""
    if len(body) < 12 or len(body) < 12 + body[10]:
        return None
    return _U64.unpack_from(body)[0], body[12 : 12 + body[10]]


def numbers(body: bytes, count: int) -> tuple[int, ...] | None:
    """Return the first u64s of an entry's body; None when it is too short."""
    return struct.unpack_from(f"<{count}Q", body) if len(body) >= 8 * count else None


class Record(NamedTuple):
    """One message of a chunk, in the clear; `headers` are packed as they came."""

    sequence: int
    time_us: int
    payload: bytes
    publisher: str | None
    priority: int
    expiry_s: int | None
    key: bytes | None
    headers: bytes | None
    id: bytes | None = None


_RECORD_HEADER = struct.Struct("<IHHI")
_PUBLISHER, _NUMBER, _PRIORITY, _EXPIRY, _KEY, _HEADERS, _ID = 1, 2, 4, 8, 16, 32, 64
PRIORITY_DEFAULT = 2


def records_of(chunk: bytes) -> Iterator[Record]:
    """Yield the messages of a whole chunk whose checksum is right; runs that are gone are passed over."""
    _, _, _, _, sequence, _, _, time_us, _ = CHUNK_HEADER.unpack_from(chunk)
    at = CHUNK_HEADER.size
    while at < len(chunk):
        size, flags, _, delta_us = _RECORD_HEADER.unpack_from(chunk, at)
        if flags & FLAG_GONE:
            sequence += int.from_bytes(chunk[at + 16 : at + 20], "little")
        else:
            yield _record(chunk[at + _RECORD_HEADER.size : at + size], flags, sequence, time_us + delta_us)
            sequence += 1
        at += size


def _record(body: bytes, flags: int, sequence: int, time_us: int) -> Record:
    """Take a record's fields, which stand in the order of their flags, and leave the payload."""
    fields = _Fields(body)
    publisher = fields.take(fields.number(1)).decode("utf-8", "replace") if flags & _PUBLISHER else None
    if flags & _NUMBER:
        fields.number(8)
    priority = fields.number(1) if flags & _PRIORITY else PRIORITY_DEFAULT
    expiry_s = fields.number(4) if flags & _EXPIRY else None
    key = fields.take(fields.number(2)) if flags & _KEY else None
    headers = fields.take(fields.number(2)) if flags & _HEADERS else None
    message_id = fields.take(fields.number(1)) if flags & _ID else None
    return Record(sequence, time_us, fields.rest(), publisher, priority, expiry_s, key, headers, message_id)


class _Fields:
    """Reads a record's fields one after the other."""

    def __init__(self, body: bytes) -> None:
        self._body = body
        self._at = 0

    def take(self, size: int) -> bytes:
        self._at += size
        return self._body[self._at - size : self._at]

    def number(self, size: int) -> int:
        return int.from_bytes(self.take(size), "little")

    def rest(self) -> bytes:
        return self._body[self._at :]
