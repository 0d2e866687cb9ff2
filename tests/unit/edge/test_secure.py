"""What goes through a secure transport, when who talks through it pauses wherever it likes, and takes what it likes."""

from __future__ import annotations

import asyncio
import random
import ssl
from typing import TYPE_CHECKING, Any

import pytest

from broker.access.issuing import Issuer
from broker.edge.secure import SecureTransport
from broker.wire.secure import SLICE_BYTES, SecureStream
from tests.sizes import size

if TYPE_CHECKING:
    from pathlib import Path

RUNS = size("BROKER_SECURE_RUNS", 20, 1_000)
ROOM = 5_000


@pytest.fixture(scope="module")
def contexts(tmp_path_factory: pytest.TempPathFactory) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """The server's and the client's."""
    folder: Path = tmp_path_factory.mktemp("tls")
    issuer = Issuer()
    issued = issuer.issue_server(["here.example"])
    (folder / "all.pem").write_bytes(issued.certificate + issued.key)
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(folder / "all.pem")
    return server, ssl.create_default_context(cadata=issuer.certificate.decode())


class Socket(asyncio.Transport):
    """A socket's transport, as the loop would have it: keeps what is written, and how it was ended."""

    def __init__(self) -> None:
        super().__init__()
        self.written = bytearray()
        self.reading = True
        self.ended = ""

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.written += data

    def pause_reading(self) -> None:
        self.reading = False

    def resume_reading(self) -> None:
        self.reading = True

    def is_closing(self) -> bool:
        return bool(self.ended)

    def close(self) -> None:
        self.ended = self.ended or "closed"

    def abort(self) -> None:
        self.ended = "aborted"


class Talker(asyncio.Protocol):
    """Echoes what it hears, and pauses by chance."""

    def __init__(self, chance: random.Random) -> None:
        self.heard = bytearray()
        self.ended = False
        self.transport: Any = None
        self._chance = chance

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        assert self.transport.is_reading(), "who pauses hears nothing"
        self.heard += data
        self.transport.writelines([data[:1], data[1:]])
        if self._chance.random() < 0.4:
            self.transport.pause_reading()

    def eof_received(self) -> bool:
        self.ended = True
        return False


class BufferedTalker(Talker, asyncio.BufferedProtocol):
    """The same, with a buffer of its own."""

    def __init__(self, chance: random.Random) -> None:
        super().__init__(chance)
        self._room = memoryview(bytearray(ROOM))

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._room

    def buffer_updated(self, nbytes: int) -> None:
        self.data_received(bytes(self._room[:nbytes]))


def feed(transport: SecureTransport, data: bytes) -> None:
    """Have the loop read."""
    room = transport.get_buffer(-1)
    room[: len(data)] = data
    transport.buffer_updated(len(data))


async def settle(transport: SecureTransport) -> None:
    """Take everything, however often it is paused."""
    while not transport.is_reading() and not transport.is_closing():
        transport.resume_reading()
        await asyncio.sleep(0)


@pytest.mark.parametrize("seed", range(RUNS))
async def test_nothing_is_lost_in_pauses(contexts: tuple[ssl.SSLContext, ssl.SSLContext], seed: int) -> None:
    chance = random.Random(seed)
    under, client = Socket(), SecureStream(contexts[1], "here.example")
    talker = chance.choice([Talker, BufferedTalker])(chance)
    transport = SecureTransport(asyncio.get_running_loop(), contexts[0], talker)
    transport.connection_made(under)
    talker.transport.write(b"before the handshake")
    while not client.shake_hands():
        feed(transport, client.take())
        client.feed(bytes(under.written))
        under.written.clear()
    said = [chance.randbytes(chance.randrange(1, 5 * SLICE_BYTES)) for _ in range(6)]
    sealed = client.take() + b"".join(piece for data in said for piece in client.seal(data))
    at = 0
    while at < len(sealed):
        assert under.reading or not transport.is_reading()
        cut = chance.randrange(1, 4 * SLICE_BYTES)
        feed(transport, sealed[at : at + cut])
        at += cut
        if not under.reading:
            await settle(transport)
    await settle(transport)
    feed(transport, client.farewell())
    await settle(transport)
    assert talker.heard == b"".join(said)
    assert (talker.ended, under.ended) == (True, "closed")
    room = memoryview(bytearray(ROOM))
    echoed = b"".join(bytes(part) for part in client.unseal(memoryview(bytes(under.written)), room))
    assert echoed == talker.heard, "and what was said before the handshake was not"


async def test_what_comes_after_the_end_is_not_looked_at(contexts: tuple[ssl.SSLContext, ssl.SSLContext]) -> None:
    under, talker = Socket(), Talker(random.Random(1))
    transport = SecureTransport(asyncio.get_running_loop(), contexts[0], talker)
    transport.connection_made(under)
    transport.close()
    feed(transport, b"\x16\x03\x01\x00\x01\x00")
    transport.write(b"x")
    assert (bytes(under.written), under.ended, bytes(talker.heard)) == (b"", "closed", b"")
    assert not transport.can_write_eof()
    assert transport.get_protocol() is talker
