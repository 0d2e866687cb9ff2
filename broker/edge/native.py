"""The native protocol on TCP and Unix sockets: taking connections in, and refusing those that there is no room for.

Sockets are accepted here and not by the event loop, which has no word for a refusal: at the limit of open files asyncio
writes a traceback for each attempt and uvloop closes in silence. Here a connection beyond the bound costs one small
write and no object but its socket, and is told why. What the kernel holds for us meanwhile waits; nobody is dropped.

- At most `ACCEPTS_PER_TURN` connections are taken in one turn of the loop, so a storm of them leaves the others theirs.
- A refused peer has most likely written its HELLO already. To close on what is unread would reset the connection, and
  a reset may overtake the refusal: a few refused sockets are therefore kept for a moment, read empty and then closed.
- When open files run out in spite of the bound, since something else in the process took them, one that is kept for
  the purpose is given up for as long as it takes to refuse.
"""

from __future__ import annotations

import asyncio
import errno
import os
import resource
import socket
import stat
from collections import deque
from pathlib import Path
from typing import TYPE_CHECKING, cast

from broker.access.gate import Identity
from broker.edge.session import Session
from broker.events import emit, tally
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
ACCEPTS_PER_TURN = 16
"""Connections that are taken in, or refused, before everything else in the loop has its turn: about half a
millisecond of them."""
LINGER_S = 0.5
"""How long a refused peer has to read why."""
LINGERING_MAX = 32
"""Refused sockets that are kept at once; they count among the open files that connections do not get."""
ACCEPT_PAUSE_S = 0.1
"""How long nothing is accepted after the system has refused to."""
NO_FILES = frozenset({errno.EMFILE, errno.ENFILE})


class NativeConnection(Session, asyncio.BufferedProtocol):
    """One socket's session."""

    __slots__ = ()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        stream = cast("asyncio.Transport", transport)
        stream.set_write_buffer_limits(high=WRITE_BUFFER_BYTES_HIGH)
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


