"""The bus of a shared directory: a client that finds its server, and starts one when there is none.

What is unanswered and where subscriptions stand is the client's business, whatever happens to the server (see
`broker.client`). Here is only how a connection comes about, and what its failure means when the server is a process
that nobody looks after: one that is stopped or stuck is told by its number, and left alone.
"""

from __future__ import annotations

import asyncio
import os
import random
import threading
import time
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from broker.client.client import Client
from broker.client.transport import SocketProtocol, read_buffer
from broker.events import emit
from broker.model.errors import BrokerError, Remedy, error
from broker.remote.reconnect import BackoffPolicy, hinted_s
from broker.shared.place import Place, peer_of
from broker.shared.settings import differs, read_server
from broker.shared.starting import StartLock, described, start_server

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Generator
    from types import TracebackType
    from typing import Self

    from broker.client.transport import Receiver, Transport
    from broker.shared.settings import Asked
    from broker.shared.starting import Started

__all__ = ["SharedBus", "SharedOpening"]

BACKOFF = BackoffPolicy(first_s=0.02, longest_s=1.0)
"""The server is on this machine: it is there again within a second, or something is wrong."""
WAIT_POLL_S = 0.01
"""How often those who wait for somebody else's start look whether it has come to something."""


class SharedBus(Client):
    """A bus over the server of a shared directory. Use `Broker.open(path, shared=True)`.

    Args:
        place: the directory.
        asked: settings for the server.
        idle_s: when a server that is started here ends by itself.
        options: As for `Client`.
    """

    def __init__(self, place: Place, asked: Asked, idle_s: float, **options: Any) -> None:
        super().__init__(self._open_socket, **{"backoff": BACKOFF, **options})
        self._place = place
        self._asked = asked
        self._idle_s = idle_s
        self._peer_pid: int | None = None
        self._reached = False  # somebody has taken the connection that is being made

    @property
    def path(self) -> Path:
        """The real path of the directory."""
        return self._place.path

    async def start(self) -> Self:
        """Connect, to a server that may have to be started first.

        Raises:
            BrokerError: INVALID_CONFIG, it runs with other settings; else as for `Broker.open`.
        """
        deadline_s = self.loop.time() + self._connect_timeout_s
        while True:
            try:
                await super().start()
                break
            except BrokerError as failure:
                # It was just ending, or was killed: another one will be there. Or it has said when to come back.
                hint_ms = failure.retry_after_ms
                wait_s = WAIT_POLL_S if hint_ms is None else hinted_s(hint_ms, random.random())
                if failure.remedy is not Remedy.RESUME or self.loop.time() + wait_s > deadline_s:
                    raise
                await asyncio.sleep(wait_s)
        difference = self._difference()
        if difference is not None:
            await self.close()
            raise differs(self.path, difference)
        return self

    # .. connecting ..

    async def _connect(self) -> None:
        self._peer_pid, self._reached = None, False
        again = self._welcome is not None
        try:
            await super()._connect()
        except BrokerError as failure:
            if again and not self._reached and failure.remedy is Remedy.STOP:
                # Nobody has refused us: there is no server, for a mistake in a file perhaps that will be mended.
                detail = f"{self.path}: its server cannot be started: {failure}"
                raise error("SERVER_FAILED", detail, failure.hint) from failure.__cause__
            raise self._explained(failure) from failure.__cause__
        if again and (difference := self._difference()) is not None:
            # It was started by somebody else since. What waits here must go on, so it is told and not refused.
            emit("settings_differ", detail=f"{self.path}: {difference}")

    async def _open_socket(self, receiver: Receiver) -> Transport:
        """Connect to the server's socket; start one when nobody listens."""
        sock = await self._dial_or_start()
        try:
            self._peer_pid, self._reached = peer_of(sock).pid, True
            protocol = SocketProtocol(receiver, read_buffer(self.loop))
            transport, _ = await self.loop.create_unix_connection(lambda: protocol, sock=sock)
        except BaseException:
            sock.close()
            raise
        return transport

    async def _dial_or_start(self) -> socket.socket:
        waiting_ns = time.monotonic_ns()
        self._place.check_owner()
        while True:
            sock = self._place.dial()
            if sock is not None:
                return sock
            lock = StartLock.take(self.path)
            if lock is None:
                await asyncio.sleep(WAIT_POLL_S)
                continue
            try:
                # Whoever had the right before may have started one since we looked.
                sock = self._place.dial()
                if sock is not None:
                    return sock
                failure = lock.told_since(waiting_ns)
                if failure is not None:
                    raise failure
                await self._start_server(lock)
            finally:
                lock.close()

    async def _start_server(self, lock: StartLock) -> None:
        deadline_s = time.monotonic() + self._connect_timeout_s
        # The thread goes on when we are cancelled, so it has its own end, and the lock is its own.
        handed = StartLock(os.dup(lock.fileno()))
        started = await on_thread(partial(start_server, self._place, handed, self._asked, self._idle_s, deadline_s))
        if started is not None:
            pid, run, after_s = started
            emit("server_started", data=self.path, pid=pid, run=run, after_s=round(after_s, 3))

    # .. what went wrong ..

    def _difference(self) -> str | None:
        """Return what the server has other than was asked for; None when nothing, or nobody knows."""
        if not self._asked:
            return None
        told = read_server(self.path)
        if self._welcome is None or told.get("run") != self._welcome.run or "settings" not in told:
            return None
        return self._asked.difference(told["settings"])

    def _explained(self, failure: BrokerError) -> BrokerError:
        """Say of which server an error is, and what to do about that one."""
        told = read_server(self.path)
        pid = self._peer_pid or told.get("pid", "unknown")
        if failure.name == "VERSION":
            return error(
                "VERSION",
                f"{self.path}: its server, process {pid}, {described(told)}: {failure.detail}",
                f"Have all programs use one version. `kill {pid}` ends that server once they do, and the next call "
                "starts another.",
            )
        if failure.name == "TIMEOUT" and self._reached:
            state = "is stopped" if is_stopped(pid) else "takes connections"
            return error(
                "TIMEOUT",
                f"{self.path}: its server, process {pid}, {state} and does not answer: waited "
                f"{self._connect_timeout_s:g} s",
                f"`kill -CONT {pid}` lets a stopped one go on; `kill -9 {pid}` ends one that is stuck, and the next "
                "call starts another. Nothing that was acknowledged is lost by either.",
            )
        if failure.name == "TIMEOUT" and not failure.detail.startswith(str(self.path)):
            return error(
                "TIMEOUT",
                f"{self.path}: no server of it takes connections: waited {self._connect_timeout_s:g} s",
                "Somebody else may still be starting it: server.log in the directory says how far that is.",
            )
        return failure


