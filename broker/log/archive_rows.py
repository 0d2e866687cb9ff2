"""The rows of an archive: what keys there are and what their values say.

One LMDB file, all in the main database, in the order of their keys. Numbers in keys are big-endian, so that they sort;
in values little-endian. `‖` puts one behind the other.

    00 "checkpoint"             the checkpoint, below
    00 "slice"                  u32 crc | u64 last segment | i64 × 4 added so far            a slice on its way
    00 "cursor" ‖ name          u32 crc | u64 group: how far something that walks the groups has come
    01 ‖ name                   u32 crc | u64 id                                               a channel by its name
    02 ‖ u64 id                 u32 crc | u16 format | u16 0 | u64 bytes | u64 chunks | entries            a channel
    03 ‖ 16 producer            u32 crc | a LINE entry, whole                                       a producer's line
    10 ‖ u64 id ‖ u64 first     a chunk, as it is on the wire, with its own crc
    20 ‖ u64 id ‖ key           u32 crc | u64 sequence                     the newest record of a channel with a key
    F0 ‖ u64 last group         u32 crc | u32 groups | groups                                       the commit index

`crc` is the CRC-32C of the key and what follows it in the value, so that a row under another key than its own shows. A
channel's entries are CHANNEL, EPOCH…, HEAD, and its chunks cover what HEAD says, densely, from `first` at the latest
up to `next`; `bytes` and `chunks` count their rows. A group of the commit index, in varints (LEB128), with differences
to the group before it in the row and the first one's whole:

    group | time in microseconds | count of chunks | for each: channel | first | count

The checkpoint says up to where the journal is in the archive, and what is there:

     0     4        8         16      24      28     36     44    52           60
     | crc | format | ordinal | group | chain | time | term | run | closed run | unclean run | …
       u32   u32      u64       u64     u32     u64    u64    u64   u64          u64
    … | id next | channels | producers | records | bytes
        u64       u64        u64         u64       u64
"""

from __future__ import annotations

import struct
from dataclasses import astuple, dataclass
from typing import TYPE_CHECKING

from broker.log.errors import corrupt
from broker.model.errors import error
from broker_native.rows import RowDamaged, pack_row, row_body

if TYPE_CHECKING:
    from pathlib import Path
    from typing import TypeAlias

    # Within a class whose field is called `bytes`.
    Value: TypeAlias = bytes

ARCHIVE_FORMAT = 1

META, NAME, CHANNEL, LINE, CHUNK, LATEST, GROUPS = 0x00, 0x01, 0x02, 0x03, 0x10, 0x20, 0xF0
CHECKPOINT_KEY = b"\x00checkpoint"
CURSOR_KEY = b"\x00cursor"
NAME_PREFIX = bytes([NAME])
LINE_PREFIX = bytes([LINE])

_CHECKPOINT = struct.Struct("<IQQIQQQQQQQQQQ")
_FORMAT = struct.Struct("<I")


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """Up to where the journal is in the archive, and what the archive holds.

    Attributes:
        ordinal: the last segment that is wholly in it, 0 for none.
        group: its last group; what follows in the journal names it as its predecessor.
        chain: the chain checksum after that group.
        time_us: its time, microseconds since 1970.
        term: its term.
        run: its run.
        closed_run: the run that it ended, 0 when it ended none.
        unclean_run: the newest run up to there that did not end in good order, 0 for none.
        id_next: the next channel's id.
        channels: how many are stored.
        producers: how many lines are stored.
        records: how many sequences the chunks cover.
        bytes: the sum of the chunks' sizes.
    """

    ordinal: int = 0
    group: int = 0
    chain: int = 0
    time_us: int = 0
    term: int = 0
    run: int = 0
    closed_run: int = 0
    unclean_run: int = 0
    id_next: int = 1
    channels: int = 0
    producers: int = 0
    records: int = 0
    bytes: int = 0

    @classmethod
    def empty(cls) -> Checkpoint:
        """Return the checkpoint of an archive that nothing has come to."""
        return cls()

    def pack(self) -> Value:
        """Return the row's value."""
        return pack_row(CHECKPOINT_KEY, _CHECKPOINT.pack(ARCHIVE_FORMAT, *astuple(self)))

    @classmethod
    def unpack(cls, value: Value | None, path: Path) -> Checkpoint:
        """Parse the row's value.

        Args:
            value: what `path` has under CHECKPOINT_KEY, None for no row.
            path: the archive's file, for errors.

        Raises:
            StorageError: STORAGE_FORMAT when a newer version wrote the archive, STORAGE_CORRUPT when it is damaged.
        """
        try:
            body = row_body(CHECKPOINT_KEY, value or b"")
        except RowDamaged as damage:
            raise corrupt(path, "the checkpoint is missing or its checksum is wrong") from damage
        found = _FORMAT.unpack_from(body)[0] if len(body) >= _FORMAT.size else 0
        if found != ARCHIVE_FORMAT:
            raise error("STORAGE_FORMAT", f"{path}: got archive format {found}, this version knows {ARCHIVE_FORMAT}")
        if len(body) != _CHECKPOINT.size:
            raise corrupt(path, f"the checkpoint is {len(body)} bytes, expected {_CHECKPOINT.size}")
        return cls(*_CHECKPOINT.unpack(body)[1:])


def describe_key(key: bytes) -> str:
    """Return what a row is, in words, for an error."""
    kind, rest = key[0] if key else -1, key[1:]
    number = int.from_bytes(rest[:8], "big")
    if kind == META:
        return f"the row {rest.decode('ascii', 'backslashreplace')}"
    if kind == NAME:
        return f"the row of the name {rest.decode('ascii', 'backslashreplace')}"
    if kind == CHANNEL:
        return f"the row of channel {number}"
    if kind == LINE:
        return f"the row of producer {rest.hex()}"
    if kind == CHUNK:
        return f"the chunk of channel {number} at sequence {int.from_bytes(rest[8:], 'big')}"
    if kind == LATEST:
        return f"the row of channel {number} and key {rest[8:].hex()}"
    if kind == GROUPS:
        return f"the index of the groups up to {number}"
    return f"the row {key.hex()}"
