"""The protocol of NATS in plain Python, from the side of the server."""

from __future__ import annotations

from typing import NamedTuple


class Published(NamedTuple):
    """A PUB: its subject, where answers go, and its payload."""

    subject: bytes
    reply: bytes
    payload: bytes


def message(subject: bytes, payload: bytes, *, reply: bytes = b"", number: int = 1) -> bytes:
    """Return a MSG."""
    words = [b"MSG", subject, str(number).encode(), *([reply] if reply else []), str(len(payload)).encode()]
    return b" ".join(words) + b"\r\n" + payload + b"\r\n"


def status(subject: bytes, text: bytes, *, reply: bytes = b"", headers: bytes = b"", number: int = 1) -> bytes:
    """Return an HMSG in which the server speaks for itself."""
    block = b"NATS/1.0 " + text + b"\r\n" + headers + b"\r\n"
    size = str(len(block)).encode()
    words = [b"HMSG", subject, str(number).encode(), *([reply] if reply else []), size, size]
    return b" ".join(words) + b"\r\n" + block + b"\r\n"


def answer(inbox: bytes, sequence: int, *, stream: bytes = b"S", more: bytes = b"") -> bytes:
    """Return JetStream's answer to a message."""
    return message(inbox, b'{"stream":"%b","seq":%d%b}' % (stream, sequence, more))


def lines(data: bytes) -> list[bytes | Published]:
    """Return what a client sent: its PUBs, and other lines as they are.

    Raises:
        ValueError: the last is not whole, or a payload does not end where its size says.
    """
    found: list[bytes | Published] = []
    at = 0
    while at < len(data):
        end = data.index(b"\r\n", at)
        words = data[at:end].split(b" ")
        at = end + 2
        if words[0] != b"PUB":
            found.append(b" ".join(words))
            continue
        size = int(words[-1])
        if data[at + size : at + size + 2] != b"\r\n":
            raise ValueError("a payload that does not end where its size says")
        found.append(Published(words[1], words[2] if len(words) == 4 else b"", data[at : at + size]))
        at += size + 2
    return found
