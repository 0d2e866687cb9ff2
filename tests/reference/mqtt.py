"""MQTT 3.1.1 in plain Python, from the side of the broker."""

from __future__ import annotations

from typing import NamedTuple


class Packet(NamedTuple):
    """A packet: its first byte, and what stands behind its size."""

    head: int
    body: bytes


class Publish(NamedTuple):
    """A PUBLISH; `identifier` is 0 with QoS 0."""

    topic: bytes
    identifier: int
    payload: bytes


def packet(head: int, body: bytes) -> bytes:
    """Return a packet."""
    size, left = b"", len(body)
    while True:
        left, digit = divmod(left, 128)
        size += bytes([digit + 128 * bool(left)])
        if not left:
            return bytes([head]) + size + body


def publish(topic: bytes, payload: bytes, *, identifier: int = 0, flags: int = 0) -> bytes:
    """Return a PUBLISH, of QoS 1 if it has an identifier; `flags` are DUP (8) and RETAIN (1)."""
    name = len(topic).to_bytes(2, "big") + topic
    if not identifier:
        return packet(0x30 + flags, name + payload)
    return packet(0x32 + flags, name + identifier.to_bytes(2, "big") + payload)


def puback(identifier: int) -> bytes:
    """Return a PUBACK."""
    return packet(0x40, identifier.to_bytes(2, "big"))


def packets(data: bytes) -> list[Packet]:
    """Take bytes apart into packets.

    Raises:
        IndexError, ValueError: the last is not whole.
    """
    at, found = 0, []
    while at < len(data):
        head, size, factor = data[at], 0, 1
        while True:
            at += 1
            size += factor * (data[at] % 128)
            factor *= 128
            if data[at] < 128:
                break
        at += 1
        if at + size > len(data):
            raise ValueError("a packet that is not whole")
        found.append(Packet(head, data[at : at + size]))
        at += size
    return found


def publish_of(received: Packet) -> Publish:
    """Read a PUBLISH.

    Raises:
        ValueError: it is none.
    """
    if received.head not in (0x30, 0x32):
        raise ValueError(f"a packet that begins with {received.head}")
    size = int.from_bytes(received.body[:2], "big")
    rest = received.body[2 + size :]
    answered = received.head == 0x32
    return Publish(received.body[2 : 2 + size], int.from_bytes(rest[:2], "big") * answered, rest[2 * answered :])
