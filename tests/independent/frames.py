"""Frames, records and chunks of the native protocol, version 1: bytes to values and back, and every check of form.

Written from broker/wire/specification.md alone. Nothing here knows a socket or a state. What a server sends and the
document does not allow is `Malformed`: the caller drops the connection.
"""

from __future__ import annotations

import enum
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING

from . import msgpack
from .crc32c import crc32c

if TYPE_CHECKING:
    from collections.abc import Callable

MAGIC = b"BROKER\x00\x01"
WELCOME_BYTES_MAX = 65_536
FRAME_BYTES_MAX = 67_239_935

_HEADER = struct.Struct("<IBBH")
_RECORD = struct.Struct("<IHHI")
_CHUNK = struct.Struct("<IIQQQIIQQ")
_DELIVER = struct.Struct("<IIQ")
_JOBS = struct.Struct("<IIQQQ")
_JOB = struct.Struct("<IIQQQHBBI")
_ENTRY = struct.Struct("<QQQIIBB6s")
_GONE = struct.Struct("<B3sI")


class Malformed(Exception):
    """The server sent what the document does not allow."""


class Kind(enum.IntEnum):
    HELLO = 1
    WELCOME = 2
    ERROR = 3
    PING = 4
    PONG = 5
    GOING_AWAY = 6
    CHANNEL = 7
    SUBSCRIBE = 8
    SUBSCRIBED = 9
    UNSUBSCRIBE = 10
    UNSUBSCRIBED = 11
    EVENT = 12
    REQUEST = 13
    REPLY = 14
    PUBLISH = 16
    PUBLISHED = 17
    DELIVER = 18
    ACK = 19
    CREDIT = 20
    JOBS = 21
    ACKED = 22
    TRANSACTION = 23


class Flag(enum.IntFlag):
    """Flags of a record."""

    PUBLISHER = 0x0001
    NUMBER = 0x0002
    PRIORITY = 0x0004
    EXPIRY = 0x0008
    KEY = 0x0010
    HEADERS = 0x0020
    ID = 0x0040
    GONE = 0x8000


_FIELDS = Flag.PUBLISHER | Flag.NUMBER | Flag.PRIORITY | Flag.EXPIRY | Flag.KEY | Flag.HEADERS | Flag.ID


@dataclass(frozen=True, slots=True)
class Welcome:
    version: int
    server: str
    run: int
    journal: bytes
    highest: int
    limits: dict[str, int]
    ping_s: float


@dataclass(frozen=True, slots=True)
class Error:
    """An ERROR; `concerns` is the one key of subscription, request, channel and number that it has, or empty."""

    code: int
    name: str
    detail: str
    hint: str | None
    concerns: str
    number: int
    count: int
    retry_after_ms: int | None = None
    ack: int | None = None
    lease: int | None = None
    leases: int | None = None

    @property
    def retry(self) -> bool:
        return 1000 <= self.code < 2000

    @property
    def resume(self) -> bool:
        return 2000 <= self.code < 3000

    @property
    def storage(self) -> bool:
        return 4000 <= self.code < 5000

    def __str__(self) -> str:
        return f"{self.name} ({self.code}): {self.detail}"


@dataclass(frozen=True, slots=True)
class Ping:
    token: int


@dataclass(frozen=True, slots=True)
class Pong:
    token: int


@dataclass(frozen=True, slots=True)
class GoingAway:
    seconds: float
    retry_after_ms: int | None = None


@dataclass(frozen=True, slots=True)
class Outcome:
    channel: str
    outcome: str
    epoch: int
    at: int


@dataclass(frozen=True, slots=True)
class Bus:
    """A place of the bus. Places of one journal are ordered by (group, index)."""

    journal: bytes
    group: int
    index: int


@dataclass(frozen=True, slots=True)
class Subscribed:
    subscription: int
    outcomes: tuple[Outcome, ...]
    bus: Bus


@dataclass(frozen=True, slots=True)
class Unsubscribed:
    subscription: int


@dataclass(frozen=True, slots=True)
class Event:
    subscription: int
    event: str
    channel: str


@dataclass(frozen=True, slots=True)
class Reply:
    request: int
    fields: dict[str, object]


@dataclass(frozen=True, slots=True)
class Entry:
    """An entry of PUBLISHED."""

    number: int
    epoch: int
    first: int
    count: int
    channel: int
    level: int
    duplicate: bool


