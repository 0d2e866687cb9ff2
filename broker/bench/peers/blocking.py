"""A blocking connection that is read to the last byte of an answer and no further."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING, Final

from broker.model.errors import error

if TYPE_CHECKING:
    from typing import NoReturn, Self

    from broker.bench.peers.work import Address

TIMEOUT_S: Final = 30.0
LINE_BYTES_MAX: Final = 64 * 1024
SAID_BYTES_MAX: Final = 200
"""How much of an answer that nobody understands is told."""


class Blocking:
    """One connection. Owns its socket until `detach`; every method may raise ConnectionLost."""

    def __init__(self, who: str, address: Address) -> None:
        """Connect.

        Args:
            who: what kind of server it should be, for errors.
            address: where it listens.

        Raises:
            ConnectionLost: nobody listens there.
        """
        self.who = f"{who} at {address[0]}:{address[1]}"
        try:
            self._socket = socket.create_connection(address, TIMEOUT_S)
        except OSError as failure:
            raise error("CONNECTION_LOST", f"{self.who}: {failure.strerror or failure}") from failure
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._detached = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if not self._detached:
            self._socket.close()

    def detach(self) -> socket.socket:
        """Hand the socket over, non-blocking, to a caller who closes it."""
        self._detached = True
        self._socket.setblocking(False)
        return self._socket

    def send(self, data: bytes) -> None:
        """Send all of it."""
        try:
            self._socket.sendall(data)
        except OSError as failure:
            raise error("CONNECTION_LOST", f"{self.who}: {failure}") from failure

    def read_line(self) -> bytes:
        """Read a line, and return it without its end.

        Raises:
            MalformedFrame: it is longer than LINE_BYTES_MAX.
        """
        line = bytearray()
        while not line.endswith(b"\r\n"):
            # What is behind the line stays in the socket.
            seen = self._receive(4096, socket.MSG_PEEK)
            end = seen.find(b"\n")
            line += self._receive(end + 1 if end >= 0 else len(seen))
            if len(line) > LINE_BYTES_MAX or (end >= 0 and not line.endswith(b"\r\n")):
                self.misunderstood(bytes(line))
        return bytes(line[:-2])

    def read(self, size: int) -> bytes:
        """Read exactly so many bytes."""
        data = bytearray()
        while len(data) < size:
            data += self._receive(size - len(data))
        return bytes(data)

    def misunderstood(self, said: bytes) -> NoReturn:
        """Say what came from a server that is probably of another kind.

        Raises:
            MalformedFrame: always.
        """
        raise error("MALFORMED_FRAME", f"{self.who}: cannot understand {said[:SAID_BYTES_MAX]!r}")

    def refused(self, said: str) -> NoReturn:
        """Say why a server will not.

        Raises:
            Unavailable: always.
        """
        raise error("UNAVAILABLE", f"{self.who}: {said[:SAID_BYTES_MAX]}")

    def _receive(self, size: int, flags: int = 0) -> bytes:
        try:
            data = self._socket.recv(size, flags)
        except OSError as failure:
            raise error("CONNECTION_LOST", f"{self.who}: while waiting for an answer: {failure}") from failure
        if not data:
            raise error("CONNECTION_LOST", f"{self.who}: it closed the connection")
        return data