async def on_thread(work: Callable[[], Started | None]) -> Started | None:
    """Run blocking work on a thread that ends with it.

    A pool's thread would stay, and whoever forks afterwards would fork a process with threads.
    """
    loop = asyncio.get_running_loop()
    outcome: asyncio.Future[Started | None] = loop.create_future()

    def run() -> None:
        try:
            settle = partial(outcome.set_result, work())
        except BaseException as failure:
            settle = partial(outcome.set_exception, failure)
        with suppress(RuntimeError):  # the loop is closed, and nobody waits
            loop.call_soon_threadsafe(lambda: None if outcome.done() else settle())

    thread = threading.Thread(target=run, name="broker starter", daemon=True)
    thread.start()
    found = await outcome
    thread.join()
    return found


def is_stopped(pid: int | str) -> bool:
    """Whether a process is stopped by a signal; False where the system does not say."""
    with suppress(OSError, IndexError):
        # The state follows the name, which is in parentheses and may hold any.
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in ("T", "t")
    return False


class SharedOpening:
    """What `Broker.open(path, shared=True)` returns: await it or enter it."""

    def __init__(self, path: str | Path, asked: Asked, idle_s: float, options: dict[str, Any]) -> None:
        if not idle_s >= 0:
            raise error("INVALID_CONFIG", f"idle_s: got {idle_s}, expected at least 0 seconds")
        self._path = path
        self._asked = asked
        self._idle_s = idle_s
        self._options = options
        self._bus: SharedBus | None = None

    async def _open(self) -> SharedBus:
        return await SharedBus(Place(self._path), self._asked, self._idle_s, **self._options).start()

    def __await__(self) -> Generator[Any, Any, SharedBus]:
        return self._open().__await__()

    async def __aenter__(self) -> SharedBus:
        self._bus = await self._open()
        return self._bus

    async def __aexit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        assert self._bus is not None
        await self._bus.close()
