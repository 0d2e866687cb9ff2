"""Frames as people read them: every byte of a frame on a line with what it says.

The specification's examples and the golden traces are written in this form. `annotate` renders a frame, `bytes_of`
reads the bytes back; the words behind the bytes are for people, and the tests hold them to what `annotate` says.

Plain Python over the layouts of specification.md; nothing of the codec under test is used here.
"""

from __future__ import annotations

import re
import struct
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

KINDS = {
    1: "HELLO", 2: "WELCOME", 3: "ERROR", 4: "PING", 5: "PONG", 6: "GOING_AWAY", 7: "CHANNEL", 8: "SUBSCRIBE",
    9: "SUBSCRIBED", 10: "UNSUBSCRIBE", 11: "UNSUBSCRIBED", 12: "EVENT", 13: "REQUEST", 14: "REPLY", 16: "PUBLISH",
    17: "PUBLISHED", 18: "DELIVER", 19: "ACK", 20: "CREDIT", 21: "JOBS", 22: "ACKED", 23: "TRANSACTION",
}  # fmt: skip
VERBS = {1: "ack", 2: "nack", 3: "reject", 4: "extend", 5: "ack through"}
LEVELS = {1: "ephemeral", 2: "accepted", 3: "synced", 4: "replicated"}
FLAGS = {"DELIVER": ((1, "NAME"), (2, "EARLY")), "PUBLISH": ((1, "EXPECT"), (2, "AT"), (4, "ASK"), (8, "REPLY"))}
REASONS = {1: "expired", 2: "compacted", 3: "revoked", 4: "erased", 5: "dropped"}
RECORD_FIELDS = (
    (0x0001, "PUBLISHER", 1),
    (0x0002, "NUMBER", 0),
    (0x0004, "PRIORITY", 0),
    (0x0008, "EXPIRY", 0),
    (0x0010, "KEY", 2),
    (0x0020, "HEADERS", 2),
    (0x0040, "ID", 1),
)
FIXED_FIELDS = {0x0002: 8, 0x0004: 1, 0x0008: 4}
GONE = 0x8000
ROW_BYTES = 16

Field = tuple[bytes, str]


