"""A server whose every frame a test writes itself, over a real socket."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from broker.remote.reconnect import BackoffPolicy
from broker.wire import control
from broker.wire.kinds import Kind
from tests.reference import frames as twin
from tests.reference.groups import Chunk, build_chunk

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    Connect = Callable[..., Any]
    """How a client connects: the tests are the same for several."""

JOURNAL = b"j" * 16
LIMITS = control.Limits(
    frame_bytes_max=1 << 20,
    payload_bytes_max=1 << 19,
    headers_bytes_max=1 << 14,
    channels_max=1000,
    subscriptions_max=100,
)
AT_ONCE = BackoffPolicy(first_s=0.001, longest_s=0.002)


def chunk(payloads: list[bytes], *, first: int, epoch: int = 1, channel: int = 1) -> bytes:
    """Return a chunk of plain records."""
    body = b"".join(twin.build_record(twin.Record(payload)) for payload in payloads)
    return build_chunk(Chunk(channel, epoch, first, len(payloads), body))


def deliver(
    subscription: int,
    chunk_bytes: bytes,
    *,
    group: int = 0,
    index: int = 0,
    name: str | None = None,
    early: bool = False,
) -> bytes:
    """Return a DELIVER frame."""
    told = b"" if name is None else bytes([len(name)]) + name.encode()
    flags = (0 if name is None else twin.DELIVER_NAME) | (twin.DELIVER_EARLY if early else 0)
    return twin.build_frame(
        twin.DELIVER, twin.DELIVER_HEADER.pack(subscription, index, group) + told + chunk_bytes, flags
    )


def published(number: int, first: int, count: int = 1, *, epoch: int = 1, level: int = 3, flags: int = 0) -> bytes:
    """Return a PUBLISHED frame of one entry."""
    return twin.build_frame(
        twin.PUBLISHED, twin.PUBLISHED_ENTRY.pack(number, epoch, first, count, 0, level, flags, bytes(6))
    )


class Peer:
    """The server's end of one connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self.names: dict[int, str] = {}

    async def frame(self) -> tuple[int, bytes]:
        """Return the next frame that is no CHANNEL and no CREDIT."""
        while True:
            async with asyncio.timeout(5):
                size, kind, flags, reserved = twin.FRAME_HEADER.unpack(await self._reader.readexactly(8))
                body = await self._reader.readexactly(size)
            assert (flags, reserved) == (0, 0)
            if kind == Kind.CHANNEL:
                number, name = control.decode_channel(body)
                self.names[number] = name.decode()
            elif kind != Kind.CREDIT:
                return kind, body

    async def expect(self, kind: Kind) -> bytes:
        """Return the body of the next frame, which is of this kind."""
        got, body = await self.frame()
        assert got == kind, (Kind(got), kind)
        return body

    async def publish(self) -> tuple[str, int, list[bytes]]:
        """Return the next PUBLISH: its channel, its first number and its payloads."""
        body = await self.expect(Kind.PUBLISH)
        slot, count, number = twin.PUBLISH_HEADER.unpack_from(body)
        payloads, at = [], 16
        while at < len(body):
            size = int.from_bytes(body[at : at + 4], "little")
            payloads.append(body[at + 12 : at + size])
            at += size
        assert len(payloads) == count
        return self.names[slot], number, payloads

    async def subscribe(self) -> control.Subscribe:
        """Return the next SUBSCRIBE."""
        return control.decode_subscribe(await self.expect(Kind.SUBSCRIBE))

    def accept(self, wanted: control.Subscribe, *outcomes: control.Outcome, group: int = 0, index: int = 0) -> None:
        """Answer a SUBSCRIBE."""
        bus = control.FromBus(JOURNAL, group, index)
        self.send(control.encode_subscribed(control.Subscribed(wanted.subscription, outcomes, bus)))

    def send(self, *frames: bytes) -> None:
        """Send frames."""
        self._writer.write(b"".join(frames))

    async def send_in_pieces(self, data: bytes, at: int) -> None:
        """Send bytes so that they arrive in two pieces, cut at `at`."""
        for piece in (data[:at], data[at:]):
            self._writer.write(piece)
            await self._writer.drain()
            await asyncio.sleep(0.001)

    def drop(self) -> None:
        """End the connection without a word."""
        transport = self._writer.transport
        transport.abort()

    async def ended(self) -> bool:
        """Wait until the client has ended the connection."""
        async with asyncio.timeout(5):
            try:
                while await self._reader.read(1 << 16):
                    pass
            except ConnectionError:
                return True
        return True


class Scripted:
    """The listening side. `welcome` is what the next connections are told."""

    def __init__(self) -> None:
        self._peers: asyncio.Queue[Peer] = asyncio.Queue()
        self._server: asyncio.AbstractServer | None = None
        self._all: list[Peer] = []
        self.hellos: list[control.Hello] = []
        self.welcome: dict[str, Any] = {"run": 1, "highest": 0, "journal": JOURNAL, "ping_s": 15.0}
        self.limits = LIMITS
        self.refusal: bytes | None = None
        self.welcome_waits = False
        self.is_silent = False
        self.url = ""

    @asynccontextmanager
    async def listening(self) -> AsyncIterator[Scripted]:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.url = f"broker://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        try:
            yield self
        finally:
            self._server.close()
            for peer in self._all:
                peer.drop()
            await asyncio.sleep(0.005)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        peer = Peer(reader, writer)
        self._all.append(peer)
        try:
            self.hellos.append(control.decode_hello(await peer.expect(Kind.HELLO)))
        except (asyncio.IncompleteReadError, ConnectionError):
            # A client that reconnects may be closed by its test before it has said HELLO.
            writer.close()
            return
        if self.is_silent:
            return
        if self.refusal is not None:
            peer.send(self.refusal)
            writer.close()
            return
        if not self.welcome_waits:
            peer.send(self.welcome_frame())
        self._peers.put_nowait(peer)

    def welcome_frame(self) -> bytes:
        """Return WELCOME, for a test that sends it itself."""
        return control.encode_welcome(control.Welcome(server="script", limits=self.limits, **self.welcome))

    async def peer(self) -> Peer:
        """Return the next connection that has shaken hands."""
        async with asyncio.timeout(5):
            return await self._peers.get()
