"""Chunks and jobs as the JSON dialect tells of them, in plain Python: what `broker_native.json_chunks` must write."""

from __future__ import annotations

import base64
import math
import struct
from typing import TYPE_CHECKING, Any

import msgpack

from tests.reference.frames import Record, records_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tests.reference.frames import Delivery
    from tests.reference.groups import Chunk
    from tests.reference.jobs import Told

SAFE_MAX = 2**53 - 1
REASONS = ["unknown", "expired", "compacted", "revoked", "erased", "dropped", "lost", "conflated"]
INDEX_END = 2**32 - 1


def integer(value: int) -> int | str:
    """An integer as JavaScript can hold it."""
    return value if abs(value) <= SAFE_MAX else str(value)


def binary(data: bytes) -> str:
    return base64.b64encode(data).decode()


def named(name: str, data: bytes, other: str | None = None) -> dict[str, str]:
    """A member that is text, or base64 under its other name."""
    try:
        return {name: data.decode()}
    except UnicodeDecodeError:
        return {other or f"{name}_base64": binary(data)}


class Unsayable(Exception):
    """JSON has no form for it."""


def sayable(value: Any, depth: int = 1) -> Any:
    """A value of headers as JSON says it."""
    if depth > 32:
        raise Unsayable
    if isinstance(value, dict):
        if not all(isinstance(key, str) for key in value):
            raise Unsayable
        return {key: sayable(item, depth + 1) for key, item in value.items()}
    if isinstance(value, list):
        return [sayable(item, depth + 1) for item in value]
    if isinstance(value, bytes):
        return {"base64": binary(value)}
    if isinstance(value, float) and not math.isfinite(value):
        raise Unsayable
    if isinstance(value, (msgpack.ExtType, msgpack.Timestamp)):
        raise Unsayable
    return integer(value) if type(value) is int else value


def headers_of(packed: bytes) -> dict[str, Any]:
    """The member that a record's headers are."""
    try:
        value = msgpack.unpackb(packed, raw=False, strict_map_key=False)
        if not isinstance(value, dict):
            raise Unsayable
        return {"headers": sayable(value)}
    except (Unsayable, ValueError):
        return {"headers_base64": binary(packed)}


def message(record: Record) -> dict[str, Any]:
    """The members of a message that its record says."""
    said: dict[str, Any] = {}
    if record.publisher is not None:
        said |= named("publisher", record.publisher)
    if record.number is not None:
        said["number"] = integer(record.number)
    if record.priority is not None:
        said["priority"] = record.priority
    if record.expiry_s is not None:
        said["expires_s"] = record.expiry_s
    if record.key is not None:
        said |= named("key", record.key)
    if record.headers is not None:
        said |= headers_of(record.headers)
    if record.id is not None:
        said |= named("message_id", record.id)
    return said | named("text", record.payload, "base64")


def messages(chunk: Chunk) -> list[dict[str, Any]]:
    """The messages of a chunk."""
    said, sequence = [], chunk.first
    for record in records_of(chunk):
        if record.gone is not None:
            reason, run = record.gone
            name = REASONS[reason] if reason < len(REASONS) else REASONS[0]
            said.append({"seq": integer(sequence), "gone": name, "count": run})
        else:
            when = integer(chunk.time_us + record.time_us)
            said.append({"seq": integer(sequence), "time": when, **message(record)})
        sequence += record.run
    return said


def deliver(delivery: Delivery, channel: bytes, journal: bytes, chunk_bytes: int) -> dict[str, Any]:
    """A DELIVER as an object."""
    chunk = delivery.chunk
    said: dict[str, Any] = {"op": "deliver", "sub": delivery.subscription, "channel": channel.decode()}
    said |= {"epoch": str(chunk.epoch), "position": f"{chunk.epoch}:{chunk.last}"}
    group, index = delivery.group, delivery.index
    if delivery.flags & 2:
        said["early"] = True
        group, index = max(group - 2, 0), INDEX_END
    if group:
        said["bus"] = f"{journal.hex()}:{group}:{index}"
    return said | {"bytes": chunk_bytes, "messages": messages(chunk)}


def jobs(subscription: int, first_lease: int, lease_ms: int, told: Sequence[Told]) -> dict[str, Any]:
    """A JOBS as an object."""
    names: dict[int, bytes] = {}
    said = []
    for at, job in enumerate(told):
        if job.name is not None:
            names[job.channel] = job.name
        each: dict[str, Any] = {"lease": str(first_lease + at), "channel": names[job.channel].decode()}
        each |= {"epoch": str(job.epoch), "seq": integer(job.sequence), "time": integer(job.time_us)}
        each["attempt"] = job.attempt
        if job.redelivered:
            each["redelivered"] = True
        said.append(each | message(job.record))
    return {"op": "jobs", "sub": subscription, "lease_ms": integer(lease_ms), "jobs": said}


def texts_of(stream: bytes) -> list[bytes]:
    """The text messages of a server's WebSocket, and of nothing else."""
    texts, at = [], 0
    while at < len(stream):
        kind, size = stream[at : at + 2]
        assert kind == 0x81
        at += 2
        if size >= 126:
            form = ">H" if size == 126 else ">Q"
            shortest = 126 if size == 126 else 2**16
            size = struct.unpack_from(form, stream, at)[0]
            assert size >= shortest
            at += struct.calcsize(form)
        texts.append(stream[at : at + size])
        assert len(texts[-1]) == size
        at += size
    return texts
