"""The embedded home: a broker inside this process, like SQLite.

    async with Broker.open("data") as bus:
        await bus.publish("chat.acme.42", b"hello")

The bus is the same client as everywhere, over a pipe in memory to the same server session, so its semantics are the
server's by construction. The broker runs on the caller's loop, or on a loop and thread of its own. It touches no
signals, no switch interval, no collector and no loop policy.
"""

from __future__ import annotations

import asyncio
import os
import threading
from typing import TYPE_CHECKING, Any
from weakref import WeakSet

from broker.access.gate import Identity
from broker.client.client import Client
from broker.client.transport import MemoryTransport, memory_pair
from broker.edge.session import Session
from broker.model.errors import error
from broker.model.limits import Limits
from broker.model.profiles import Profile, Profiles
from broker.node.node import Node

if TYPE_CHECKING:
    from collections.abc import Coroutine, Generator, Iterable
    from pathlib import Path
    from types import TracebackType

    from broker.client.transport import Receiver

__all__ = ["Broker"]

MIB = 1024 * 1024


class MemorySession(Session):
    """A session over a pipe in memory."""

    __slots__ = ()

    def on_bytes(self, data: memoryview) -> None:
        self.feed(data)

    def on_lost(self, failure: BaseException | None) -> None:
        self.stopped()

    def on_writable(self, writable: bool) -> None:
        if writable:
            self.writing_resumed()
        else:
            self.outbox.pause()


class NodeLoop:
    """Where the node runs: the caller's loop."""

    def __init__(self) -> None:
        self.loop = asyncio.get_running_loop()

    async def run(self, work: Coroutine[Any, Any, Any]) -> Any:
        """Run a coroutine on the node's loop and wait for it."""
        return await work

    async def stop(self) -> None:
        """Nothing of ours is left."""


class NodeThread(NodeLoop):
    """Where the node runs: a loop on a thread of its own."""

    def __init__(self) -> None:
        # The same kind of loop as the caller's, whatever that is.
        self.loop = type(asyncio.get_running_loop())()
        self._thread = threading.Thread(target=self._serve, name="broker", daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        asyncio.set_event_loop(self.loop)
        self.loop.run_forever()

    async def run(self, work: Coroutine[Any, Any, Any]) -> Any:
        return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(work, self.loop))

    async def stop(self) -> None:
        await self.run(self.loop.shutdown_default_executor())
        self.loop.call_soon_threadsafe(self.loop.stop)
        await asyncio.get_running_loop().run_in_executor(None, self._thread.join)
        self.loop.close()


class Broker(Client):
    """A broker in this process, and the bus to it. Use `Broker.open`."""

    def __init__(self, node: Node, home: NodeLoop, **options: Any) -> None:
        super().__init__(self._open_pipe, **options)
        self._node = node
        self._home = home
        _open_brokers.add(self)

    @staticmethod
    def open(
        path: str | Path,
        *,
        thread: bool = False,
        profiles: Iterable[Profile] = (),
        limits: Limits | None = None,
        segment_bytes: int = 64 * MIB,
        reserve_bytes: int = 256 * MIB,
        **options: Any,
    ) -> Opening:
        """Open a data directory in this process; enter or await what it returns.

        One broker owns a directory at a time; a second opener is told who does.

        Args:
            path: The directory; created if it is not there.
            thread: Run the broker on a thread of its own instead of the caller's loop.
            profiles: Policies of channels, the first match wins; none means one for all, synced.
            limits: Bounds; None for the defaults.
            segment_bytes: Size of a journal segment, bytes, at least twice the largest group.
            reserve_bytes: Free space below which publishes are refused, bytes.
            options: As for `Client`.

        Raises:
            StorageError: From entering: STORAGE_IN_USE, STORAGE_FORMAT, STORAGE_CORRUPT, STORAGE_FULL.
        """
        settings = {
            "profiles": Profiles(profiles),
            "limits": limits or Limits(),
            "segment_bytes": segment_bytes,
            "reserve_bytes": reserve_bytes,
        }
        return Opening(path, thread, settings, options)

    async def _open_pipe(self, receiver: Receiver) -> MemoryTransport:
        here, there = memory_pair(self.loop, self._home.loop)

        async def accept() -> None:
            session = MemorySession(self._node, Identity(peer="embedded"))
            session.start(there)
            there.attach(session)

        await self._home.run(accept())
        here.attach(receiver)
        return here

    async def close(self, timeout_s: float = 5.0) -> None:
        """Wait for what is unanswered, close the bus, and give the directory back. Calling it again does nothing.

        Args:
            timeout_s: How long to wait for answers, seconds.

        Raises:
            BrokerError: A posted message failed and nobody was told.
        """
        try:
            await super().close(timeout_s)
        finally:
            if self in _open_brokers:
                _open_brokers.discard(self)
                try:
                    await self._home.run(self._node.close())
                finally:
                    await self._home.stop()

    def _forked(self) -> None:
        """This is a child process: the parent's broker is not ours to use."""
        failure = error(
            "FORKED", "the broker was opened in the parent of this process", "open it again, or use a server"
        )
        self._closed = failure
        self._connection = None
        self._buffer.close(failure, failure)


class Opening:
    """What `Broker.open` returns: await it or enter it."""

    def __init__(self, path: str | Path, thread: bool, settings: dict[str, Any], options: dict[str, Any]) -> None:
        self._path = path
        self._thread = thread
        self._settings = settings
        self._options = options
        self._broker: Broker | None = None

    async def _open(self) -> Broker:
        home = NodeThread() if self._thread else NodeLoop()
        try:
            node = await home.run(Node.open(self._path, **self._settings))
        except BaseException:
            await home.stop()
            raise
        broker = Broker(node, home, **self._options)
        try:
            await broker.start()
        except BaseException:
            await broker.close()
            raise
        return broker

    def __await__(self) -> Generator[Any, Any, Broker]:
        return self._open().__await__()

    async def __aenter__(self) -> Broker:
        self._broker = await self._open()
        return self._broker

    async def __aexit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        assert self._broker is not None
        await self._broker.close()


_open_brokers: WeakSet[Broker] = WeakSet()


def _after_fork_in_child() -> None:
    for broker in list(_open_brokers):
        broker._forked()
    _open_brokers.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