@dataclass(frozen=True, slots=True)
class Published:
    entries: tuple[Entry, ...]


@dataclass(frozen=True, slots=True)
class Record:
    """One record, or a GONE one: then `run` is above 0 and `reason` says why."""

    time_us: int
    payload: bytes
    publisher: bytes | None = None
    number: int | None = None
    priority: int = 2
    expiry_s: int | None = None
    key: bytes | None = None
    headers: bytes | None = None
    id: bytes | None = None
    reason: int = 0
    run: int = 0

    @property
    def count(self) -> int:
        return self.run or 1


@dataclass(frozen=True, slots=True)
class Chunk:
    size: int
    channel: int
    epoch: int
    first: int
    count: int
    time_us: int
    expiry_s: int
    records: tuple[Record, ...]

    @property
    def last(self) -> int:
        return self.first + self.count - 1


@dataclass(frozen=True, slots=True)
class Deliver:
    subscription: int
    index: int
    group: int
    name: str | None
    early: bool
    chunk: Chunk


@dataclass(frozen=True, slots=True)
class Job:
    lease: int
    channel: int
    name: str | None
    epoch: int
    sequence: int
    time_us: int
    attempt: int
    redelivered: bool
    record: Record


@dataclass(frozen=True, slots=True)
class Jobs:
    subscription: int
    lease_ms: int
    jobs: tuple[Job, ...]


@dataclass(frozen=True, slots=True)
class Acked:
    subscription: int
    number: int


Answer = (
    Welcome
    | Error
    | Ping
    | Pong
    | GoingAway
    | Subscribed
    | Unsubscribed
    | Event
    | Reply
    | Published
    | Deliver
    | Jobs
    | Acked
)


def frame(kind: Kind, body: bytes) -> bytes:
    """A whole frame of a client, which has no flags."""
    return _HEADER.pack(len(body), kind, 0, 0) + body


def control(kind: Kind, **fields: object) -> bytes:
    """A whole frame whose body is a map; keys whose value is None are left out."""
    return frame(kind, msgpack.pack({key: value for key, value in fields.items() if value is not None}))


def hello(versions: list[int], client: str, producer: bytes | None, token: str | None) -> bytes:
    fields = {"versions": versions, "client": client, "producer": producer, "token": token}
    body = msgpack.pack({key: value for key, value in fields.items() if value is not None})
    return frame(Kind.HELLO, MAGIC + body)


def channel(number: int, name: str) -> bytes:
    return frame(Kind.CHANNEL, struct.pack("<I", number) + name.encode())


def publish(channel: int, number: int, records: list[bytes]) -> bytes:
    return frame(Kind.PUBLISH, struct.pack("<IIQ", channel, len(records), number) + b"".join(records))


def credit(subscription: int, size: int) -> bytes:
    return frame(Kind.CREDIT, struct.pack("<IIQ", subscription, 0, size))


def ack(subscription: int, number: int, *entries: tuple[int, int, int, int]) -> bytes:
    """An ACK; an entry is (lease, leases, verb, ms)."""
    rows = [struct.pack("<QIBBBBQ", lease, leases, verb, 0, 0, 0, ms) for lease, leases, verb, ms in entries]
    return frame(Kind.ACK, struct.pack("<IIQ", subscription, len(entries), number) + b"".join(rows))


def token(kind: Kind, number: int) -> bytes:
    return frame(kind, struct.pack("<Q", number))


def record(
    payload: bytes,
    *,
    priority: int | None = None,
    expiry_s: int | None = None,
    key: bytes | None = None,
    headers: dict[str, object] | None = None,
    id: bytes | None = None,
) -> bytes:
    """A record as a client sends it; what is None is left out."""
    flags = 0
    fields = b""
    if priority is not None:
        flags |= Flag.PRIORITY
        fields += bytes([priority])
    if expiry_s is not None:
        flags |= Flag.EXPIRY
        fields += struct.pack("<I", expiry_s)
    if key is not None:
        flags |= Flag.KEY
        fields += struct.pack("<H", len(key)) + key
    if headers is not None:
        packed = msgpack.pack(headers)
        flags |= Flag.HEADERS
        fields += struct.pack("<H", len(packed)) + packed
    if id is not None:
        flags |= Flag.ID
        fields += bytes([len(id)]) + id
    return _RECORD.pack(_RECORD.size + len(fields) + len(payload), flags, 0, 0) + fields + payload


