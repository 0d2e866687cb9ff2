"""What several works are done on: records, chunks, groups, and files as LMDB writes them. All from fixed seeds."""

from __future__ import annotations

import random
import struct
from itertools import groupby
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from benchmarks.works import SEED
from broker.log.archive import Checkpoint
from broker.log.archive_rows import CHECKPOINT_KEY
from broker.log.environment import open_lmdb
from broker_native.archive import GroupsPacker
from broker_native.crc32c import crc32c_of
from broker_native.rows import pack_row
from broker_native.tree import MappedFile, TreeReader
from tests.reference.groups import Group, build_group, channel_entry, chunk_of, epoch_entry

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

PAYLOAD_BYTES = 128
PAYLOAD = random.Random(SEED).randbytes(PAYLOAD_BYTES)
RECORD = struct.pack("<IHHI", 12 + PAYLOAD_BYTES, 0, 0, 0) + PAYLOAD
EPOCH, TIME_US = 1 << 32, 1_767_225_600_000_000
CHUNK = struct.Struct("<QQQIIQQ")
MAP_BYTES = 1 << 30

CHANNEL_MESSAGES = 60
LEAF_RECORDS, ROW_RECORDS = 13, 116
"""Records in a row of at most 1,900 bytes, and of at most 16,368: an archiver makes both."""
ENTRY_HEAD, ENTRY_CHANNEL, ENTRY_EPOCH = 4, 1, 2


def name_of(channel: int) -> bytes:
    """Return a channel's name, 24 bytes."""
    return b"room.%05d.%013d" % (channel % 1000, channel)


def chunk(channel: int, first: int, count: int, time_us: int = TIME_US) -> bytes:
    """Return a chunk of records."""
    body = CHUNK.pack(channel, EPOCH, first, count, 0, time_us, 0) + RECORD * count
    return struct.pack("<II", 8 + len(body), crc32c_of(body)) + body


def group_of(number: int, channels: Iterable[int], records: int, first: int = 1, *, new: bool = False) -> bytes:
    """Return a group with a chunk of so many records in each channel, and with what creates them when they are new."""
    listed = list(channels)
    entries = [
        entry
        for channel in listed
        if new
        for entry in (channel_entry(channel, name_of(channel).decode()), epoch_entry(channel, EPOCH, 1))
    ]
    chunks = [chunk_of(channel, EPOCH, first, [PAYLOAD] * records, TIME_US + number) for channel in listed]
    return build_group(Group(number, number - 1, 0, tuple(entries), tuple(chunks), time_us=TIME_US + number))


def tree_of(rows: Iterable[tuple[bytes, bytes]]) -> TreeReader:
    """Return a reader of a file that LMDB has made of rows in ascending order. The file has no name any more."""
    with TemporaryDirectory() as folder:
        path = Path(folder) / "file"
        write_rows(path, rows)
        return reader_of(path)


def reader_of(path: Path) -> TreeReader:
    """Return a reader of a file that was written in one transaction; the file may be removed meanwhile."""
    return TreeReader(MappedFile(str(path), path.stat().st_size), 1)


def write_rows(path: Path, rows: Iterable[tuple[bytes, bytes]]) -> None:
    """Write a file of rows in ascending order, in one transaction."""
    environment = open_lmdb(path, MAP_BYTES, locks=False)
    with environment.begin(write=True) as transaction:
        for key, value in rows:
            transaction.put(key, value, append=True)
    environment.close()


def entries_of(channel: int, messages: int) -> bytes:
    """Return the entries of a channel's row."""
    name = name_of(channel)
    return (
        struct.pack("<IHHQBBBB", 20 + len(name), ENTRY_CHANNEL, 0, channel, 3, 2, len(name), 0)
        + name
        + struct.pack("<IHHQQQ", 32, ENTRY_EPOCH, 0, channel, EPOCH, 1)
        + struct.pack("<IHHQQQQ", 40, ENTRY_HEAD, 0, channel, EPOCH, messages + 1, 1)
    )


def archive_rows(channels: int, messages: int) -> Iterator[tuple[bytes, bytes]]:
    """Yield the rows of an archive in the order of their keys.

    Args:
        channels: how many have 60 messages each.
        messages: how many has one more channel, the one with the greatest id.
    """
    large = channels + 1
    ids = range(1, large + 1)
    yield CHECKPOINT_KEY, Checkpoint.empty().pack()
    for name, channel in sorted((name_of(channel), channel) for channel in ids):
        yield b"\x01" + name, pack_row(b"\x01" + name, channel.to_bytes(8, "little"))
    for channel in ids:
        key = b"\x02" + channel.to_bytes(8, "big")
        count = messages if channel == large else CHANNEL_MESSAGES
        yield key, pack_row(key, b"\x01\x00\x00\x00" + bytes(16) + entries_of(channel, count))
    for channel in ids:
        count, row = (messages, ROW_RECORDS) if channel == large else (CHANNEL_MESSAGES, LEAF_RECORDS)
        for first in range(1, count + 1, row):
            key = b"\x10" + channel.to_bytes(8, "big") + first.to_bytes(8, "big")
            yield key, chunk(channel, first, min(row, count + 1 - first))
    packer = GroupsPacker()
    for group in index_groups(channels):
        row_ = packer.add(group)
        if row_ is not None:
            yield row_
    row_ = packer.finish()
    if row_ is not None:
        yield row_


def index_groups(channels: int) -> Iterator[bytes]:
    """Yield groups for the commit index: every message of a small channel a chunk of its own, in a random order."""
    order = [channel for channel in range(1, channels + 1) for _ in range(CHANNEL_MESSAGES)]
    random.Random(SEED).shuffle(order)
    heads = [1] * (channels + 1)
    for number, at in enumerate(range(0, len(order), 500), 1):
        chunks = []
        for channel, same in groupby(sorted(order[at : at + 500])):
            count = len(list(same))
            body = CHUNK.pack(channel, EPOCH, heads[channel], count, 0, TIME_US + number, 0)
            chunks.append(struct.pack("<II", 8 + len(body), 0) + body)
            heads[channel] += count
        header = struct.pack("<IHHQQQQQQIIIIQIIQ", 0x50524742, 1, 96, number, number - 1, 1, 1, 1, TIME_US + number,
                             0, 0, len(chunks), 0, 0, 0, 0, 0)  # fmt: skip
        yield header + b"".join(chunks)
