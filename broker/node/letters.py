"""Dead letters: copies of messages that a consumer has given up, which say where they come from and why.

A copy has the payload, the key and the headers of its source, and headers of the broker's own beside them. One that is
given up again keeps what is said of its first source, and how often that was: there is an end to it.
"""

from __future__ import annotations

from struct import Struct
from typing import NamedTuple

import msgpack

from broker.model.errors import error

__all__ = ["REASONS", "TIMES_MAX", "Letter", "letter_of", "letter_record", "source_record"]

RECORD = Struct("<IHHI")
PUBLISHER, NUMBER, PRIORITY, EXPIRY, KEY, HEADERS, ID = 0x01, 0x02, 0x04, 0x08, 0x10, 0x20, 0x40
HEADERS_BYTES_MAX = (1 << 16) - 1
REASONS = {1: "rejected", 2: "attempts"}
CHANNEL_KEY, EPOCH_KEY, SEQUENCE_KEY = "broker-source", "broker-epoch", "broker-sequence"
CONSUMER_KEY, ATTEMPTS_KEY, REASON_KEY = "broker-consumer", "broker-attempts", "broker-reason"
TIMES_KEY = "broker-times"
OWN_KEYS = frozenset({CHANNEL_KEY, EPOCH_KEY, SEQUENCE_KEY, CONSUMER_KEY, ATTEMPTS_KEY, REASON_KEY, TIMES_KEY})
TIMES_MAX = 16
"""How often a message may be given up, by one consumer after the other: those that read each other's letters end."""


class Fields(NamedTuple):
    """What of a record a copy keeps; who has published it was written by a server, never by a client."""

    publisher: bytes
    priority: bytes
    key: bytes
    headers: bytes
    payload: bytes


class Letter(NamedTuple):
    """What a dead letter says of itself: the consumer that gave it up, and the channel that it came from."""

    consumer: str
    channel: str


def fields_of(record: bytes) -> Fields:
    """Take a well-formed record apart."""
    flags = RECORD.unpack_from(record)[1]
    at = RECORD.size
    publisher = priority = key = headers = b""
    if flags & PUBLISHER:
        publisher = record[at : at + 1 + record[at]]
        at += len(publisher)
    if flags & NUMBER:
        at += 8
    if flags & PRIORITY:
        priority = record[at : at + 1]
        at += 1
    if flags & EXPIRY:
        at += 4
    if flags & KEY:
        size = 2 + int.from_bytes(record[at : at + 2], "little")
        key = record[at + 2 : at + size]
        at += size
    if flags & HEADERS:
        size = 2 + int.from_bytes(record[at : at + 2], "little")
        headers = record[at + 2 : at + size]
        at += size
    if flags & ID:
        at += 1 + record[at]
    return Fields(publisher, priority, key, headers, record[at:])


def record_with(fields: Fields) -> bytes:
    """Return a record that has these fields."""
    flags, body = 0, b""
    for bit, whole in ((PUBLISHER, fields.publisher), (PRIORITY, fields.priority)):
        if whole:
            flags |= bit
            body += whole
    for bit, value in ((KEY, fields.key), (HEADERS, fields.headers)):
        if value:
            flags |= bit
            body += len(value).to_bytes(2, "little") + value
    body += fields.payload
    return RECORD.pack(RECORD.size + len(body), flags, 0, 0) + body


def headers_of(packed: bytes) -> dict[object, object]:
    """Return a record's headers; none if they are not what they should be: nobody has looked into them so far."""
    try:
        headers = msgpack.unpackb(packed, strict_map_key=False) if packed else {}
    except ValueError:
        return {}
    return headers if isinstance(headers, dict) else {}


def letter_record(
    record: bytes, consumer: str, channel: str, epoch: int, sequence: int, attempts: int, reason: int
) -> bytes:
    """Return the dead letter of a record.

    Args:
        record: What is given up.
        consumer: Who gives it up.
        channel, epoch, sequence: Where it is.
        attempts: How often it was tried.
        reason: A key of REASONS.

    Raises:
        RequestError: INVALID_CONSUMER; it was given up TIMES_MAX times already.
    """
    fields = fields_of(record)
    headers = headers_of(fields.headers)
    own: dict[object, object] = {CHANNEL_KEY: channel, EPOCH_KEY: epoch, SEQUENCE_KEY: sequence}
    own.update({key: headers[key] for key in own if CHANNEL_KEY in headers and key in headers})
    times = headers.get(TIMES_KEY, 1) if CHANNEL_KEY in headers else 0
    if isinstance(times, int) and times:
        if times >= TIMES_MAX:
            raise error(
                "INVALID_CONSUMER",
                f"dead letter of consumer {consumer}: got {times} times that it was given up, limit {TIMES_MAX}: "
                "consumers read each other's dead letters",
                "Let no consumer's dead letters come back to it.",
            )
        own[TIMES_KEY] = times + 1
    own.update({CONSUMER_KEY: consumer, ATTEMPTS_KEY: attempts, REASON_KEY: REASONS[reason]})
    packed = msgpack.packb({**headers, **own})
    if len(packed) > HEADERS_BYTES_MAX:
        packed = msgpack.packb(own)  # what cannot be carried beside it stays with the source
    return record_with(fields._replace(headers=packed))


def letter_of(record: bytes) -> Letter | None:
    """Return what a record says of itself if it is a dead letter."""
    if not RECORD.unpack_from(record)[1] & HEADERS:
        return None
    headers = headers_of(fields_of(record).headers)
    consumer, channel = headers.get(CONSUMER_KEY), headers.get(CHANNEL_KEY)
    if isinstance(consumer, str) and isinstance(channel, str):
        return Letter(consumer, channel)
    return None


def source_record(record: bytes) -> bytes:
    """Return a dead letter as it was before it was given up."""
    fields = fields_of(record)
    headers = {key: value for key, value in headers_of(fields.headers).items() if key not in OWN_KEYS}
    return record_with(fields._replace(headers=msgpack.packb(headers) if headers else b""))
