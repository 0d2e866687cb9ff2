"""RESP in plain Python, from the side of the server: what the load driver's dialects for Redis must agree with."""

from __future__ import annotations

from typing import TypeAlias

Value: TypeAlias = bytes | int | list["Value"]


def bulk(string: bytes) -> bytes:
    """Return a string."""
    return b"$" + str(len(string)).encode() + b"\r\n" + string + b"\r\n"


def array(*values: bytes) -> bytes:
    """Return an array of values that are encoded already."""
    return b"*" + str(len(values)).encode() + b"\r\n" + b"".join(values)


def message(channel: bytes, payload: bytes, *, pattern: bytes | None = None, resp: int = 2) -> bytes:
    """Return what a subscriber is sent."""
    words = [b"message", channel, payload] if pattern is None else [b"pmessage", pattern, channel, payload]
    made = array(*map(bulk, words))
    return made if resp == 2 else b">" + made[1:]


def entry(identifier: bytes, payload: bytes) -> bytes:
    """Return an entry of a stream with its one field."""
    return array(bulk(identifier), array(bulk(b"d"), bulk(payload)))


def streams(*read: tuple[bytes, list[bytes]], resp: int = 2) -> bytes:
    """Return a reply to XREAD: of each stream its entries."""
    if resp == 2:
        return array(*(array(bulk(name), array(*entries)) for name, entries in read))
    return b"%" + str(len(read)).encode() + b"\r\n" + b"".join(bulk(name) + array(*entries) for name, entries in read)


def decode(data: bytes, at: int = 0) -> tuple[Value, int]:
    """Return the value that begins at a place, and where it ends.

    Raises:
        ValueError, IndexError: there is none.
    """
    end = data.index(b"\r\n", at)
    kind, number = data[at : at + 1], int(data[at + 1 : end])
    at = end + 2
    if kind == b":":
        return number, at
    if kind == b"$":
        if data[at + number : at + number + 2] != b"\r\n":
            raise ValueError("a string that does not end where its size says")
        return data[at : at + number], at + number + 2
    if kind not in (b"*", b">"):
        raise ValueError(f"a value of kind {kind!r}")
    values = []
    for _ in range(number):
        value, at = decode(data, at)
        values.append(value)
    return values, at


def commands(data: bytes) -> list[list[bytes]]:
    """Return the commands that a client sent.

    Raises:
        ValueError, IndexError: they are none, or the last is not whole.
    """
    at, found = 0, []
    while at < len(data):
        value, at = decode(data, at)
        assert isinstance(value, list)
        words = [word for word in value if isinstance(word, bytes)]
        if data[:1] != b"*" or len(words) != len(value):
            raise ValueError("a command is an array of strings")
        found.append(words)
    return found