class Splitter:
    """Cuts a stream of bytes into frames."""

    def __init__(self) -> None:
        self._bytes = bytearray()
        self.size_max = WELCOME_BYTES_MAX

    def feed(self, data: bytes) -> None:
        self._bytes += data

    def next(self) -> tuple[int, int, bytes] | None:
        """The kind, flags and body of the next frame, None until it is complete.

        Raises:
            Malformed: the header says what no header may.
        """
        if len(self._bytes) < _HEADER.size:
            return None
        size, kind, flags, reserved = _HEADER.unpack_from(self._bytes)
        if size > self.size_max or reserved or (flags and kind not in (Kind.PUBLISH, Kind.DELIVER)):
            raise Malformed(f"a frame of kind {kind}, {size} bytes, flags {flags}, reserved {reserved}")
        if len(self._bytes) < _HEADER.size + size:
            return None
        body = bytes(self._bytes[_HEADER.size : _HEADER.size + size])
        del self._bytes[: _HEADER.size + size]
        return kind, flags, body


class _Map:
    """A control body, and what its keys must be."""

    def __init__(self, body: bytes) -> None:
        try:
            fields = msgpack.unpack(body)
        except ValueError as error:
            raise Malformed(str(error)) from error
        if not isinstance(fields, dict):
            raise Malformed("a control body is no map")
        self.fields: dict[str, object] = fields

    def uint(self, key: str, bits: int = 64) -> int:
        return _uint(self.fields.get(key), bits)

    def text(self, key: str) -> str:
        return _text(self.fields.get(key))

    def number(self, key: str) -> float:
        value = self.fields.get(key)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise Malformed(f"{key} is {value!r}, no number")
        return value

    def array(self, key: str) -> list[object]:
        return _array(self.fields.get(key))


def _uint(value: object, bits: int = 64) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 1 << bits:
        raise Malformed(f"{value!r} is no integer of {bits} bits")
    return value


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise Malformed(f"{value!r} is no text")
    return value


def _name16(value: object) -> bytes:
    if not isinstance(value, bytes) or len(value) != 16:
        raise Malformed(f"{value!r} is no identity of 16 bytes")
    return value


def _array(value: object, length: int | None = None) -> list[object]:
    if not isinstance(value, list) or (length is not None and len(value) != length):
        raise Malformed(f"{value!r} is no array of {length}")
    return value


def decode(kind: int, flags: int, body: bytes) -> Answer:
    """What a server's frame says.

    Raises:
        Malformed: a kind that no server sends, or a body that is not as drawn.
    """
    if kind == Kind.DELIVER:
        return _deliver(flags, body)
    if kind == Kind.PUBLISHED:
        return _published(body)
    if kind == Kind.JOBS:
        return _jobs(body)
    if kind == Kind.ACKED:
        if len(body) != 16 or any(body[4:8]):
            raise Malformed("an ACKED that is not as drawn")
        return Acked(int.from_bytes(body[:4], "little"), int.from_bytes(body[8:], "little"))
    if kind in (Kind.PING, Kind.PONG):
        if len(body) != 8:
            raise Malformed("a token is 8 bytes")
        number = int.from_bytes(body, "little")
        return Ping(number) if kind == Kind.PING else Pong(number)
    decoder = _CONTROL.get(kind)
    if decoder is None:
        raise Malformed(f"a frame of kind {kind}")
    return decoder(_Map(body))


def _welcome(fields: _Map) -> Welcome:
    limits = fields.fields.get("limits")
    if not isinstance(limits, dict):
        raise Malformed("WELCOME without limits")
    names = ("frame_bytes_max", "payload_bytes_max", "headers_bytes_max", "channels_max", "subscriptions_max")
    return Welcome(
        fields.uint("version"),
        fields.text("server"),
        fields.uint("run"),
        _name16(fields.fields.get("journal")),
        fields.uint("highest"),
        {name: _uint(limits.get(name)) for name in names},
        fields.number("ping_s"),
    )


