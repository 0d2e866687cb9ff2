"""A small server of the native protocol in plain Python: for tests of a peer, with faults on demand.

It speaks specification.md with real sockets: HELLO, CHANNEL, SUBSCRIBE, PUBLISH, CREDIT, REQUEST, PING. It keeps every
record in memory, makes one chunk of each PUBLISH frame, and hands it to every subscription that matches; no credit, no
limits, no durability. What `Faults` say is done to the records or frames on their way to subscribers, never to those of
publishers, and the CRC is of the bytes that are sent, unless the fault is the CRC itself.

One thread of its own serves all connections, begun by `with`.
"""

from __future__ import annotations

import selectors
import socket
import struct
import threading
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Self

import msgpack

from broker_native.crc32c import crc32c_of

if TYPE_CHECKING:
    from collections.abc import Callable

HEADER = struct.Struct("<IBBH")
CHUNK_TAIL = struct.Struct("<QQQIIQQ")
MAGIC = b"BROKER\0\1"

HELLO, WELCOME, ERROR, PING, PONG, CHANNEL = 1, 2, 3, 4, 5, 7
SUBSCRIBE, SUBSCRIBED, REQUEST, REPLY = 8, 9, 13, 14
PUBLISH, PUBLISHED, DELIVER = 16, 17, 18


def frame(kind: int, body: bytes, flags: int = 0) -> bytes:
    return HEADER.pack(len(body), kind, flags, 0) + body


def chunk(channel: int, epoch: int, first: int, records: list[bytes], *, count: int | None = None) -> bytes:
    """Build a chunk. `count` is the number of records unless a test wants it to be wrong."""
    data = b"".join(records)
    tail = CHUNK_TAIL.pack(channel, epoch, first, len(records) if count is None else count, 0, 1, 0) + data
    return struct.pack("<II", len(tail) + 8, crc32c_of(tail)) + tail


def deliver(
    chunk_bytes: bytes,
    *,
    group: int = 0,
    index: int = 0,
    name: bytes | None = None,
    flags: int = 0,
    subscription: int = 1,
) -> bytes:
    """Build a DELIVER frame."""
    body = struct.pack("<IIQ", subscription, index, group)
    if name is not None:
        flags |= 1
        body += bytes([len(name)]) + name
    return frame(DELIVER, body + chunk_bytes, flags)


def published(number: int, count: int, *, first: int = 1, channel: int = 0, level: int = 1, flags: int = 0) -> bytes:
    """Build a PUBLISHED frame of one entry."""
    return frame(PUBLISHED, struct.pack("<QQQIIBB6x", number, 1, first, count, channel, level, flags))


def split_records(data: bytes) -> list[bytes]:
    """Cut the records of a PUBLISH body or a chunk apart."""
    records, at = [], 0
    while at < len(data):
        size = int.from_bytes(data[at : at + 4], "little")
        records.append(data[at : at + size])
        at += size
    return records


def matches(pattern: str, name: str) -> bool:
    wanted, tokens = pattern.split("."), name.split(".")
    if wanted[-1] == ">":
        return len(tokens) >= len(wanted) and all(a in ("*", b) for a, b in zip(wanted[:-1], tokens, strict=False))
    return len(tokens) == len(wanted) and all(a in ("*", b) for a, b in zip(wanted, tokens, strict=True))


@dataclass
class Faults:
    """What goes wrong on the way to subscribers.

    Attributes:
        records: changes the records of a chunk (its number from 0, its records); their sequences stay dense.
        frames: changes the DELIVER frame (its number from 0, the frame).
        publish: may answer a PUBLISH by an ERROR body instead (its number from 0).
        level: the durability that answers report.
    """

    records: Callable[[int, list[bytes]], list[bytes]] = lambda _, records: records
    frames: Callable[[int, bytes], bytes] = lambda _, data: data
    publish: Callable[[int], dict[str, Any] | None] = lambda _: None
    level: int = 1


