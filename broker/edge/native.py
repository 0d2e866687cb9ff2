"""The native protocol on TCP and Unix sockets: the session of a socket, and where such sockets are listened for."""

from __future__ import annotations

import asyncio
import socket
import sys
from contextlib import suppress
from typing import TYPE_CHECKING, cast

from broker.access.gate import Identity
from broker.edge.accepting import Greeting, Listener, peer_of
from broker.edge.session import Session
from broker.wire import control

if TYPE_CHECKING:
    from broker.model.errors import BrokerError
    from broker.node.node import Node

__all__ = ["NativeConnection", "NativeListener", "shares_pieces"]

WRITE_BUFFER_BYTES_HIGH = 256 << 10
"""What the transport takes before it asks for a pause; the rest waits in the outbox, where it is counted."""


class NativeConnection(Session, asyncio.BufferedProtocol):
    """One socket's session.

    Args:
        node: The broker.
        identity: Who is at the other end, as far as the socket tells.
        greeting: Those that have not said HELLO; it is among them as long as it has not. None: nobody counts them.
        fd: The socket, if there is one; -1 else.
    """

    __slots__ = ("_fd", "_greeting")

    def __init__(
        self,
        node: Node,
        identity: Identity,
        greeting: dict[Greeting, None] | None = None,
        *,
        fd: int = -1,
    ) -> None:
        super().__init__(node, identity)
        self._fd = fd
        self._greeting = {} if greeting is None else greeting

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        stream = cast("asyncio.Transport", transport)
        stream.set_write_buffer_limits(high=WRITE_BUFFER_BYTES_HIGH)
        self._greeting[self] = None
        plain = stream.get_extra_info("ssl_object") is None
        self.start(stream, shares=shares_pieces(transport), fd=self._fd if plain else -1)

    def greeted(self) -> None:
        self._greeting.pop(self, None)

    def connection_lost(self, exc: BaseException | None) -> None:
        self.greeted()
        self.stopped()
        self.transport = None

    def eof_received(self) -> bool:
        return False

    def pause_writing(self) -> None:
        self.outbox.pause()

    def resume_writing(self) -> None:
        self.writing_resumed()


def shares_pieces(transport: asyncio.BaseTransport) -> bool:
    """Whether a socket's transport keeps the pieces that it is handed.

    asyncio's made one of them until Python 3.12, and what goes through TLS is other bytes.
    """
    if transport.get_extra_info("ssl_object") is not None:
        return False
    return sys.version_info >= (3, 12) or not type(transport).__module__.startswith("asyncio.")


class NativeDoor:
    """Where the native protocol is spoken.

    Args:
        listener: Whose connections they are.
        peer: What peers are called that have no address.
        option: As for `Door`.
    """

    def __init__(self, listener: Listener, peer: str, option: str) -> None:
        self._listener = listener
        self._peer = peer
        self.option = option

    def connection(self, sock: socket.socket) -> NativeConnection:
        peer = self._peer
        if sock.family != socket.AF_UNIX:
            with suppress(OSError):  # it may have left again
                peer = peer_of(sock.getpeername())
        return NativeConnection(self._listener.node, Identity(peer=peer), self._listener.greeting, fd=sock.fileno())

    def farewell(self, failure: BrokerError) -> bytes:
        return control.encode_error(failure)


class NativeListener(Listener):
    """A listener with a native TCP socket, a Unix socket, or both.

    Attributes:
        tcp: The address that it listens on, `host:port`.
        unix: The path.
    """

    tcp: str | None = None

    async def listen_tcp(self, host: str, port: int) -> str:
        """Listen on a TCP address; as `listen_at`."""
        self.tcp = self.listen_at(host, port, NativeDoor(self, "tcp", "--tcp"))
        return self.tcp

    async def listen_unix(self, path: str) -> str:
        """Listen on a Unix socket; as `listen_at_path`."""
        return self.listen_at_path(path, NativeDoor(self, "unix", "--unix"))