def _error(fields: _Map) -> Error:
    numbered = ("number", "asked", "replied")
    concerns = [key for key in ("subscription", "request", "channel", *numbered) if key in fields.fields]
    is_numbered = concerns[:1] != [] and concerns[0] in numbered
    if len(concerns) > 1 or is_numbered != ("count" in fields.fields):
        raise Malformed(f"an ERROR about {concerns}")
    bits = 64 if is_numbered else 32
    return Error(
        fields.uint("code", 16),
        fields.text("name"),
        fields.text("detail"),
        fields.text("hint") if "hint" in fields.fields else None,
        concerns[0] if concerns else "",
        fields.uint(concerns[0], bits) if concerns else 0,
        fields.uint("count", 32) if "count" in fields.fields else 0,
        _retry_after(fields),
        *(fields.uint(key, bits) if key in fields.fields else None for key, bits in _OF_ACK),
    )


_OF_ACK = (("ack", 64), ("lease", 64), ("leases", 32))


def _retry_after(fields: _Map) -> int | None:
    return fields.uint("retry_after_ms", 32) if "retry_after_ms" in fields.fields else None


def _bus(value: object) -> Bus:
    journal, group, index = _array(value, 3)
    return Bus(_name16(journal), _uint(group), _uint(index, 32))


def _subscribed(fields: _Map) -> Subscribed:
    outcomes = []
    for row in fields.array("outcomes"):
        name, outcome, epoch, at = _array(row, 4)
        outcomes.append(Outcome(_text(name), _text(outcome), _uint(epoch), _uint(at)))
    return Subscribed(fields.uint("subscription", 32), tuple(outcomes), _bus(fields.fields.get("bus")))


_CONTROL: dict[int, Callable[[_Map], Answer]] = {
    Kind.WELCOME: _welcome,
    Kind.ERROR: _error,
    Kind.GOING_AWAY: lambda fields: GoingAway(fields.number("seconds"), _retry_after(fields)),
    Kind.SUBSCRIBED: _subscribed,
    Kind.UNSUBSCRIBED: lambda fields: Unsubscribed(fields.uint("subscription", 32)),
    Kind.EVENT: lambda fields: Event(fields.uint("subscription", 32), fields.text("event"), fields.text("channel")),
    Kind.REPLY: lambda fields: Reply(fields.uint("request", 32), fields.fields),
}


def _published(body: bytes) -> Published:
    if not body or len(body) % _ENTRY.size:
        raise Malformed(f"a PUBLISHED of {len(body)} bytes")
    entries = []
    for number, epoch, first, count, of, level, flags, reserved in _ENTRY.iter_unpack(body):
        if flags > 1 or any(reserved):
            raise Malformed("reserved bits of an entry")
        entries.append(Entry(number, epoch, first, count, of, level, flags == 1))
    return Published(tuple(entries))


def _jobs(body: bytes) -> Jobs:
    if len(body) < _JOBS.size:
        raise Malformed(f"a JOBS of {len(body)} bytes")
    subscription, count, lease, lease_ms, reserved = _JOBS.unpack_from(body)
    jobs: list[Job] = []
    at = _JOBS.size
    while at < len(body):
        one, at = _job(body, at, lease + len(jobs))
        jobs.append(one)
    if len(jobs) != count or not count or reserved:
        raise Malformed(f"a JOBS of {len(jobs)} jobs that counts {count}")
    return Jobs(subscription, lease_ms, tuple(jobs))


def _job(body: bytes, at: int, lease: int) -> tuple[Job, int]:
    if len(body) - at < _JOB.size:
        raise Malformed("a job is cut short")
    size, of, epoch, sequence, time_us, attempt, flags, name_size, reserved = _JOB.unpack_from(body, at)
    begin, end = at + _JOB.size + name_size, at + size
    if flags & ~3 or reserved or begin > end or end > len(body) or bool(flags & 2) != bool(name_size) or not attempt:
        raise Malformed(f"a job of {size} bytes with flags {flags}, attempt {attempt}")
    name = body[begin - name_size : begin].decode("ascii") if name_size else None
    record, after = _record(body[:end], begin)
    if after != end or record.run or record.time_us:
        raise Malformed("a job's record does not fill it, or is none")
    return Job(lease, of, name, epoch, sequence, time_us, attempt, bool(flags & 1), record), end


