"""The native protocol on TCP and Unix sockets."""

from __future__ import annotations

import asyncio
import os
import resource
import socket
import stat
from pathlib import Path
from typing import TYPE_CHECKING, cast

from broker.access.gate import Identity
from broker.edge.session import Session
from broker.events import tally
from broker.model.errors import error
from broker.wire import control

if TYPE_CHECKING:
    from broker.node.node import Node

__all__ = ["NativeConnection", "NativeListener"]

WRITE_BUFFER_BYTES_HIGH = 256 << 10
"""What the transport takes before it asks for a pause; the rest waits in the outbox, where it is counted."""
NOTSENT_BYTES = 256 << 10
"""What the kernel holds beyond what the peer's window takes (TCP_NOTSENT_LOWAT)."""
BACKLOG = 4096
TCP_NOTSENT_LOWAT = getattr(socket, "TCP_NOTSENT_LOWAT", None)


class NativeConnection(Session, asyncio.BufferedProtocol):
    """One socket's session."""

    __slots__ = ("_listener",)

    def __init__(self, node: Node, identity: Identity, listener: NativeListener) -> None:
        super().__init__(node, identity)
        self._listener = listener

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        stream = cast("asyncio.Transport", transport)
        stream.set_write_buffer_limits(high=WRITE_BUFFER_BYTES_HIGH)
        if len(self.node.connections) >= self._listener.connections_max:
            failure = error(
                "TOO_MANY_CONNECTIONS",
                f"connections: got {len(self.node.connections) + 1}, limit {self._listener.connections_max}",
            )
            tally(failure.name)
            stream.write(control.encode_error(failure))
            stream.close()
            self.stop()
            return
        sock = stream.get_extra_info("socket")
        if sock is not None and sock.family != socket.AF_UNIX:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if TCP_NOTSENT_LOWAT is not None:
                sock.setsockopt(socket.IPPROTO_TCP, TCP_NOTSENT_LOWAT, NOTSENT_BYTES)
        self.start(stream)

    def connection_lost(self, exc: BaseException | None) -> None:
        self.stopped()
        self.transport = None

    def eof_received(self) -> bool:
        return False

    def pause_writing(self) -> None:
        self.outbox.pause()

    def resume_writing(self) -> None:
        self.writing_resumed()


class NativeListener:
    """Accepts native connections for a node.

    Args:
        node: The broker.
    """

    def __init__(self, node: Node) -> None:
        self.node = node
        self.connections_max = node.limits.connections_bound(resource.getrlimit(resource.RLIMIT_NOFILE)[0])
        self.tcp: str | None = None
        self.unix: str | None = None
        self._servers: list[asyncio.AbstractServer] = []

    async def listen_tcp(self, host: str, port: int) -> str:
        """Listen on a TCP address; answers the address as `host:port` (port 0 has become a real one).

        Raises:
            BrokerError: ADDRESS; it is in use or cannot be had.
        """
        try:
            server = await self.node.loop.create_server(
                lambda: NativeConnection(self.node, Identity(peer="tcp"), self), host, port, backlog=BACKLOG
            )
        except OSError as failure:
            raise error(
                "ADDRESS",
                f"tcp {host}:{port}: {failure.strerror or failure}",
                "choose another with --tcp HOST:PORT, or stop what listens there",
            ) from failure
        self._servers.append(server)
        bound = server.sockets[0].getsockname()
        self.tcp = f"[{bound[0]}]:{bound[1]}" if ":" in bound[0] else f"{bound[0]}:{bound[1]}"
        return self.tcp

    async def listen_unix(self, path: str) -> str:
        """Listen on a Unix socket that only this user may open; a stale one is replaced, a live one is not.

        Raises:
            BrokerError: ADDRESS; another server listens there, or the path is no socket or cannot be had.
        """
        self._clear_stale(path)
        before = os.umask(0o177)
        try:
            server = await self.node.loop.create_unix_server(
                lambda: NativeConnection(self.node, Identity(peer="unix"), self), path, backlog=BACKLOG
            )
        except OSError as failure:
            raise error(
                "ADDRESS", f"unix {path}: {failure.strerror or failure}", "choose another with --unix PATH"
            ) from (failure)
        finally:
            os.umask(before)
        self._servers.append(server)
        self.unix = path
        return path

    @staticmethod
    def _clear_stale(path: str) -> None:
        try:
            mode = Path(path).stat().st_mode
        except FileNotFoundError:
            return
        if not stat.S_ISSOCK(mode):
            raise error("ADDRESS", f"unix {path}: there is a file that is no socket", "choose another with --unix PATH")
        with socket.socket(socket.AF_UNIX) as probe:
            try:
                probe.connect(path)
            except OSError:
                Path(path).unlink(missing_ok=True)
                return
        raise error("ADDRESS", f"unix {path}: another server listens there", "choose another with --unix PATH")

    def stop_accepting(self) -> None:
        """Close the listening sockets; connections go on."""
        for server in self._servers:
            server.close()
        self._servers.clear()
        if self.unix is not None:
            Path(self.unix).unlink(missing_ok=True)
            self.unix = None
