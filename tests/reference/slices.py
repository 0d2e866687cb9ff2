"""What archiving comes to, whatever the slices: the twin of `broker_native.slices`, from the groups alone.

Also what the tests of archiving need: journals from a seed, segments as files, and the judge of an archive's rows.
"""

from __future__ import annotations

import random
import struct
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from broker.log.environment import open_lmdb
from broker_native.index import SegmentIndex
from broker_native.rows import row_body
from tests.reference.chunks import Item, items_of
from tests.reference.groups import (
    CHANNEL,
    DROP,
    EPOCH,
    HEAD,
    TRIM,
    Chunk,
    Entry,
    Group,
    build_chunk,
    build_entry,
    build_group,
    channel_entry,
    chunk_of,
    drop_entry,
    epoch_entry,
    head_entry,
    parse_entries,
    parse_group,
    trim_entry,
)

if TYPE_CHECKING:
    from pathlib import Path

TABLE_HEAD = struct.Struct("<QI")
HOUR_US = 3_600_000_000


@dataclass
class Channel:
    """What the log has of a channel."""

    created: bytes = b""
    epochs: list[tuple[int, int]] = field(default_factory=list)
    items: list[Item] = field(default_factory=list)
    epoch: int = 0
    next: int = 1
    first: int = 1

    def head(self) -> tuple[int, int, int]:
        """(epoch, next, first)."""
        return self.epoch, self.next, self.first

    def kept(self) -> list[Item]:
        """Its records from `first` on; a GONE run that `first` falls into is shortened."""
        cut = [item.within(self.first - 1, self.next) for item in self.items]
        return [item for item in cut if item is not None]


class Model:
    """The channels after some groups."""

    def __init__(self) -> None:
        self.channels: dict[int, Channel] = {}

    def apply(self, group: Group) -> None:
        """Apply a group: its entries, then its chunks."""
        for entry in group.entries:
            number = struct.unpack_from("<Q", entry.body)[0]
            if entry.kind == CHANNEL:
                self.channels.setdefault(number, Channel()).created = build_entry(entry)
            elif entry.kind == EPOCH:
                _, epoch, first = struct.unpack("<QQQ", entry.body)
                self.channels[number].epochs.append((epoch, first))
            elif entry.kind == TRIM:
                self.channels[number].first = max(self.channels[number].first, struct.unpack_from("<QQ", entry.body)[1])
            elif entry.kind == DROP:
                del self.channels[number]
        for chunk in group.chunks:
            channel = self.channels[chunk.channel]
            channel.items += items_of(build_chunk(chunk))
            channel.epoch, channel.next = chunk.epoch, chunk.last + 1


def tables_of(groups: list[Group]) -> bytes:
    """Return the table entries of a segment, sorted by channel, as a `SliceSource` takes them."""
    rows: dict[int, list[Entry]] = {}
    heads: dict[int, tuple[int, int]] = {}
    for group in groups:
        for entry in group.entries:
            number = struct.unpack_from("<Q", entry.body)[0]
            if entry.kind == DROP:
                rows[number] = [entry]
                heads.pop(number, None)
            elif entry.kind in (CHANNEL, EPOCH, TRIM):
                rows.setdefault(number, []).append(entry)
        for chunk in group.chunks:
            heads[chunk.channel] = (chunk.epoch, chunk.last + 1)
    for number, (epoch, next_sequence) in heads.items():
        rows.setdefault(number, []).append(head_entry(number, epoch, next_sequence, 1))
    packed = b""
    for number, entries in sorted(rows.items()):
        body = b"".join(map(build_entry, entries))
        packed += TABLE_HEAD.pack(number, len(body)) + body
    return packed


def write_segment(path: Path, groups: list[Group]) -> int:
    """Write a segment's groups and index into a file; returns how many index pages it has."""
    index = SegmentIndex()
    environment = open_lmdb(path, 1 << 30, locks=False)
    with environment.begin(write=True) as transaction:
        for group in groups:
            value = build_group(group)
            index.add(value)
            transaction.put(group.number.to_bytes(8, "big"), value)
        pages = index.pages()
        for key, page in pages:
            transaction.put(b"index" + key, page)
        transaction.put(b"seal", b"")
    environment.close()
    return len(pages)


@dataclass(frozen=True)
class ChannelRow:
    """What an archive's row of a channel says."""

    chunks_bytes: int
    chunks: int
    created: bytes
    epochs: list[tuple[int, int]]
    head: tuple[int, int, int]


def parse_channel_row(value: bytes) -> ChannelRow:
    """Parse the value of a channel's row."""
    _, form, _, size, chunks = struct.unpack_from("<IHHQQ", value)
    assert form == 1
    entries = parse_entries(value[24:])
    created = b"".join(build_entry(entry) for entry in entries if entry.kind == CHANNEL)
    epochs = [struct.unpack("<QQQ", entry.body)[1:] for entry in entries if entry.kind == EPOCH]
    (head,) = [struct.unpack("<QQQQ", entry.body) for entry in entries if entry.kind == HEAD]
    return ChannelRow(size, chunks, created, epochs, head[1:])