def _deliver(flags: int, body: bytes) -> Deliver:
    if flags & ~3 or len(body) < _DELIVER.size:
        raise Malformed(f"a DELIVER of {len(body)} bytes with flags {flags}")
    subscription, index, group = _DELIVER.unpack_from(body)
    at = _DELIVER.size
    name = None
    if flags & 1:
        end = at + 1 + (body[at] if at < len(body) else 0)
        try:
            name = body[at + 1 : end].decode("ascii")
        except UnicodeDecodeError as error:
            raise Malformed("a channel's name that is none") from error
        at = end
    return Deliver(subscription, index, group, name, bool(flags & 2), chunk(body[at:]))


def chunks(data: object) -> list[Chunk]:
    """Decode chunks that stand one behind the other.

    Raises:
        Malformed: one of them is cut short, or fails a check.
    """
    if not isinstance(data, bytes):
        raise Malformed("chunks that are no bytes")
    found: list[Chunk] = []
    while data:
        size = int.from_bytes(data[:4], "little")
        if size < _CHUNK.size:
            raise Malformed(f"a chunk of size {size}")
        found.append(chunk(data[:size]))
        data = data[size:]
    return found


def chunk(data: bytes) -> Chunk:
    """Decode and check a chunk that fills `data`.

    Raises:
        Malformed: any check of §10 fails.
    """
    if len(data) < _CHUNK.size:
        raise Malformed(f"a chunk of {len(data)} bytes")
    size, crc, of, epoch, first, count, flags, time_us, expiry_s = _CHUNK.unpack_from(data)
    if size != len(data) or flags or not first or not count:
        raise Malformed(f"a chunk of size {size} in {len(data)} bytes, first {first}, count {count}, flags {flags}")
    if crc32c(memoryview(data)[8:]) != crc:
        raise Malformed("the CRC of a chunk")
    records = []
    at = _CHUNK.size
    while at < size:
        one, at = _record(data, at)
        records.append(one)
    if sum(one.count for one in records) != count:
        raise Malformed(f"a chunk's records cover {sum(one.count for one in records)} sequences, not {count}")
    return Chunk(size, of, epoch, first, count, time_us, expiry_s, tuple(records))


def _record(data: bytes, at: int) -> tuple[Record, int]:
    if len(data) - at < _RECORD.size:
        raise Malformed("a record is cut short")
    size, flags, reserved, time_us = _RECORD.unpack_from(data, at)
    if size < _RECORD.size or size > len(data) - at or reserved or flags & ~(_FIELDS | Flag.GONE):
        raise Malformed(f"a record of {size} bytes with flags 0x{flags:04x}, reserved {reserved}")
    body = data[at + _RECORD.size : at + size]
    if flags & Flag.GONE:
        return _gone(flags, time_us, body), at + size
    fields = _RecordFields(body)
    return (
        Record(
            time_us,
            publisher=fields.take(fields.uint(1)) if flags & Flag.PUBLISHER else None,
            number=fields.uint(8) if flags & Flag.NUMBER else None,
            priority=fields.uint(1) if flags & Flag.PRIORITY else 2,
            expiry_s=fields.uint(4) if flags & Flag.EXPIRY else None,
            key=fields.take(fields.uint(2)) if flags & Flag.KEY else None,
            headers=fields.take(fields.uint(2)) if flags & Flag.HEADERS else None,
            id=fields.take(fields.uint(1)) if flags & Flag.ID else None,
            payload=fields.rest(),
        ),
        at + size,
    )


def _gone(flags: int, time_us: int, body: bytes) -> Record:
    if flags != Flag.GONE or len(body) != _GONE.size:
        raise Malformed(f"a GONE record of {len(body)} bytes with flags 0x{flags:04x}")
    reason, zero, run = _GONE.unpack(body)
    if any(zero) or not run:
        raise Malformed("a GONE record of no sequences, or reserved bytes in it")
    return Record(time_us, b"", reason=reason, run=run)


class _RecordFields:
    def __init__(self, body: bytes) -> None:
        self.body = body
        self.at = 0

    def take(self, length: int) -> bytes:
        taken = self.body[self.at : self.at + length]
        if len(taken) != length:
            raise Malformed("a field of a record is cut short")
        self.at += length
        return taken

    def uint(self, size: int) -> int:
        return int.from_bytes(self.take(size), "little")

    def rest(self) -> bytes:
        return self.body[self.at :]