@dataclass
class Channel:
    id: int
    name: str
    next: int = 1
    chunks: list[bytes] = field(default_factory=list)


@dataclass
class Peer:
    socket: socket.socket
    data: bytearray = field(default_factory=bytearray)
    out: bytearray = field(default_factory=bytearray)
    names: dict[int, str] = field(default_factory=dict)
    filters: list[str] = field(default_factory=list)
    told: set[str] = field(default_factory=set)
    pings: int = 0


class Server:
    """The server; `url` is where it listens while the `with` block runs."""

    def __init__(self, faults: Faults | None = None) -> None:
        self.faults = faults or Faults()
        self.channels: dict[str, Channel] = {}
        self.peers: list[Peer] = []
        self.chunks = self.frames = self.publishes = self.records_in = 0
        self.credit_bytes = 0
        self.listener = socket.create_server(("127.0.0.1", 0), backlog=512)
        self.listener.setblocking(False)
        self.url = f"broker://127.0.0.1:{self.listener.getsockname()[1]}"
        self.selector = selectors.DefaultSelector()
        self.selector.register(self.listener, selectors.EVENT_READ)
        self.wake, self.waker = socket.socketpair()
        self.selector.register(self.wake, selectors.EVENT_READ)
        self.failure: BaseException | None = None
        self.thread = threading.Thread(target=self.serve, name="reference-server")

    def __enter__(self) -> Self:
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.waker.send(b"x")
        self.thread.join()
        for peer in self.peers:
            peer.socket.close()
        for open_socket in (self.listener, self.wake, self.waker):
            open_socket.close()
        self.selector.close()
        if self.failure is not None:
            raise self.failure

    def serve(self) -> None:
        try:
            while True:
                for key, mask in self.selector.select():
                    if key.fileobj is self.wake:
                        return
                    if key.fileobj is self.listener:
                        self.accept()
                    else:
                        self.turn(key.data, mask)
        except BaseException as error:
            self.failure = error  # raised again by the thread that owns the server

    def accept(self) -> None:
        connection, _ = self.listener.accept()
        connection.setblocking(False)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        peer = Peer(connection)
        self.peers.append(peer)
        self.selector.register(connection, selectors.EVENT_READ, peer)

    def turn(self, peer: Peer, mask: int) -> None:
        if mask & selectors.EVENT_READ:
            try:
                data = peer.socket.recv(1 << 18)
            except ConnectionResetError:
                data = b""
            if not data:
                self.drop(peer)
                return
            peer.data += data
            self.take_frames(peer)
        if mask & selectors.EVENT_WRITE:
            self.flush(peer)

    def drop(self, peer: Peer) -> None:
        self.selector.unregister(peer.socket)
        peer.socket.close()
        self.peers.remove(peer)

    def send(self, peer: Peer, data: bytes) -> None:
        peer.out += data
        self.flush(peer)

    def flush(self, peer: Peer) -> None:
        try:
            while peer.out:
                del peer.out[: peer.socket.send(peer.out)]
        except (BlockingIOError, BrokenPipeError, ConnectionResetError):
            pass  # the rest goes when there is room; a connection that is gone says so to its next read
        events = selectors.EVENT_READ | (selectors.EVENT_WRITE if peer.out else 0)
        self.selector.modify(peer.socket, events, peer)

    def take_frames(self, peer: Peer) -> None:
        at = 0
        while len(peer.data) - at >= 8:
            size, kind, _, _ = HEADER.unpack_from(peer.data, at)
            if len(peer.data) - at < 8 + size:
                break
            self.take(peer, kind, bytes(peer.data[at + 8 : at + 8 + size]))
            at += 8 + size
        del peer.data[:at]

    def take(self, peer: Peer, kind: int, body: bytes) -> None:
        if kind == HELLO:
            assert body.startswith(MAGIC)
            self.send(peer, frame(WELCOME, msgpack.packb(self.welcome())))
        elif kind == CHANNEL:
            peer.names[int.from_bytes(body[:4], "little")] = body[4:].decode()
        elif kind == SUBSCRIBE:
            self.subscribe(peer, msgpack.unpackb(body))
        elif kind == REQUEST:
            request = msgpack.unpackb(body)
            self.send(peer, frame(REPLY, msgpack.packb({"request": request["request"], "stats": self.stats()})))
        elif kind == PUBLISH:
            self.publish(peer, body)
        elif kind == PING:
            self.send(peer, frame(PONG, body))
        elif kind == PONG:
            peer.pings -= 1
        elif kind == 20:
            self.credit_bytes += int.from_bytes(body[8:16], "little")
        else:
            raise AssertionError(f"a frame of kind {kind}")

    def welcome(self) -> dict[str, Any]:
        limits = {
            "frame_bytes_max": 1 << 21,
            "payload_bytes_max": 1 << 20,
            "headers_bytes_max": 4096,
            "channels_max": 1 << 20,
            "subscriptions_max": 1024,
        }
        return {
            "version": 1,
            "server": "reference",
            "run": 1,
            "journal": b"j" * 16,
            "highest": 0,
            "limits": limits,
            "ping_s": 15,
        }

    def stats(self) -> dict[str, float]:
        return {"pid": 0, "cpu_s": 0.5, "rss_anon_bytes": 1 << 20, "fsyncs": 0, "commits": 0, "groups": 0,
                "records_in": self.records_in}  # fmt: skip

    def subscribe(self, peer: Peer, request: dict[str, Any]) -> None:
        peer.filters = request["filters"]
        new = (request.get("start") or {"from": "new"}) == {"from": "new"}
        names = [name for name in peer.filters if new and not {"*", ">"} & set(name.split("."))]
        outcomes = [[name, "new", 1, self.channel(name).next - 1] for name in names]
        self.send(peer, frame(SUBSCRIBED, msgpack.packb(
            {"subscription": 1, "outcomes": outcomes, "bus": [b"j" * 16, 0, 0]})))  # fmt: skip
        if not new:
            wanted = [channel for channel in self.channels.values() if self.wants(peer, channel)]
            for channel in wanted:
                for stored in channel.chunks:
                    self.deliver(peer, channel, stored)

    def channel(self, name: str) -> Channel:
        return self.channels.setdefault(name, Channel(len(self.channels) + 1, name))

    def publish(self, peer: Peer, body: bytes) -> None:
        number, count, line = struct.unpack_from("<IIQ", body)
        refusal = self.faults.publish(self.publishes)
        self.publishes += 1
        if refusal is not None:
            self.send(peer, frame(ERROR, msgpack.packb({**refusal, "number": line, "count": count})))
            return
        channel = self.channel(peer.names[number])
        records = split_records(body[16:])
        assert len(records) == count
        self.records_in += count
        self.send(peer, published(line, count, first=channel.next, channel=number, level=self.faults.level))
        records = self.faults.records(self.chunks, records)
        self.chunks += 1
        if records:
            self.append(channel, records)

    def append(self, channel: Channel, records: list[bytes]) -> None:
        made = chunk(channel.id, 7, channel.next, records)
        channel.next += len(records)
        channel.chunks.append(made)
        for peer in self.peers:
            if self.wants(peer, channel):
                self.deliver(peer, channel, made)

    def wants(self, peer: Peer, channel: Channel) -> bool:
        return any(matches(pattern, channel.name) for pattern in peer.filters)

    def deliver(self, peer: Peer, channel: Channel, made: bytes) -> None:
        untold = peer.filters != [channel.name] and channel.name not in peer.told
        peer.told.add(channel.name)
        sent = deliver(made, group=self.frames + 1, name=channel.name.encode() if untold else None)
        self.send(peer, self.faults.frames(self.frames, sent))
        self.frames += 1