class Bytes:
    """A place in a frame's bytes."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.at = 0

    @property
    def left(self) -> int:
        return len(self.data) - self.at

    def take(self, size: int) -> bytes:
        if size > self.left:
            raise ValueError(f"got {self.left} bytes, needed {size}")
        taken = self.data[self.at : self.at + size]
        self.at += size
        return taken

    def peek(self, size: int) -> int:
        return int.from_bytes(self.data[self.at : self.at + size], "little")


def number(source: Bytes, size: int, name: str) -> Field:
    taken = source.take(size)
    return taken, f"{name} {int.from_bytes(taken, 'little')}"


def text_of(data: bytes) -> str:
    """Return printable text as it is, anything else as hex."""
    if data and all(0x20 <= byte < 0x7F for byte in data):
        return f'"{data.decode()}"'
    return f"{len(data)} bytes"


# -- msgpack ---------------------------------------------------------------------------------------------------------


def msgpack_fields(source: Bytes, depth: int = 0) -> Iterator[Field]:
    """Yield the values of a control body, each on a line; a key shares its line with a scalar value."""
    indent = "  " * depth
    head, size, is_map = container(source)
    if head is None:
        yield scalar(source, indent)
        return
    yield head, f"{indent}{'map' if is_map else 'array'} of {size}"
    for _ in range(size):
        if not is_map:
            yield from msgpack_fields(source, depth + 1)
            continue
        key, shown = scalar(source, "")
        shown = shown.strip('"')
        at = source.at
        inner, _, _ = container(source)
        if inner is None:
            value, meaning = scalar(source, "")
            yield key + value, f"{indent}  {shown}: {meaning}"
        else:
            source.at = at
            yield key, f"{indent}  {shown}:"
            yield from msgpack_fields(source, depth + 1)


def container(source: Bytes) -> tuple[bytes | None, int, bool]:
    first = source.data[source.at]
    if 0x80 <= first <= 0x8F:
        return source.take(1), first & 0x0F, True
    if 0x90 <= first <= 0x9F:
        return source.take(1), first & 0x0F, False
    if first in (0xDC, 0xDE):
        head = source.take(3)
        return head, int.from_bytes(head[1:], "big"), first == 0xDE
    return None, 0, False


def scalar(source: Bytes, indent: str) -> Field:
    begin = source.at
    first = source.take(1)[0]
    if first < 0x80:
        shown = str(first)
    elif 0xA0 <= first <= 0xBF:
        shown = text_of(source.take(first & 0x1F)) if first & 0x1F else '""'
    elif first in (0xC0, 0xC2, 0xC3):
        shown = {0xC0: "nil", 0xC2: "false", 0xC3: "true"}[first]
    elif first == 0xC4:
        shown = f"bytes {source.take(source.take(1)[0]).hex()}"
    elif first in (0xD9, 0xDA):
        size = int.from_bytes(source.take(1 if first == 0xD9 else 2), "big")
        shown = text_of(source.take(size))
    elif 0xCC <= first <= 0xCF:
        shown = str(int.from_bytes(source.take(1 << (first - 0xCC)), "big"))
    elif first == 0xCB:
        shown = repr(struct.unpack(">d", source.take(8))[0])
    else:
        raise ValueError(f"a msgpack value that begins with 0x{first:02x} is in no example")
    return source.data[begin : source.at], f"{indent}{shown}"


# -- records and chunks ----------------------------------------------------------------------------------------------


def record_fields(source: Bytes, name: str) -> Iterator[Field]:
    size = source.peek(4)
    record = Bytes(source.take(size))
    yield record.take(4), f"{name}: size {size}"
    flags = record.peek(2)
    names = [field for bit, field, _ in RECORD_FIELDS if flags & bit] + (["GONE"] if flags & GONE else [])
    yield record.take(2), f"  flags {' '.join(names) or 'none'}"
    yield record.take(2), "  reserved"
    yield number(record, 4, "  time_us")
    if flags & GONE:
        reason = record.take(1)
        yield reason, f"  GONE: reason {reason[0]} {REASONS[reason[0]]}"
        yield record.take(3), "  zero"
        yield number(record, 4, "  run")
        return
    for bit, field, prefix in RECORD_FIELDS:
        if flags & bit:
            yield from optional_field(record, bit, field, prefix)
    payload = record.take(record.left)
    if payload:
        yield payload, f"  payload {text_of(payload)}"


def optional_field(record: Bytes, bit: int, field: str, prefix: int) -> Iterator[Field]:
    if bit in FIXED_FIELDS:
        yield number(record, FIXED_FIELDS[bit], f"  {field}")
        return
    length = record.peek(prefix)
    yield record.take(prefix), f"  {field}: length {length}"
    if bit == 0x0020:
        inner = Bytes(record.take(length))
        for taken, meaning in msgpack_fields(inner):
            yield taken, f"    {meaning}"
    else:
        value = record.take(length)
        yield value, f"    {text_of(value)}"


def chunk_fields(source: Bytes) -> Iterator[Field]:
    yield number(source, 4, "chunk: size")
    crc = source.take(4)
    yield crc, f"  crc 0x{int.from_bytes(crc, 'little'):08x}"
    channel = source.take(8)
    value = int.from_bytes(channel, "little")
    yield channel, f"  channel {value}" if value < 1 << 62 else f"  channel 2^62 + {value - (1 << 62)}"
    yield number(source, 8, "  epoch")
    yield number(source, 8, "  first")
    yield number(source, 4, "  count")
    yield number(source, 4, "  flags")
    yield number(source, 8, "  time_us")
    yield number(source, 8, "  expiry_s")
    while source.left:
        yield from record_fields(source, "  record")


# -- frames ----------------------------------------------------------------------------------------------------------


def publish_fields(body: Bytes, flags: int) -> Iterator[Field]:
    yield number(body, 4, "reserved" if flags & 12 else "channel")
    yield number(body, 4, "count")
    yield number(body, 8, "number")
    if flags & 1:
        yield number(body, 8, "epoch")
        yield number(body, 8, "sequence")
    if flags & 2:
        when = body.take(8)
        value = int.from_bytes(when, "little")
        yield when, f"when {value}" if value < 1 << 63 else f"when {value - (1 << 63)} from now"
    if flags & 12:
        length = body.take(1)
        yield length, f"name: length {length[0]}"
        name = body.take(length[0])
        yield name, f"  {text_of(name)}"
    while body.left:
        yield from record_fields(body, "record")


def transaction_fields(body: Bytes) -> Iterator[Field]:
    yield number(body, 4, "publishes")
    yield number(body, 4, "acks")
    while body.left:
        for taken, meaning in frame_fields(body):
            yield taken, f"  {meaning}"


def published_fields(body: Bytes) -> Iterator[Field]:
    while body.left:
        yield number(body, 8, "entry: number")
        yield number(body, 8, "  epoch")
        yield number(body, 8, "  first")
        yield number(body, 4, "  count")
        yield number(body, 4, "  channel")
        level = body.take(1)
        yield level, f"  level {level[0]} {LEVELS[level[0]]}"
        flags = body.take(1)
        yield flags, f"  flags {'duplicate' if flags[0] & 1 else 'none'}"
        yield body.take(6), "  reserved"


def deliver_fields(body: Bytes, flags: int) -> Iterator[Field]:
    yield number(body, 4, "subscription")
    yield number(body, 4, "index")
    yield number(body, 8, "group")
    if flags & 1:
        length = body.take(1)
        yield length, f"name: length {length[0]}"
        name = body.take(length[0])
        yield name, f"  {text_of(name)}"
    yield from chunk_fields(body)


def credit_fields(body: Bytes) -> Iterator[Field]:
    yield number(body, 4, "subscription")
    yield number(body, 4, "reserved")
    yield number(body, 8, "bytes")


def ack_fields(body: Bytes) -> Iterator[Field]:
    yield number(body, 4, "subscription")
    yield number(body, 4, "count")
    yield number(body, 8, "number")
    while body.left:
        yield number(body, 8, "entry: lease")
        yield number(body, 4, "  leases")
        verb = body.take(1)
        yield verb, f"  verb {verb[0]} {VERBS[verb[0]]}"
        yield body.take(3), "  reserved"
        yield number(body, 8, "  ms")


def jobs_fields(body: Bytes) -> Iterator[Field]:
    yield number(body, 4, "subscription")
    yield number(body, 4, "count")
    yield number(body, 8, "lease")
    yield number(body, 8, "lease_ms")
    yield number(body, 8, "reserved")
    while body.left:
        yield from job_fields(Bytes(body.take(body.peek(4))))


def job_fields(job: Bytes) -> Iterator[Field]:
    yield number(job, 4, "job: size")
    yield number(job, 4, "  channel")
    yield number(job, 8, "  epoch")
    yield number(job, 8, "  sequence")
    yield number(job, 8, "  time_us")
    yield number(job, 2, "  attempt")
    flags = job.take(1)
    shown = [word for bit, word in ((1, "REDELIVERED"), (2, "NAME")) if flags[0] & bit]
    yield flags, f"  flags {' '.join(shown) or 'none'}"
    length = job.peek(1)
    yield number(job, 1, "  name_size")
    yield number(job, 4, "  reserved")
    name = job.take(length)
    yield name, f"  name {text_of(name)}"
    yield from record_fields(job, "  record")


def acked_fields(body: Bytes) -> Iterator[Field]:
    yield number(body, 4, "subscription")
    yield number(body, 4, "reserved")
    yield number(body, 8, "number")


def channel_fields(body: Bytes) -> Iterator[Field]:
    yield number(body, 4, "number")
    name = body.take(body.left)
    yield name, f"name {text_of(name)}"


def hello_fields(body: Bytes) -> Iterator[Field]:
    yield body.take(8), 'magic "BROKER", 0, 1'
    yield from msgpack_fields(body)


def token_fields(body: Bytes) -> Iterator[Field]:
    yield number(body, 8, "token")


def frame_fields(source: Bytes) -> Iterator[Field]:
    """Yield the fields of the frame at the front of `source`.

    Raises:
        ValueError: its bytes are no such frame; they come as they are, one run.
    """
    size = source.peek(4)
    yield source.take(4), f"size {size}"
    kind = source.take(1)
    name = KINDS.get(kind[0], "unknown")
    yield kind, f"kind {kind[0]} {name}"
    flags = source.take(1)
    shown = [word for bit, word in FLAGS.get(name, ()) if flags[0] & bit]
    yield flags, f"flags {' '.join(shown) or flags[0]}"
    yield number(source, 2, "reserved")
    body = Bytes(source.take(size))
    yield from body_fields(body, name, flags[0])
    if body.left:
        yield body.take(body.left), "the rest"


def body_fields(body: Bytes, name: str, flags: int) -> Iterator[Field]:
    match name:
        case "HELLO":
            return hello_fields(body)
        case "PING" | "PONG":
            return token_fields(body)
        case "CHANNEL":
            return channel_fields(body)
        case "CREDIT":
            return credit_fields(body)
        case "ACK":
            return ack_fields(body)
        case "JOBS":
            return jobs_fields(body)
        case "ACKED":
            return acked_fields(body)
        case "PUBLISH":
            return publish_fields(body, flags)
        case "TRANSACTION":
            return transaction_fields(body)
        case "PUBLISHED":
            return published_fields(body)
        case "DELIVER":
            return deliver_fields(body, flags)
        case "unknown":
            return iter(())
    return msgpack_fields(body)


def frames(data: bytes) -> list[bytes]:
    """Cut a stream into frames; what is no whole frame at its end comes last, as it is."""
    found = []
    at = 0
    while len(data) - at >= 8:
        size = 8 + int.from_bytes(data[at : at + 4], "little")
        if size > len(data) - at:
            break
        found.append(data[at : at + size])
        at += size
    if at < len(data):
        found.append(data[at:])
    return found


def annotate(frame: bytes) -> list[str]:
    """Render one frame, a line a field, bytes first; bytes that are no legal frame are rendered as they are."""
    try:
        fields = list(frame_fields(Bytes(frame)))
    except (ValueError, IndexError, KeyError):
        fields = [(frame, "not a legal frame")]
    return render(fields)


def render(fields: Iterable[Field]) -> list[str]:
    """Write fields, a line each; a long one goes on in the next line."""
    lines = []
    for data, meaning in fields:
        if not data:
            continue
        rows = [data[at : at + ROW_BYTES].hex(" ") for at in range(0, len(data), ROW_BYTES)]
        lines.append(f"{rows[0]:<{3 * ROW_BYTES - 1}}  {meaning}")
        lines += rows[1:]
    return lines


_HEX = re.compile(r"^([0-9a-f]{2}(?: [0-9a-f]{2})*)(?: {2}.*)?$")


def bytes_of(lines: list[str]) -> bytes:
    """Return the bytes of rendered lines.

    Raises:
        ValueError: a line does not begin with bytes.
    """
    data = b""
    for line in lines:
        found = _HEX.match(line.strip())
        if found is None:
            raise ValueError(f"no bytes in {line!r}")
        data += bytes.fromhex(found[1])
    return data