class Refusals:
    """Refused sockets that have been told why, and are closed when their peers have had the time to read it.

    Args:
        loop: Whose timer looks after them.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._kept: deque[tuple[float, socket.socket]] = deque()
        self._timer: asyncio.TimerHandle | None = None

    def refuse(self, sock: socket.socket, farewell: bytes, *, keep: bool) -> None:
        """Tell a peer why, and end.

        Args:
            sock: A connection that has just been accepted; it is closed here.
            farewell: A whole frame, far smaller than a new socket's buffer.
            keep: Whether there are descriptors to keep it for a moment.
        """
        try:
            sock.send(farewell)
            sock.shutdown(socket.SHUT_WR)
        except OSError:
            sock.close()
            return
        if not keep:
            self._close(sock)
            return
        if len(self._kept) >= LINGERING_MAX:
            self._close(self._kept.popleft()[1])
        self._kept.append((self._loop.time() + LINGER_S, sock))
        if self._timer is None:
            self._timer = self._loop.call_later(LINGER_S, self._close_due)

    def close(self) -> None:
        """Close what is kept."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        while self._kept:
            self._close(self._kept.popleft()[1])

    def _close_due(self) -> None:
        self._timer = None
        now_s = self._loop.time()
        while self._kept and self._kept[0][0] <= now_s:
            self._close(self._kept.popleft()[1])
        if self._kept:
            self._timer = self._loop.call_later(self._kept[0][0] - now_s, self._close_due)

    @staticmethod
    def _close(sock: socket.socket) -> None:
        """Close a socket, read empty before, so that it is an end and no reset."""
        try:
            while sock.recv(16 << 10, socket.MSG_DONTWAIT):
                pass
        except OSError:
            pass
        sock.close()


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
        self._listening: dict[socket.socket, str] = {}
        self._opening: set[asyncio.Task[None]] = set()
        self._refusals = Refusals(node.loop)
        self._resume: asyncio.TimerHandle | None = None
        self._spare: int | None = None
        self._take_spare()
        limit = self.connections_max
        self._farewell = control.encode_error(
            error("TOO_MANY_CONNECTIONS", f"connections: got {limit + 1}, limit {limit}")
        )
        self._farewell_files = control.encode_error(
            error("TOO_MANY_CONNECTIONS", "open files of the server: none is left", "connect again in a moment")
        )

    async def listen_tcp(self, host: str, port: int) -> str:
        """Listen on a TCP address; answers the address as `host:port` (port 0 has become a real one).

        Args:
            host: A literal IP address.
            port: 0 for any free one.

        Raises:
            BrokerError: ADDRESS; it is in use or cannot be had.
        """
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        try:
            bound = self._listen(family, (host, port), "tcp").getsockname()
        except OSError as failure:
            raise error(
                "ADDRESS",
                f"tcp {host}:{port}: {failure.strerror or failure}",
                "choose another with --tcp HOST:PORT, or stop what listens there",
            ) from failure
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
            self._listen(socket.AF_UNIX, path, "unix")
        except OSError as failure:
            raise error(
                "ADDRESS", f"unix {path}: {failure.strerror or failure}", "choose another with --unix PATH"
            ) from (failure)
        finally:
            os.umask(before)
        self.unix = path
        return path

    def _listen(self, family: socket.AddressFamily, address: tuple[str, int] | str, peer: str) -> socket.socket:
        sock = socket.socket(family, socket.SOCK_STREAM)
        try:
            sock.setblocking(False)
            if family != socket.AF_UNIX:
                # A restart need not wait for the connections of the server before to leave the kernel.
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            sock.bind(address)
            sock.listen(BACKLOG)
            self.node.loop.add_reader(sock, self._accept, sock)
        except BaseException:
            sock.close()
            raise
        self._listening[sock] = peer
        return sock

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

    # -- taking in, and refusing -------------------------------------------------------------------------------------

    def _accept(self, listening: socket.socket) -> None:
        """Connections wait: take a few."""
        for _ in range(ACCEPTS_PER_TURN):
            try:
                sock, _ = listening.accept()
            except BlockingIOError:
                return
            except ConnectionError:
                # The peer has left while it waited.
                continue
            except OSError as failure:
                if failure.errno in NO_FILES:
                    self._refuse_by_spare(listening, failure)
                else:
                    self._pause(failure)
                return
            if len(self.node.connections) + len(self._opening) >= self.connections_max:
                tally("TOO_MANY_CONNECTIONS")
                self._refusals.refuse(sock, self._farewell, keep=True)
            else:
                self._open(sock, self._listening[listening])

    def _open(self, sock: socket.socket, peer: str) -> None:
        """Have the loop carry an accepted socket's bytes to a session."""
        try:
            sock.setblocking(False)
            if sock.family != socket.AF_UNIX:
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                if TCP_NOTSENT_LOWAT is not None:
                    sock.setsockopt(socket.IPPROTO_TCP, TCP_NOTSENT_LOWAT, NOTSENT_BYTES)
        except OSError:
            sock.close()
            return
        task = self.node.loop.create_task(self._connect(sock, peer))
        self._opening.add(task)
        task.add_done_callback(self._opening.discard)

    async def _connect(self, sock: socket.socket, peer: str) -> None:
        try:
            await self.node.loop.connect_accepted_socket(lambda: NativeConnection(self.node, Identity(peer=peer)), sock)
        except (OSError, MemoryError):
            sock.close()

    def _refuse_by_spare(self, listening: socket.socket, failure: OSError) -> None:
        """Refuse a few connections with the descriptor that is kept for that; without one they wait."""
        for _ in range(ACCEPTS_PER_TURN):
            if self._spare is None:
                self._take_spare()
            if self._spare is None:
                self._pause(failure)
                return
            os.close(self._spare)
            self._spare = None
            try:
                sock, _ = listening.accept()
            except BlockingIOError:
                # Nobody waits: the system looks for a free descriptor before it looks at the queue.
                self._take_spare()
                return
            except ConnectionError:
                continue
            except OSError as again:
                self._pause(again)
                return
            tally("TOO_MANY_CONNECTIONS")
            self._refusals.refuse(sock, self._farewell_files, keep=False)
            self._take_spare()

    def _take_spare(self) -> None:
        try:
            self._spare = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            self._spare = None

    def _pause(self, failure: OSError) -> None:
        """Leave the waiting connections with the kernel for a moment: to ask again at once would fail again at once."""
        if self._resume is None:
            emit("accept_paused", pause_s=ACCEPT_PAUSE_S, error=failure)
            for listening in self._listening:
                self.node.loop.remove_reader(listening)
            self._resume = self.node.loop.call_later(ACCEPT_PAUSE_S, self._accept_again)

    def _accept_again(self) -> None:
        self._resume = None
        try:
            for listening in self._listening:
                self.node.loop.add_reader(listening, self._accept, listening)
        except OSError as failure:
            self._pause(failure)

    def stop_accepting(self) -> None:
        """Close the listening sockets; connections go on."""
        if self._resume is not None:
            self._resume.cancel()
            self._resume = None
        for listening in self._listening:
            self.node.loop.remove_reader(listening)
            listening.close()
        self._listening.clear()
        self._refusals.close()
        if self._spare is not None:
            os.close(self._spare)
            self._spare = None
        if self.unix is not None:
            Path(self.unix).unlink(missing_ok=True)
            self.unix = None