class Maker:
    """Makes a journal from a seed: publishes, epochs, trims, drops and new channels under names that were freed."""

    def __init__(self, seed: int, names: int, payload_bytes: int) -> None:
        self.pick = random.Random(seed)
        self.payload_bytes = payload_bytes
        self.names = [f"room.{name}" for name in range(names)]
        self.ids: dict[str, int] = {}
        self.next: dict[int, int] = {}
        self.first: dict[int, int] = {}
        self.epoch: dict[int, int] = {}
        self.id_next = 1
        self.time_us = 1_767_225_600_000_000
        self.last = Group(0, 0)

    def group(self) -> Group:
        """Return the next group."""
        entries: list[Entry] = []
        chunks: list[Chunk] = []
        number = self.last.number + self.pick.choice((1, 1, 1, 3))
        self.time_us += self.pick.choice((1_000, 1_000, 50_000_000, 2 * HOUR_US))
        for name in self.pick.sample(self.names, self.pick.randint(1, len(self.names))):
            if name in self.ids and self.pick.random() < 0.1:
                self._remove(name, entries)
            else:
                chunks += self._publish(name, number, entries)
        group = Group(number, self.last.number, self.last.chain, tuple(entries), tuple(chunks), time_us=self.time_us)
        self.last = parse_group(build_group(group))
        return self.last

    def _remove(self, name: str, entries: list[Entry]) -> None:
        number = self.ids[name]
        if self.pick.random() < 0.3:
            entries.append(drop_entry(number))
            del self.ids[name]
        elif self.first[number] < self.next[number]:
            self.first[number] = self.pick.randint(self.first[number] + 1, self.next[number])
            entries.append(trim_entry(number, self.first[number]))

    def _publish(self, name: str, group: int, entries: list[Entry]) -> list[Chunk]:
        if name not in self.ids:
            number = self.ids[name] = self.id_next
            self.id_next += self.pick.choice((1, 1, 5))
            self.next[number] = self.first[number] = 1
            self.epoch[number] = 0
            entries.append(channel_entry(number, name))
        number = self.ids[name]
        if self.epoch[number] == 0 or self.pick.random() < 0.1:
            self.epoch[number] = group
            entries.append(epoch_entry(number, group, self.next[number]))
        size = self.pick.choice((0, 1, self.payload_bytes // 10, self.payload_bytes))
        payloads = [self.pick.randbytes(size)] * self.pick.randint(1, 6)
        chunk = chunk_of(number, self.epoch[number], self.next[number], payloads, self.time_us)
        self.next[number] = chunk.last + 1
        return [chunk]


def plain(items: list[Item]) -> list[Item]:
    """Items without what depends on the chunk that they stand in."""
    return [replace(item, record=replace(item.record, time_us=0)) for item in items]


def judge(rows: dict[bytes, bytes], model: Model, chunk_bytes_max: int = 16_368) -> tuple[int, int, int]:
    """Compare an archive's rows with what they must be; returns its (channels, records, bytes)."""
    for key, value in rows.items():
        row_body(key, value)
    names = {key[1:].decode(): int.from_bytes(value[4:], "little") for key, value in rows.items() if key[0] == 1}
    assert names == {
        channel.created[20:].decode(): number for number, channel in model.channels.items() if channel.created
    }
    stored = {int.from_bytes(key[1:], "big"): parse_channel_row(value) for key, value in rows.items() if key[0] == 2}
    assert stored.keys() == model.channels.keys()
    chunks: dict[int, list[bytes]] = {number: [] for number in stored}
    for key, value in rows.items():
        if key[0] == 0x10:
            chunks[int.from_bytes(key[1:9], "big")].append(value)
    for number, channel in model.channels.items():
        row = stored[number]
        assert row.created == channel.created
        assert row.epochs == channel.epochs
        assert row.head == channel.head()
        assert (row.chunks, row.chunks_bytes) == (len(chunks[number]), sum(map(len, chunks[number])))
        items = [item for chunk in chunks[number] for item in items_of(chunk)]
        cut = [item.within(channel.first - 1, channel.next) for item in items]
        assert plain([item for item in cut if item is not None]) == plain(channel.kept())
        # Nothing but the first row reaches below `first`.
        for chunk in chunks[number]:
            parsed = items_of(chunk)
            assert parsed[-1].next_sequence > channel.first
            assert len(chunk) <= chunk_bytes_max or len(parsed) == 1
    records = sum(item.record.run for found in chunks.values() for chunk in found for item in items_of(chunk))
    return len(stored), records, sum(row.chunks_bytes for row in stored.values())
