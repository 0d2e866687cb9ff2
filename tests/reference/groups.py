"""Plain-Python twin of the journal's layouts: builds and parses groups, their entries, chunks and records.

The layouts are those of the protocol's specification (records, chunks) and of `layout.pxd` (groups, entries). Speed
does not matter here, being obviously right does; only the checksum is native, since it has a twin of its own.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from broker_native.crc32c import crc32c_of

if TYPE_CHECKING:
    from collections.abc import Iterable

    from broker_native.crc32c import Buffer

RECORD_HEADER = struct.Struct("<IHHI")
CHUNK_HEADER = struct.Struct("<IIQQQIIQQ")
GROUP_HEADER = struct.Struct("<IHHQQQQQQIIIIQIIQ")
ENTRY_HEADER = struct.Struct("<IHH")
LINE_BODY = struct.Struct("<16sQQII")
LINE_RUN = struct.Struct("<QQI")

GROUP_MAGIC = 0x50524742
GROUP_FORMAT = 1
FLAG_FENCE = 1

CHANNEL, EPOCH, LINE, HEAD, RUN, CLOSE, TRIM, DROP = range(1, 9)
GONE_COMPACTED = 2
IGNORABLE, SNAPSHOT = 1, 2
LINE_WINDOW = 1024


class Malformed(ValueError):
    """A group is not what its header, checksums or sizes say."""


@dataclass(frozen=True)
class Chunk:
    """One chunk: a run of one channel's records. `count` sequences from `first`."""

    channel: int
    epoch: int
    first: int
    count: int
    records: bytes
    time_us: int = 0
    expiry_s: int = 0
    flags: int = 0

    @property
    def last(self) -> int:
        return self.first + self.count - 1


@dataclass(frozen=True)
class Entry:
    """One state change: `kind`, `flags` and the bytes after the entry's header."""

    kind: int
    body: bytes
    flags: int = 0


@dataclass(frozen=True)
class Group:
    """Everything that commits together."""

    number: int
    predecessor: int
    previous_chain: int = 0
    entries: tuple[Entry, ...] = ()
    chunks: tuple[Chunk, ...] = ()
    term: int = 1
    writer: int = 1
    run: int = 1
    time_us: int = 0
    flags: int = 0
    chain: int = field(default=0, compare=False)


# --- Building -----------------------------------------------------------------------------------------------------


def build_record(payload: bytes, time_us: int = 0) -> bytes:
    """Return a record without optional fields."""
    return RECORD_HEADER.pack(RECORD_HEADER.size + len(payload), 0, 0, time_us) + payload


def chunk_of(channel: int, epoch: int, first: int, payloads: Iterable[bytes], time_us: int = 0) -> Chunk:
    """Return the chunk of some payloads, one sequence each."""
    records = [build_record(payload) for payload in payloads]
    return Chunk(channel, epoch, first, len(records), b"".join(records), time_us)


def build_chunk(chunk: Chunk) -> bytes:
    """Return a chunk's bytes with its checksum."""
    size = CHUNK_HEADER.size + len(chunk.records)
    checked = (
        struct.pack(
            "<QQQIIQQ",
            chunk.channel,
            chunk.epoch,
            chunk.first,
            chunk.count,
            chunk.flags,
            chunk.time_us,
            chunk.expiry_s,
        )
        + chunk.records
    )
    return struct.pack("<II", size, crc32c_of(checked)) + checked


def build_entry(entry: Entry) -> bytes:
    """Return an entry's bytes."""
    return ENTRY_HEADER.pack(ENTRY_HEADER.size + len(entry.body), entry.kind, entry.flags) + entry.body


def build_group(group: Group) -> bytes:
    """Return a group's bytes, with the chain checksum that follows from them and `previous_chain`."""
    entries = b"".join(map(build_entry, group.entries))
    chunks = [build_chunk(chunk) for chunk in group.chunks]
    size = GROUP_HEADER.size + len(entries) + sum(map(len, chunks))
    header = GROUP_HEADER.pack(
        GROUP_MAGIC,
        GROUP_FORMAT,
        GROUP_HEADER.size,
        group.number,
        group.predecessor,
        group.term,
        group.writer,
        group.run,
        group.time_us,
        len(entries),
        len(group.entries),
        len(chunks),
        group.flags,
        size,
        0,
        group.previous_chain,
        0,
    )
    chain = crc32c_of(header[:80] + struct.pack("<I", group.previous_chain) + entries)
    for chunk in chunks:
        chain = crc32c_of(chunk[4:8], chain)
    return header[:80] + struct.pack("<I", chain) + header[84:] + entries + b"".join(chunks)


