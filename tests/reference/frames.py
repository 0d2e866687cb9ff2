"""Frames, records and the hot bodies as the protocol's specification draws them: built and read in plain Python.

The bytes of a record are built without any check, so that a test can build one that is not well formed.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import NamedTuple

from tests.reference.groups import CHUNK_HEADER, RECORD_HEADER, Chunk, parse_chunk

FRAME_HEADER = struct.Struct("<IBBH")
PUBLISH_HEADER = struct.Struct("<IIQ")
PUBLISHED_ENTRY = struct.Struct("<QQQIIBB6s")
DELIVER_HEADER = struct.Struct("<IIQ")
CREDIT_BODY = struct.Struct("<IIQ")

HELLO, ERROR, PING, CHANNEL, SUBSCRIBE = 1, 3, 4, 7, 8
PUBLISH, PUBLISHED, DELIVER, CREDIT = 16, 17, 18, 20
DELIVER_NAME, DELIVER_EARLY = 1, 2

PUBLISHER, NUMBER, PRIORITY, EXPIRY, KEY, HEADERS, ID, GONE = 0x1, 0x2, 0x4, 0x8, 0x10, 0x20, 0x40, 0x8000


# --- Records ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Record:
    """One record. A field that is None is not there; `gone` is (reason, run)."""

    payload: bytes = b""
    time_us: int = 0
    publisher: bytes | None = None
    number: int | None = None
    priority: int | None = None
    expiry_s: int | None = None
    key: bytes | None = None
    headers: bytes | None = None
    id: bytes | None = None
    gone: tuple[int, int] | None = None

    @property
    def run(self) -> int:
        """How many sequences it stands for."""
        return self.gone[1] if self.gone is not None else 1


def build_record(record: Record, *, flags: int | None = None, reserved: int = 0, size: int | None = None) -> bytes:
    """Return a record's bytes; the keyword arguments say something else than the truth in its header."""
    fields, true_flags = b"", 0
    for flag, packed in (
        (PUBLISHER, None if record.publisher is None else bytes([len(record.publisher)]) + record.publisher),
        (NUMBER, None if record.number is None else struct.pack("<Q", record.number)),
        (PRIORITY, None if record.priority is None else bytes([record.priority])),
        (EXPIRY, None if record.expiry_s is None else struct.pack("<I", record.expiry_s)),
        (KEY, None if record.key is None else struct.pack("<H", len(record.key)) + record.key),
        (HEADERS, None if record.headers is None else struct.pack("<H", len(record.headers)) + record.headers),
        (ID, None if record.id is None else bytes([len(record.id)]) + record.id),
        (GONE, None if record.gone is None else struct.pack("<B3xI", *record.gone)),
    ):
        if packed is not None:
            true_flags |= flag
            fields += packed
    body = fields + record.payload
    return (
        RECORD_HEADER.pack(
            RECORD_HEADER.size + len(body) if size is None else size,
            true_flags if flags is None else flags,
            reserved,
            record.time_us,
        )
        + body
    )


def records_of(chunk: Chunk) -> list[Record]:
    """Return the records of a chunk."""
    found, at = [], 0
    while at < len(chunk.records):
        size, flags, _, time_us = RECORD_HEADER.unpack_from(chunk.records, at)
        found.append(_read_record(chunk.records[at + RECORD_HEADER.size : at + size], flags, time_us))
        at += size
    return found


def _read_record(body: bytes, flags: int, time_us: int) -> Record:
    at = 0

    def take(size: int) -> bytes:
        nonlocal at
        at += size
        return body[at - size : at]

    return Record(
        publisher=take(take(1)[0]) if flags & PUBLISHER else None,
        number=struct.unpack("<Q", take(8))[0] if flags & NUMBER else None,
        priority=take(1)[0] if flags & PRIORITY else None,
        expiry_s=struct.unpack("<I", take(4))[0] if flags & EXPIRY else None,
        key=take(struct.unpack("<H", take(2))[0]) if flags & KEY else None,
        headers=take(struct.unpack("<H", take(2))[0]) if flags & HEADERS else None,
        id=take(take(1)[0]) if flags & ID else None,
        gone=struct.unpack("<B3xI", take(8)) if flags & GONE else None,
        payload=body[at:],
        time_us=time_us,
    )


def chunks_of(value: bytes) -> list[Chunk]:
    """Return the chunks that some bytes are, one after the other, each with its checksum proved."""
    found, at = [], 0
    while at < len(value):
        size = CHUNK_HEADER.unpack_from(value, at)[0]
        found.append(parse_chunk(value[at : at + size]))
        at += size
    return found


# --- Frames -------------------------------------------------------------------------------------------------------


class Frame(NamedTuple):
    """One frame, header and body."""

    kind: int
    flags: int
    body: bytes


def build_frame(kind: int, body: bytes, flags: int = 0, reserved: int = 0) -> bytes:
    """Return a frame's bytes."""
    return FRAME_HEADER.pack(len(body), kind, flags, reserved) + body


def frames_of(stream: bytes) -> list[Frame]:
    """Return the frames that some bytes are, wholly."""
    found, at = [], 0
    while at < len(stream):
        size, kind, flags, reserved = FRAME_HEADER.unpack_from(stream, at)
        at += FRAME_HEADER.size
        assert reserved == 0
        assert at + size <= len(stream)
        found.append(Frame(kind, flags, stream[at : at + size]))
        at += size
    return found


def publish_body(slot: int, number: int, records: list[bytes], count: int | None = None) -> bytes:
    """Return the body of a PUBLISH; `count` says something else than the truth."""
    return PUBLISH_HEADER.pack(slot, len(records) if count is None else count, number) + b"".join(records)


@dataclass(frozen=True)
class Published:
    """One entry of a PUBLISHED frame."""

    number: int
    epoch: int
    first: int
    count: int
    slot: int
    level: int
    flags: int


def published_of(body: bytes) -> list[Published]:
    """Return the entries of a PUBLISHED body."""
    found = []
    for *fields, reserved in PUBLISHED_ENTRY.iter_unpack(body):
        assert reserved == bytes(6)
        found.append(Published(*fields))
    return found


@dataclass(frozen=True)
class Delivery:
    """One DELIVER frame: its prefix, the name if it tells one, and its chunk."""

    subscription: int
    index: int
    group: int
    flags: int
    name: bytes | None
    chunk: Chunk

    @property
    def prefix(self) -> tuple[int, int, int, int, bytes | None]:
        """Everything but the chunk."""
        return self.subscription, self.index, self.group, self.flags, self.name


def delivery_of(frame: Frame) -> Delivery:
    """Return the delivery that a frame is."""
    assert frame.kind == DELIVER
    subscription, index, group = DELIVER_HEADER.unpack_from(frame.body)
    at, name = DELIVER_HEADER.size, None
    if frame.flags & DELIVER_NAME:
        size = frame.body[at]
        name = frame.body[at + 1 : at + 1 + size]
        at += 1 + size
    return Delivery(subscription, index, group, frame.flags, name, parse_chunk(frame.body[at:]))


def deliveries_of(stream: bytes) -> list[Delivery]:
    """Return the deliveries among the frames of a stream, in order."""
    return [delivery_of(frame) for frame in frames_of(stream) if frame.kind == DELIVER]
