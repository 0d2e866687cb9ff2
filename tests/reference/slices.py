"""What archiving comes to, whatever the slices: the twin of `broker_native.slices`, from the groups alone.

Also what the tests of archiving need of a segment: its table entries as a seal has them, and its file.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from broker.log.environment import open_lmdb
from broker_native.index import SegmentIndex
from tests.reference.chunks import Item, items_of
from tests.reference.groups import (
    CHANNEL,
    EPOCH,
    HEAD,
    Entry,
    Group,
    build_chunk,
    build_entry,
    build_group,
    head_entry,
    parse_entries,
)

if TYPE_CHECKING:
    from pathlib import Path

TRIM, DROP = 7, 8
TABLE_HEAD = struct.Struct("<QI")


def trim_entry(channel: int, first: int) -> Entry:
    """Return the entry that says what of a channel is gone."""
    return Entry(TRIM, struct.pack("<QQB7x", channel, first, 2))


def drop_entry(channel: int) -> Entry:
    """Return the entry that removes a channel."""
    return Entry(DROP, struct.pack("<Q", channel))


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
