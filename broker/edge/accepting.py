"""Taking connections in, whatever they are for, and refusing those that there is no room for.

Sockets are accepted here and not by the event loop, which has no word for a refusal: at the limit of open files asyncio
writes a traceback for each attempt and uvloop closes in silence. Here a connection beyond the bound costs one small
write and no object but its socket, and is told why. What the kernel holds for us meanwhile waits; nobody is dropped.

- Connections are taken in a few a turn of the loop, and fewer when the loop is late (`Admission`), so a crowd leaves
  the others theirs. Who would wait too long with the kernel is told when to come back; so is who finds no room.
- A socket that is listened at belongs to a `Door`, which knows what is spoken behind it. Doors share one pace, one
  bound and one account of who has not spoken yet: who storms one of them gets no more than who storms another.
- Few are between being taken in and having said HELLO: nobody is taken in before those have had their turn, and beyond
  `GREETING_MAX` the one that has been silent for longest is ended, so that sockets that say nothing keep nobody out.
- A refused peer has most likely written its HELLO already. To close on what is unread would reset the connection, and
  a reset may overtake the refusal: a few refused sockets are therefore kept for a moment, read empty and then closed.
- When open files run out in spite of the bound, since something else in the process took them, one that is kept for
  the purpose is given up for as long as it takes to refuse.
"""

from __future__ import annotations

import errno
import os
import resource
import socket
import stat
import struct
import sys
import time
from collections import deque
from itertools import filterfalse, islice
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from broker.access.rates import address_of
from broker.edge.admission import HINT_MS_MIN, REFUSALS_A_PLACE, TURN_S, Admission
from broker.edge.secure import SecureDoor
from broker.events import emit, tally
from broker.model.errors import error

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Sequence

    from broker.edge.certificates import Certificates
    from broker.model.errors import BrokerError
    from broker.node.node import Node

__all__ = ["Door", "Greeting", "Listener"]

NOTSENT_BYTES = 256 << 10
"""What the kernel holds beyond what the peer's window takes (TCP_NOTSENT_LOWAT)."""
BACKLOG = 4096
TCP_NOTSENT_LOWAT = getattr(socket, "TCP_NOTSENT_LOWAT", None)
SPARE_REFUSALS = 16
"""Connections that are refused in a turn by the descriptor that is kept for it."""
FAREWELLS_MAX = 256
"""Refusals that are kept ready: they differ in when to come back."""
GREETING_MAX = 1024
"""Connections that have not said HELLO yet."""
GREETING_SOON = 64
"""With so many that have said it and wait to be heard nobody is taken in: it is the server that is slow."""
LINGER_S = 0.5
"""How long a refused peer has to read why."""
LINGERING_MAX = 32
"""Refused sockets that are kept at once; they count among the open files that connections do not get."""
RATE_STEP_MS = 100
"""Refusals of who connects too often say when to come back in such steps, so that few different ones are made."""
ACCEPT_PAUSE_S = 0.1
"""How long nothing is accepted after the system has refused to."""
NO_FILES = frozenset({errno.EMFILE, errno.ENFILE})
TCP_INFO = getattr(socket, "TCP_INFO", None) if sys.platform == "linux" else None
TCP_INFO_BYTES = 28
ACCEPT_QUEUE = struct.Struct("=24xI")
"""Of a listening socket Linux says here (tcpi_unacked) how many connections wait to be accepted."""


def count_waiting(listening: socket.socket) -> int:
    """Return how many connections the kernel holds for us, 0 where it does not say."""
    if TCP_INFO is None or listening.family == socket.AF_UNIX:
        return 0
    waiting: int = ACCEPT_QUEUE.unpack(listening.getsockopt(socket.IPPROTO_TCP, TCP_INFO, TCP_INFO_BYTES))[0]
    return waiting


def peer_of(address: Sequence[object]) -> str:
    """Return a socket's address as `host:port`."""
    host = str(address[0])
    return f"[{host}]:{address[1]}" if ":" in host else f"{host}:{address[1]}"


class Greeting(Protocol):
    """A connection that has not said yet what it is for.

    Attributes:
        put_off, suspended: It has said something, and waits for us to hear it.
    """

    @property
    def put_off(self) -> bool: ...

    @property
    def suspended(self) -> bool: ...

    def greeted(self) -> None:
        """Be no longer among those that have said nothing."""

    def end(self, failure: BrokerError) -> None:
        """Tell the peer why, and close."""


class Door(Protocol):
    """What is spoken behind a listening socket.

    Attributes:
        option: How the command line names its address, for hints.
    """

    option: str

    def connection(self, sock: socket.socket) -> asyncio.BaseProtocol:
        """Return what the loop is to tell of an accepted socket."""

    def farewell(self, failure: BrokerError) -> bytes:
        """Return what a peer that is not let in is told, far smaller than a new socket's buffer."""


