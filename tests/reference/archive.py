"""A writer of archives in plain Python, and what a reader of one must find: the twin of all that reads them.

It keeps every record in dicts and makes the rows anew each time, so that it is slow and obviously right. How chunks
are merged into rows is up to its user, since readers may not depend on it.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from broker.log.archive import Checkpoint
from broker.log.environment import open_lmdb
from broker_native.crc32c import crc32c_of
from tests.reference.chunks import Item, chunk_from, items_of, merge
from tests.reference.groups import (
    SNAPSHOT,
    Entry,
    Group,
    build_chunk,
    build_entry,
    channel_entry,
    epoch_entry,
    head_entry,
    line_entry,
)

if TYPE_CHECKING:
    from collections.abc import Container, Iterable
    from pathlib import Path

MAP_BYTES = 1 << 40
ROW_BYTES = 16368


@dataclass
class Channel:
    """One channel: the chunks of its groups, and what of them is gone."""

    name: str
    level: int = 3
    epochs: list[tuple[int, int]] = field(default_factory=list)
    first: int = 1
    next: int = 1
    chunks: list[bytes] = field(default_factory=list)

    def items(self) -> list[Item]:
        """Return the records that are left."""
        found = (item.within(self.first - 1, 2**64 - 2) for chunk in self.chunks for item in items_of(chunk))
        return [item for item in found if item is not None]

    def rows(self, row_bytes: int) -> list[bytes]:
        """Return its chunk rows; the first may begin below what is left, as an archiver leaves it."""
        merged = merge(self.chunks, row_bytes)
        return [row for row in merged if items_of(row)[-1].next_sequence > self.first]

    def entries(self, channel: int) -> bytes:
        """Return the entries of its row."""
        epochs = [epoch_entry(channel, epoch, first) for epoch, first in self.epochs]
        head = head_entry(channel, self.epochs[-1][0] if self.epochs else 0, self.next, self.first)
        return b"".join(map(build_entry, [channel_entry(channel, self.name, self.level), *epochs, head]))


@dataclass
class ArchiveModel:
    """What is in an archive, by what was committed."""

    channels: dict[int, Channel] = field(default_factory=dict)
    lines: dict[bytes, bytes] = field(default_factory=dict)
    groups: list[Group] = field(default_factory=list)
    checkpoint: Checkpoint = field(default_factory=Checkpoint.empty)

    # --- What is committed ----------------------------------------------------------------------------------------

    def create(self, channel: int, name: str) -> None:
        """Create a channel."""
        self.channels[channel] = Channel(name)

    def commit(self, group: Group) -> None:
        """Take a group's chunks in; their channels are there."""
        for chunk in group.chunks:
            channel = self.channels[chunk.channel]
            assert chunk.first == channel.next
            if not channel.epochs or channel.epochs[-1][0] != chunk.epoch:
                channel.epochs.append((chunk.epoch, chunk.first))
            channel.chunks.append(build_chunk(chunk))
            channel.next = chunk.last + 1
        self.groups.append(group)
        self.checkpoint = replace(self.checkpoint, group=group.number, time_us=group.time_us)

    def line(self, producer: bytes, number: int, runs: Iterable[tuple[int, int, int]]) -> None:
        """Set a producer's line."""
        listed = list(runs)
        self.lines[producer] = build_entry(
            line_entry(producer, number, sum(run[2] for run in listed), listed, SNAPSHOT)
        )

    def trim(self, channel: int, first: int) -> None:
        """Take out what is below a sequence."""
        self.channels[channel].first = max(self.channels[channel].first, first)

    def drop(self, channel: int) -> None:
        """Take a channel out."""
        del self.channels[channel]

    # --- What is stored -------------------------------------------------------------------------------------------

    def rows(self, row_bytes: int = ROW_BYTES, index_bytes: int = ROW_BYTES) -> dict[bytes, bytes]:
        """Return all rows, with chunks merged up to a size and groups packed up to another."""
        totals = replace(self.checkpoint, channels=len(self.channels), producers=len(self.lines))
        rows = {b"\x00checkpoint": totals.pack()}
        for channel, state in self.channels.items():
            chunks = state.rows(row_bytes)
            counts = sum(map(len, chunks)).to_bytes(8, "little") + len(chunks).to_bytes(8, "little")
            rows |= sealed(b"\x01" + state.name.encode(), channel.to_bytes(8, "little"))
            rows |= sealed(b"\x02" + big(channel), b"\x01\x00\x00\x00" + counts + state.entries(channel))
            rows |= {b"\x10" + big(channel) + big(items_of(chunk)[0].sequence): chunk for chunk in chunks}
        for producer, line in self.lines.items():
            rows |= sealed(b"\x03" + producer, line)
        return rows | pack_groups(self.groups, index_bytes)

    def write(self, path: Path, row_bytes: int = ROW_BYTES, index_bytes: int = ROW_BYTES) -> None:
        """Write all rows into a file, new or of former rows, in one transaction."""
        environment = open_lmdb(path, MAP_BYTES)
        replace_rows_in(environment, self.rows(row_bytes, index_bytes))
        environment.close()

    # --- What a reader finds --------------------------------------------------------------------------------------

    def names(self, prefix: bytes, after: bytes) -> list[tuple[bytes, int]]:
        """Return the channels that begin with a prefix and are past a name, in order."""
        named = sorted((state.name.encode(), channel) for channel, state in self.channels.items())
        return [(name, channel) for name, channel in named if name.startswith(prefix) and name > after]

    def sequence_at(self, channel: int, time_us: int) -> int:
        """Return the first sequence of a time or later, the next one when there is none."""
        state = self.channels.get(channel)
        if state is None:
            return 1
        return next((item.sequence for item in state.items() if item.time_us >= time_us), state.next)

    def group_at(self, time_us: int) -> int | None:
        """Return the first group of a time or later."""
        return next((group.number for group in self.groups if group.time_us >= time_us), None)

    def bus(self, wanted: Container[int] | None) -> list[tuple[int, int, int, list[Item]]]:
        """Return (group, index, channel, records) of all chunks of wanted channels, without what is gone."""
        found = []
        for group in self.groups:
            for index, chunk in enumerate(group.chunks):
                state = self.channels.get(chunk.channel)
                if state is None or (wanted is not None and chunk.channel not in wanted):
                    continue
                left = [item.within(state.first - 1, 2**64 - 2) for item in items_of(build_chunk(chunk))]
                items = [item for item in left if item is not None]
                if items:
                    found.append((group.number, index, chunk.channel, items))
        return found


