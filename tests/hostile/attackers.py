"""Peers that keep to no rule: sockets and bytes, and nothing of the broker's own code.

A `Peer` is one connection over which anything can be sent, and from which frames are read as the specification draws
them. What it is told by an ERROR it keeps, so that a test can ask for the code that the offender got.
"""

from __future__ import annotations

import select
import socket
import struct
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import msgpack

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Self

HELLO, WELCOME, ERROR, PING, PONG, GOING_AWAY, CHANNEL, SUBSCRIBE, SUBSCRIBED = range(1, 10)
UNSUBSCRIBE, UNSUBSCRIBED, EVENT, REQUEST, REPLY = range(10, 15)
PUBLISH, PUBLISHED, DELIVER, ACK, CREDIT, JOBS, ACKED, TRANSACTION = range(16, 24)
FROM_CLIENTS = (HELLO, PING, PONG, CHANNEL, SUBSCRIBE, UNSUBSCRIBE, REQUEST, PUBLISH, ACK, CREDIT, TRANSACTION)

MAGIC = b"BROKER\0\1"
HEADER = struct.Struct("<IBBH")
PUBLISH_BODY = struct.Struct("<IIQ")
RECORD = struct.Struct("<IHHI")
CREDIT_BODY = struct.Struct("<IIQ")
DELIVER_BODY = struct.Struct("<IIQ")
CHUNK = struct.Struct("<IIQQQIIQQ")
ENTRY = struct.Struct("<QQQIIBB6x")
U32_MAX, U64_MAX = (1 << 32) - 1, (1 << 64) - 1
ANSWER_S_MAX = 20.0
"""How long an answer may take on a machine that is busy with other things."""


def frame(kind: int, body: bytes = b"", flags: int = 0, *, size: int | None = None, reserved: int = 0) -> bytes:
    """Return a frame whose header may lie."""
    return HEADER.pack(len(body) if size is None else size, kind, flags, reserved) + body


def packed(kind: int, **body: object) -> bytes:
    """Return a frame whose body is a map."""
    return frame(kind, bytes(msgpack.packb(body)))


def hello(**body: object) -> bytes:
    """Return a HELLO; what it says may be changed."""
    return frame(HELLO, MAGIC + bytes(msgpack.packb({"versions": [1], "client": "attacker", **body})))


def channel(number: int, name: bytes) -> bytes:
    """Return a CHANNEL."""
    return frame(CHANNEL, struct.pack("<I", number) + name)


def record(
    payload: bytes = b"", flags: int = 0, *, size: int | None = None, reserved: int = 0, time_us: int = 0
) -> bytes:
    """Return a record; `payload` includes the fields that the flags promise."""
    return RECORD.pack(RECORD.size + len(payload) if size is None else size, flags, reserved, time_us) + payload


def publish(slot: int, number: int, *records: bytes, count: int | None = None) -> bytes:
    """Return a PUBLISH; its count may lie."""
    body = PUBLISH_BODY.pack(slot, len(records) if count is None else count, number) + b"".join(records)
    return frame(PUBLISH, body)


def subscribe(number: int, *filters: str, credit: int = 1 << 20, **more: object) -> bytes:
    """Return a SUBSCRIBE."""
    return packed(SUBSCRIBE, subscription=number, filters=list(filters), credit=credit, **more)


def credit(subscription: int, more: int, reserved: int = 0) -> bytes:
    """Return a CREDIT."""
    return frame(CREDIT, CREDIT_BODY.pack(subscription, reserved, more))


def ping(token: int = 0) -> bytes:
    """Return a PING."""
    return frame(PING, struct.pack("<Q", token))


@dataclass(frozen=True, slots=True)
class Answer:
    """One frame from the server."""

    kind: int
    flags: int
    body: bytes

    def fields(self) -> dict[str, Any]:
        """Return the map in the body."""
        found: dict[str, Any] = msgpack.unpackb(self.body)
        return found


