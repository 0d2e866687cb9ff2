"""The embedded home: a broker inside this process, like SQLite.

    async with Broker.open("data") as bus:
        await bus.publish("chat.acme.42", b"hello")

The bus is the same client as everywhere, over a pipe in memory to the same server session, so its semantics are the
server's by construction. The broker runs on the caller's loop, or on a loop and thread of its own. It touches no
signals, no switch interval, no collector and no loop policy.
"""

from __future__ import annotations

import asyncio
import threading
from typing import TYPE_CHECKING, Any, Literal, overload

from broker.access.gate import Identity
from broker.client.client import Client
from broker.client.transport import MemoryTransport, memory_pair
from broker.edge.session import Session
from broker.model.errors import error
from broker.model.limits import Limits
from broker.model.profiles import Profile, Profiles
from broker.model.settings import MIB
from broker.node.node import Node

if TYPE_CHECKING:
    from collections.abc import Coroutine, Generator, Iterable
    from pathlib import Path
    from types import TracebackType

    from broker.client.transport import Receiver
    from broker.shared.bus import SharedOpening

__all__ = ["Broker"]

SEGMENT_BYTES = 64 * MIB
RESERVE_BYTES = 256 * MIB
IDLE_S = 30.0
"""How long a server that was started for a shared bus stays without any connection, unless it is told otherwise."""


async def open_bus(node: Node, identity: Identity) -> Client:
    """Open a bus to a broker that runs on this loop, as somebody; whoever opens it closes it.

    Args:
        node: The broker.
        identity: Who asks, for the gate.
    """

    async def open_pipe(receiver: Receiver) -> MemoryTransport:
        here, there = memory_pair(node.loop, node.loop)
        session = MemorySession(node, identity)
        session.start(there)
        there.attach(session)
        here.attach(receiver)
        return here

    # A line of its own for each would be remembered for as long as the journal is.
    return await Client(open_pipe, producer=b"").start()


class MemorySession(Session):
    """A session over a pipe in memory: of who runs the broker, or of an identity that is known."""

    __slots__ = ()
    ASKS = False

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
        self._ours = True

    @overload
    @staticmethod
    def open(
        path: str | Path,
        *,
        shared: Literal[False] = False,
        thread: bool = ...,
        profiles: Iterable[Profile] = ...,
        limits: Limits | None = ...,
        segment_bytes: int = ...,
        reserve_bytes: int = ...,
        **options: Any,
    ) -> Opening: ...

    @overload
    @staticmethod
    def open(
        path: str | Path,
        *,
        shared: Literal[True],
        idle_s: float = ...,
        profiles: Iterable[Profile] = ...,
        limits: Limits | None = ...,
        segment_bytes: int = ...,
        reserve_bytes: int = ...,
        **options: Any,
    ) -> SharedOpening: ...

    @staticmethod
    def open(
        path: str | Path,
        *,
        shared: bool = False,
        idle_s: float = IDLE_S,
        thread: bool = False,
        profiles: Iterable[Profile] = (),
        limits: Limits | None = None,
        segment_bytes: int = SEGMENT_BYTES,
        reserve_bytes: int = RESERVE_BYTES,
        **options: Any,
    ) -> Opening | SharedOpening:
        """Open a data directory in this process, or share it with others; enter or await what it returns.

        One broker owns a directory at a time; a second opener is told who does. With `shared` the owner is a server
        that no user process owns: whoever opens first starts it, everybody else finds it, and it ends by itself.

        Args:
            path: The directory; created if it is not there.
            shared: Find or start the directory's server, and talk to it; when it dies, the next call starts another.
            idle_s: `shared` only: how long the server, if it is started here, stays without any connection; 0 is for
                ever.
            thread: Run the broker on a thread of its own instead of the caller's loop.
            profiles: Policies of channels, the first match wins; none means one for all, synced. With `shared` they,
                and the settings below, are for the server that is started; one that runs already must have the same,
                and `broker.toml` in the directory goes before all of them. None means: whatever it has.
            limits: Bounds; None for the defaults.
            segment_bytes: Size of a journal segment, bytes, at least twice the largest group.
            reserve_bytes: Free space below which publishes are refused, bytes.
            options: As for `Client`.

        Raises:
            StorageError: From entering: STORAGE_IN_USE, STORAGE_FORMAT, STORAGE_CORRUPT, STORAGE_FULL.
            BrokerError: `shared`, from entering: SERVER_FAILED, TIMEOUT, ADDRESS, VERSION, or INVALID_CONFIG when the
                server has other settings.
        """
        if shared:
            return Broker._share(path, idle_s, thread, profiles, limits, segment_bytes, reserve_bytes, options)
        settings = {
            "profiles": Profiles(profiles),
            "limits": limits or Limits(),
            "segment_bytes": segment_bytes,
            "reserve_bytes": reserve_bytes,
        }
        return Opening(path, thread, settings, options)

    @staticmethod
    def _share(
        path: str | Path,
        idle_s: float,
        thread: bool,
        profiles: Iterable[Profile],
        limits: Limits | None,
        segment_bytes: int,
        reserve_bytes: int,
        options: dict[str, Any],
    ) -> SharedOpening:
        # Imported when it is asked for: the embedded home needs none of it.
        from broker.shared.bus import SharedOpening
        from broker.shared.settings import Asked

        if thread:
            raise error("INVALID_CONFIG", "thread: got True with shared=True, expected one of the two at most")
        storage = {
            name: value
            for name, value, usual in (
                ("segment_bytes", segment_bytes, SEGMENT_BYTES),
                ("reserve_bytes", reserve_bytes, RESERVE_BYTES),
            )
            if value != usual
        }
        return SharedOpening(path, Asked.of(tuple(profiles), limits, storage), idle_s, options)

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
            if self._ours:
                self._ours = False
                try:
                    await self._home.run(self._node.close())
                finally:
                    await self._home.stop()

    def on_forked(self) -> list[int]:
        self._ours = False
        return super().on_forked()


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