def big(number: int) -> bytes:
    """Return a number as keys have it."""
    return number.to_bytes(8, "big")


def sealed(key: bytes, body: bytes) -> dict[bytes, bytes]:
    """Return a row with its checksum."""
    return {key: crc32c_of(key + body).to_bytes(4, "little") + body}


def varint(number: int) -> bytes:
    """Return a number in groups of seven bits, the lowest first."""
    packed = b""
    while number >= 0x80:
        packed += bytes([number & 0x7F | 0x80])
        number >>= 7
    return packed + bytes([number])


def pack_groups(groups: list[Group], bytes_max: int) -> dict[bytes, bytes]:
    """Return the rows of the commit index; twin of `GroupsPacker`."""
    rows: dict[bytes, bytes] = {}
    row: list[Group] = []
    for group in groups:
        if row and 8 + len(index_of([*row, group])) > bytes_max:
            rows |= index_row(row)
            row = []
        row.append(group)
    return rows | (index_row(row) if row else {})


def index_row(groups: list[Group]) -> dict[bytes, bytes]:
    """Return one row of the commit index."""
    return sealed(b"\xf0" + big(groups[-1].number), len(groups).to_bytes(4, "little") + index_of(groups))


def index_of(groups: list[Group]) -> bytes:
    """Return what a row of the commit index says of its groups."""
    packed, number, time_us = b"", 0, 0
    for group in groups:
        packed += varint(group.number - number) + varint(group.time_us - time_us) + varint(len(group.chunks))
        for chunk in group.chunks:
            packed += varint(chunk.channel) + varint(chunk.first) + varint(chunk.count)
        number, time_us = group.number, group.time_us
    return packed


def replace_rows_in(environment: object, rows: dict[bytes, bytes]) -> None:
    """Make an environment hold these rows and no others, in one transaction."""
    with environment.begin(write=True) as transaction:  # type: ignore[attr-defined]
        present = {bytes(key): bytes(value) for key, value in transaction.cursor()}
        for key in present.keys() - rows.keys():
            transaction.delete(key)
        for key, value in rows.items():
            if present.get(key) != value:
                transaction.put(key, value)


__all__ = ["ArchiveModel", "Channel", "Entry", "chunk_from", "pack_groups", "replace_rows_in"]