def waits_for_us(connection: Greeting) -> bool:
    """Whether a connection that has not been heard has said something: then it is not silent, we are busy."""
    return connection.put_off or connection.suspended


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
            farewell: All that it is told, far smaller than a new socket's buffer.
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


class Listener:
    """Accepts connections for a node.

    Args:
        node: The broker.
        certificates: With them all that is said at TCP addresses is said by TLS.

    Attributes:
        greeting: Connections that have not said what they are for, the longest silent first.
        plain: Connections that carry no session of the node, and count among all of them.
    """

    def __init__(self, node: Node, certificates: Certificates | None = None) -> None:
        self.node = node
        self._certificates = certificates
        self.connections_max = node.limits.connections_bound(resource.getrlimit(resource.RLIMIT_NOFILE)[0])
        self.unix: str | None = None
        self._listening: dict[socket.socket, Door] = {}
        self._opening: set[asyncio.Task[None]] = set()
        self._refusals = Refusals(node.loop)
        self.admission = Admission(time.monotonic())
        self.greeting: dict[Greeting, None] = {}
        self.plain: dict[object, None] = {}
        self._resume: asyncio.TimerHandle | None = None
        self._turn: asyncio.TimerHandle | None = None
        self._turn_due_s = 0.0
        self._spare: int | None = None
        self._take_spare()
        self._farewells: dict[tuple[Door, str, int], bytes] = {}
        self._farewells_files: dict[Door, bytes] = {}

    def listen_at(self, host: str, port: int, door: Door) -> str:
        """Listen on a TCP address; answers the address as `host:port` (port 0 has become a real one).

        Args:
            host: A literal IP address.
            port: 0 for any free one.
            door: Who takes the connections.

        Raises:
            BrokerError: ADDRESS; it is in use or cannot be had.
        """
        if self._certificates is not None:
            door = SecureDoor(self.node.loop, self._certificates, door)
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        try:
            bound = self._listen(family, (host, port), door).getsockname()
        except OSError as failure:
            raise error(
                "ADDRESS",
                f"tcp {host}:{port}: {failure.strerror or failure}",
                f"choose another with {door.option} HOST:PORT, or stop what listens there",
            ) from failure
        return f"[{bound[0]}]:{bound[1]}" if ":" in bound[0] else f"{bound[0]}:{bound[1]}"

    def listen_at_path(self, path: str, door: Door) -> str:
        """Listen on a Unix socket that only this user may open; a stale one is replaced, a live one is not.

        Args:
            path: Where it is.
            door: Who takes the connections.

        Raises:
            BrokerError: ADDRESS; another server listens there, or the path is no socket or cannot be had.
        """
        self._clear_stale(path)
        before = os.umask(0o177)
        try:
            self._listen(socket.AF_UNIX, path, door)
        except OSError as failure:
            raise error(
                "ADDRESS", f"unix {path}: {failure.strerror or failure}", "choose another with --unix PATH"
            ) from (failure)
        finally:
            os.umask(before)
        self.unix = path
        return path

    def _listen(self, family: socket.AddressFamily, address: tuple[str, int] | str, door: Door) -> socket.socket:
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
        self._listening[sock] = door
        self._farewells_files[door] = door.farewell(
            error(
                "TOO_MANY_CONNECTIONS",
                "open files of the server: none is left",
                "connect again in a moment",
                retry_after_ms=HINT_MS_MIN,
            )
        )
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
        """Connections wait: take a few, and let the others come by turns."""
        if not self._take([listening], self.admission.begin(time.monotonic())) and self._resume is None:
            for waiting in self._listening:
                self.node.loop.remove_reader(waiting)
            self._await_turn()

    def _await_turn(self) -> None:
        self._turn_due_s = time.monotonic() + TURN_S
        self._turn = self.node.loop.call_later(TURN_S, self._take_turn)

    def _take_turn(self) -> None:
        """The turn of those who wait; when nobody does any more, the loop tells of the next that come."""
        self._turn = None
        places = self.admission.turn(time.monotonic(), self._turn_due_s)
        nobody_waits = not self._greeting_is_slow() and self._take(list(self._listening), places)
        if self._resume is not None:
            return
        if nobody_waits:
            self._accept_again()
        else:
            self._await_turn()

    def _greeting_is_slow(self) -> bool:
        """Whether many who were taken in have not had their turn yet, through no fault of theirs."""
        if len(self.greeting) + len(self._opening) < GREETING_SOON:
            return False
        unheard = filter(waits_for_us, self.greeting)
        return len(self._opening) + sum(1 for _ in islice(unheard, GREETING_SOON)) >= GREETING_SOON

    def _take(self, listening: list[socket.socket], places: int) -> bool:
        """Take in, or refuse, those who wait, as far as there are places; answers whether nobody waits any more.

        A socket at which nobody waits leaves its part of the places to the others.
        """
        room = places * REFUSALS_A_PLACE
        for index, each in enumerate(listening):
            room, empty = self._take_from(each, room, room // (len(listening) - index))
            if not empty:
                return False
        return True

    def _take_from(self, listening: socket.socket, room: int, share: int) -> tuple[int, bool]:
        """Do so at one socket; answers what is left of the room, and whether nobody waits there any more."""
        waiting = count_waiting(listening)
        limit, most = self.connections_max, self.admission.waiting_max()
        excess = waiting - most
        least = room - share
        while room > least:
            try:
                sock, address = listening.accept()
            except BlockingIOError:
                return room, True
            except ConnectionError:
                # The peer has left while it waited.
                continue
            except OSError as failure:
                if failure.errno in NO_FILES:
                    self._refuse_by_spare(listening, failure)
                else:
                    self._pause(failure)
                return room, False
            room -= 1
            if len(self.node.connections) + len(self.plain) + len(self._opening) >= limit:
                self._refuse(
                    sock, self._listening[listening], f"connections: got {limit + 1}, limit {limit}", self._room_ms()
                )
            elif excess > 0:
                excess -= 1
                wait_ms = self.admission.wait_ms(waiting)
                detail = f"connections that wait to be let in: got more than {most}, limit {most}"
                self._refuse(sock, self._listening[listening], detail, wait_ms)
            elif wait_ms := self._rate_ms(address):
                detail = "connections of this address: got more in a second than limits.connects_per_s"
                self._refuse(sock, self._listening[listening], detail, wait_ms)
            else:
                room -= REFUSALS_A_PLACE - 1
                self._admit(sock, self._listening[listening])
        return room, False

    def _rate_ms(self, address: object) -> int:
        """Count a connection of a network's address; returns 0, or when it may come back."""
        rates = self.node.rates
        if not rates.counts_connections or not isinstance(address, tuple):
            return 0
        wait_ms = rates.connecting_ms(address_of(peer_of(address)))
        return -(-wait_ms // RATE_STEP_MS) * RATE_STEP_MS

    def _room_ms(self) -> int:
        return self.admission.room_ms(time.monotonic())

    def _refuse(self, sock: socket.socket, door: Door, detail: str, retry_after_ms: int) -> None:
        """Tell a peer why it is not let in, and when to come back."""
        tally("TOO_MANY_CONNECTIONS")
        self.admission.refused += 1
        farewell = self._farewells.get((door, detail, retry_after_ms))
        if farewell is None:
            if len(self._farewells) >= FAREWELLS_MAX:
                self._farewells.clear()
            farewell = door.farewell(error("TOO_MANY_CONNECTIONS", detail, retry_after_ms=retry_after_ms))
            self._farewells[door, detail, retry_after_ms] = farewell
        self._refusals.refuse(sock, farewell, keep=True)

    def _admit(self, sock: socket.socket, door: Door) -> None:
        """Take a connection in; another that has not said HELLO for longest makes room, if there are too many."""
        self.admission.admitted += 1
        if len(self.greeting) >= GREETING_MAX:
            silent = next(filterfalse(waits_for_us, self.greeting), next(iter(self.greeting)))
            silent.greeted()
            silent.end(
                error(
                    "TOO_MANY_CONNECTIONS",
                    f"connections before HELLO: got {GREETING_MAX + 1}, limit {GREETING_MAX}",
                    retry_after_ms=self._room_ms(),
                )
            )
        self._open(sock, door)

    def _open(self, sock: socket.socket, door: Door) -> None:
        """Have the loop carry an accepted socket's bytes to what is behind the door."""
        try:
            sock.setblocking(False)
            if sock.family != socket.AF_UNIX:
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                if TCP_NOTSENT_LOWAT is not None:
                    sock.setsockopt(socket.IPPROTO_TCP, TCP_NOTSENT_LOWAT, NOTSENT_BYTES)
        except OSError:
            sock.close()
            return
        task = self.node.loop.create_task(self._connect(sock, door))
        self._opening.add(task)
        task.add_done_callback(self._opening.discard)

    async def _connect(self, sock: socket.socket, door: Door) -> None:
        try:
            await self.node.loop.connect_accepted_socket(lambda: door.connection(sock), sock)
        except (OSError, MemoryError):
            sock.close()

    def _refuse_by_spare(self, listening: socket.socket, failure: OSError) -> None:
        """Refuse a few connections with the descriptor that is kept for that; without one they wait."""
        for _ in range(SPARE_REFUSALS):
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
            self._refusals.refuse(sock, self._farewells_files[self._listening[listening]], keep=False)
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
        if self._turn is not None:
            self._turn.cancel()
            self._turn = None
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