def channel_entry(channel: int, name: str, level: int = 3, shard_tokens: int = 2) -> Entry:
    """Return the entry that creates a channel."""
    return Entry(CHANNEL, struct.pack("<QBBBB", channel, level, shard_tokens, len(name), 0) + name.encode())


def epoch_entry(channel: int, epoch: int, first: int) -> Entry:
    """Return the entry that begins an epoch of a channel."""
    return Entry(EPOCH, struct.pack("<QQQ", channel, epoch, first))


def head_entry(channel: int, epoch: int, next_sequence: int, first: int) -> Entry:
    """Return the entry that states a channel's bounds."""
    return Entry(HEAD, struct.pack("<QQQQ", channel, epoch, next_sequence, first))


def line_entry(producer: bytes, number: int, count: int, runs: Iterable[tuple[int, int, int]], flags: int = 0) -> Entry:
    """Return the entry that moves a producer's line: runs are (channel, first, count) of the last numbers."""
    packed = [LINE_RUN.pack(*run) for run in runs]
    return Entry(LINE, LINE_BODY.pack(producer, number, count, len(packed), 0) + b"".join(packed), flags)


def run_entry(run: int, clean: bool) -> Entry:
    """Return the entry that begins a run."""
    return Entry(RUN, struct.pack("<QB7x", run, clean))


def close_entry(run: int) -> Entry:
    """Return the entry that ends a run in good order."""
    return Entry(CLOSE, struct.pack("<Q", run))


def trim_entry(channel: int, first: int, reason: int = GONE_COMPACTED) -> Entry:
    """Return the entry that takes away what a channel has below a sequence."""
    return Entry(TRIM, struct.pack("<QQB7x", channel, first, reason))


def drop_entry(channel: int) -> Entry:
    """Return the entry that removes a channel."""
    return Entry(DROP, struct.pack("<Q", channel))


# --- Parsing ------------------------------------------------------------------------------------------------------


def parse_chunk(data: bytes) -> Chunk:
    """Return the chunk that some bytes are, wholly.

    Raises:
        Malformed: its size or checksum is wrong.
    """
    if len(data) < CHUNK_HEADER.size:
        raise Malformed("chunk: short")
    size, crc, channel, epoch, first, count, flags, time_us, expiry_s = CHUNK_HEADER.unpack_from(data)
    if size != len(data) or crc != crc32c_of(data[8:]):
        raise Malformed("chunk: size or checksum")
    return Chunk(channel, epoch, first, count, data[CHUNK_HEADER.size :], time_us, expiry_s, flags)


def payloads_of(chunk: Chunk) -> list[bytes]:
    """Return the payloads of a chunk whose records have no optional fields."""
    payloads, at = [], 0
    while at < len(chunk.records):
        size, _, _, _ = RECORD_HEADER.unpack_from(chunk.records, at)
        payloads.append(chunk.records[at + RECORD_HEADER.size : at + size])
        at += size
    return payloads


def parse_entries(data: bytes) -> tuple[Entry, ...]:
    """Return the entries that some bytes are, wholly.

    Raises:
        Malformed: their sizes do not add up.
    """
    entries, at = [], 0
    while at < len(data):
        if len(data) - at < ENTRY_HEADER.size:
            raise Malformed("entry: short")
        size, kind, flags = ENTRY_HEADER.unpack_from(data, at)
        if size < ENTRY_HEADER.size or at + size > len(data):
            raise Malformed("entry: size")
        entries.append(Entry(kind, data[at + ENTRY_HEADER.size : at + size], flags))
        at += size
    return tuple(entries)