class Peer:
    """One connection.

    Args:
        address: `(host, port)`, or the path of a Unix socket.
        source: local address to come from; None for any.
        receive_bytes: what the kernel may keep for a peer that does not read, about; 0 for what it likes.

    Attributes:
        errors: the maps of all ERROR frames so far.
        closed: the server has ended the connection.
    """

    def __init__(self, address: tuple[str, int] | str, source: str | None = None, *, receive_bytes: int = 0) -> None:
        self.errors: list[dict[str, Any]] = []
        self.closed = False
        self._arrived = bytearray()
        if isinstance(address, str):
            self.socket = socket.socket(socket.AF_UNIX)
        else:
            self.socket = socket.socket(socket.AF_INET)
            self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if source is not None:
                self.socket.bind((source, 0))
        if receive_bytes:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
        self.socket.settimeout(ANSWER_S_MAX)
        self.socket.connect(address)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    # .. out ..

    def send(self, data: bytes) -> bool:
        """Send all of it; answers False when the server has closed before it was taken."""
        try:
            self.socket.sendall(data)
        except (BrokenPipeError, ConnectionResetError):
            return False
        return True

    def end_sending(self) -> None:
        """Send FIN: nothing more comes."""
        try:
            self.socket.shutdown(socket.SHUT_WR)
        except OSError:  # the server was quicker
            self.closed = True

    # .. in ..

    def open(self, **body: object) -> dict[str, Any]:
        """Say HELLO; answers WELCOME."""
        self.send(hello(**body))
        answer = self.answer()
        assert answer is not None, self.errors
        assert answer.kind == WELCOME, (answer, self.errors)
        return answer.fields()

    def answer(self, wait_s: float = ANSWER_S_MAX) -> Answer | None:
        """Return the next frame, or None at the end of the connection.

        Raises:
            TimeoutError: nothing came.
        """
        while True:
            found = self._whole()
            if found is not None:
                return found
            self.socket.settimeout(wait_s)
            try:
                data = self.socket.recv(256 << 10)
            except (ConnectionResetError, BrokenPipeError):
                data = b""
            if not data:
                self.closed = True
                return None
            self._arrived += data

    def _whole(self) -> Answer | None:
        if len(self._arrived) < HEADER.size:
            return None
        size, kind, flags, reserved = HEADER.unpack_from(self._arrived)
        assert reserved == 0
        if len(self._arrived) < HEADER.size + size:
            return None
        found = Answer(kind, flags, bytes(self._arrived[HEADER.size : HEADER.size + size]))
        del self._arrived[: HEADER.size + size]
        if kind == ERROR:
            self.errors.append(found.fields())
        return found

    def answers(self) -> Iterator[Answer]:
        """Read until the connection ends."""
        while (found := self.answer()) is not None:
            yield found

    def until(self, kind: int) -> Answer:
        """Read on to the next frame of a kind."""
        while (found := self.answer()) is not None:
            if found.kind == kind:
                return found
        raise AssertionError(f"closed before a frame of kind {kind}: {self.errors}")

    def alive(self, token: int = 0xA11FE) -> bool:
        """Whether the connection still answers a PING."""
        if not self.send(ping(token)):
            return False
        while (found := self.answer()) is not None:
            if found.kind == PONG and found.body == struct.pack("<Q", token):
                return True
        return False

    def ended(self) -> str:
        """Read to the end of the connection, and return the name of the error that it ended with, or nothing."""
        for _ in self.answers():
            pass
        return str(self.errors[-1]["name"]) if self.errors else ""

    def readable(self, wait_s: float) -> bool:
        """Whether something has come, or the end."""
        if self._arrived:
            return True
        poll = select.poll()  # select() knows 1,024 descriptors only
        poll.register(self.socket, select.POLLIN)
        return bool(poll.poll(wait_s * 1e3))


def stats(address: tuple[str, int] | str) -> dict[str, Any]:
    """Ask the server for its counters."""
    with Peer(address) as peer:
        peer.open()
        peer.send(packed(REQUEST, request=1, op="stats"))
        found: dict[str, Any] = peer.until(REPLY).fields()["stats"]
        return found


def records_of(body: bytes, flags: int) -> tuple[int, int, list[bytes]]:
    """Take a DELIVER apart: (channel's id, first sequence, payloads)."""
    at = DELIVER_BODY.size
    if flags & 1:
        at += 1 + body[at]
    size, _, number, _, first, _, _, _, _ = CHUNK.unpack_from(body, at)
    end = at + size
    at += CHUNK.size
    payloads = []
    while at < end:
        length = RECORD.unpack_from(body, at)[0]
        payloads.append(body[at + RECORD.size : at + length])
        at += length
    return number, first, payloads


def wait_until(holds: Any, seconds: float = ANSWER_S_MAX, step_s: float = 0.02) -> None:
    """Wait until `holds()` is true.

    Raises:
        AssertionError: it never was.
    """
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, "it never came about"
        time.sleep(step_s)