def parse_group(data: bytes) -> Group:
    """Return the group that some bytes are, after checking every checksum and size in it.

    Raises:
        Malformed: something is not as the layout demands.
    """
    if len(data) < GROUP_HEADER.size:
        raise Malformed("group: short")
    (
        magic, form, header_bytes, number, predecessor, term, writer, run, time_us,
        entries_bytes, entries_count, chunks_count, flags, size, chain, previous_chain, reserved,
    ) = GROUP_HEADER.unpack_from(data)  # fmt: skip
    if (magic, form, header_bytes, size, reserved) != (GROUP_MAGIC, GROUP_FORMAT, GROUP_HEADER.size, len(data), 0):
        raise Malformed("group: header")
    at = GROUP_HEADER.size + entries_bytes
    entries = parse_entries(data[GROUP_HEADER.size : at])
    chunks: list[Chunk] = []
    expected = crc32c_of(data[:80] + data[84:88] + data[GROUP_HEADER.size : at])
    while at < len(data):
        (chunk_size,) = struct.unpack_from("<I", data, at)
        chunks.append(parse_chunk(data[at : at + chunk_size]))
        expected = crc32c_of(data[at + 4 : at + 8], expected)
        at += chunk_size
    if (len(entries), len(chunks), chain) != (entries_count, chunks_count, expected):
        raise Malformed("group: counts or chain")
    return Group(number, predecessor, previous_chain, entries, tuple(chunks), term, writer, run, time_us, flags, chain)


# --- What a segment's groups come to ------------------------------------------------------------------------------


@dataclass
class Line:
    """A producer's line as a reader of groups knows it: `places` holds the positions of the last numbers."""

    highest: int = 0
    places: dict[int, tuple[int, int]] = field(default_factory=dict)

    def apply(self, entry: Entry) -> None:
        """Apply a LINE entry, a change or a snapshot."""
        _, number, count, runs, _ = LINE_BODY.unpack_from(entry.body)
        if entry.flags & SNAPSHOT or number != self.highest + 1:
            self.places.clear()
        self.highest = number + count - 1
        covered = [
            (channel, first + step)
            for channel, first, length in LINE_RUN.iter_unpack(entry.body[LINE_BODY.size :][: runs * LINE_RUN.size])
            for step in range(length)
        ]
        if len(covered) < count:
            self.places.clear()
        for back, place in enumerate(reversed(covered)):
            self.places[self.highest - back] = place
        for known in [known for known in self.places if known <= self.highest - LINE_WINDOW]:
            del self.places[known]


@dataclass
class Tables:
    """What an applier of groups and table deltas ends up with."""

    channels: dict[int, bytes] = field(default_factory=dict)
    epochs: dict[int, list[tuple[int, int]]] = field(default_factory=dict)
    heads: dict[int, tuple[int, int, int]] = field(default_factory=dict)
    lines: dict[bytes, Line] = field(default_factory=dict)
    runs: list[tuple[int, bytes]] = field(default_factory=list)

    def apply_group(self, group: Buffer) -> None:
        """Apply a stored group."""
        parsed = parse_group(bytes(group))
        for entry in parsed.entries:
            self.apply_entry(entry)
        for chunk in parsed.chunks:
            first = self.heads.get(chunk.channel, (0, 0, 1))[2]
            self.heads[chunk.channel] = (chunk.epoch, chunk.last + 1, first)

    def apply_entries(self, entries: Buffer) -> None:
        """Apply the table delta of a sealed segment."""
        for entry in parse_entries(bytes(entries)):
            self.apply_entry(entry)

    def apply_entry(self, entry: Entry) -> None:
        """Apply one state change."""
        if entry.kind == CHANNEL:
            self.channels[struct.unpack_from("<Q", entry.body)[0]] = entry.body[8:]
        elif entry.kind == EPOCH:
            channel, epoch, first = struct.unpack("<QQQ", entry.body)
            self.epochs.setdefault(channel, []).append((epoch, first))
        elif entry.kind == HEAD:
            channel, epoch, next_sequence, first = struct.unpack("<QQQQ", entry.body)
            first = max(first, self.heads.get(channel, (0, 0, 1))[2])
            self.heads[channel] = (epoch, next_sequence, first)
        elif entry.kind == LINE:
            self.lines.setdefault(entry.body[:16], Line()).apply(entry)
        elif entry.kind == TRIM:
            channel, first, _ = struct.unpack("<QQB7x", entry.body)
            epoch, next_sequence, known = self.heads[channel]
            self.heads[channel] = (epoch, next_sequence, max(first, known))
        elif entry.kind == DROP:
            (channel,) = struct.unpack("<Q", entry.body)
            for rows in (self.channels, self.epochs, self.heads):
                rows.pop(channel, None)
        elif entry.kind in (RUN, CLOSE):
            self.runs.append((entry.kind, entry.body))
