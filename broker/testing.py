"""A broker for the tests of those who use one: a real one, that leaves nothing behind.

    async with TestBroker() as bus:
        await bus.publish("chat.lobby", b"hello")

It is the embedded broker over a folder of its own, in memory where the system has such a folder, so its semantics are
the product's by construction: what is stored, resumed, refused and lost is what a server stores, resumes, refuses and
loses. It sees a restart (`restart`), a connection that breaks (`disconnect`), further buses (`connect`) and other
threads and processes (`listen`). Programs without a loop enter it without `async`, and get the blocking client.
"""

from __future__ import annotations

import asyncio
import shutil
import tempfile
import threading
from contextlib import AsyncExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from broker.blocking.client import connect as connect_blocking
from broker.client.client import Client
from broker.edge.native import NativeListener
from broker.edge.session import Session
from broker.embedded import Broker
from broker.model.errors import error

if TYPE_CHECKING:
    from collections.abc import Coroutine, Iterable
    from types import TracebackType

    from broker.blocking.client import Client as BlockingClient
    from broker.model.limits import Limits
    from broker.model.profiles import Profile

__all__ = ["TestBroker"]

MEMORY_FOLDER = Path("/dev/shm")
MEMORY_BYTES_MIN = 256 * 1024 * 1024
"""A container's folder in memory may have room for next to nothing."""
SEGMENT_BYTES = 8 * 1024 * 1024


class TestBroker:
    """A broker that begins empty and ends with the block that enters it.

    All of it belongs to the loop that enters it; entered without `async`, to threads.

    Args:
        profiles: Policies of channels, the first match wins; none means one for all, synced.
        limits: Bounds; None for the defaults.
        options: Of the bus, as for `Client`.
    """

    __test__ = False  # its name is no promise to pytest

    def __init__(self, *, profiles: Iterable[Profile] = (), limits: Limits | None = None, **options: Any) -> None:
        self._settings: dict[str, Any] = {"profiles": tuple(profiles), "limits": limits, "segment_bytes": SEGMENT_BYTES}
        self._options = options
        self._folder: Path | None = None
        self._broker: Broker | None = None
        self._buses: list[Client] = []
        self._listener: NativeListener | None = None
        self._thread: LoopThread | None = None
        self._blocking: BlockingClient | None = None

    @property
    def url(self) -> str:
        """Where others connect to it: a URL for `connect`, also of `broker.blocking`, and for the command `broker`.

        Raises:
            RequestError: CLOSED; it was not entered. Without `async` it listens by itself, else after `listen`.
        """
        if self._listener is None:
            raise error("CLOSED", "test broker: it listens to nobody", "Enter it, and await its `listen`.")
        return f"broker+unix://{self._path}/socket"

    async def __aenter__(self) -> Broker:
        if self._folder is not None:
            raise error("STORAGE_IN_USE", "test broker: it was entered before", "Make another one.")
        self._folder = Path(tempfile.mkdtemp(prefix="broker-", dir=memory_folder()))
        try:
            return await self._open()
        except BaseException:
            self._forget()
            raise

    async def __aexit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            await self._close()
        finally:
            self._forget()

    async def connect(self, **options: Any) -> Client:
        """Open another bus to the same broker, as another process has one; it is closed with the broker.

        Args:
            options: As for `Client`.
        """
        bus = await Client(self._running._open_pipe, **options).start()
        self._buses.append(bus)
        return bus

    async def listen(self) -> str:
        """Let other threads and processes connect, and return `url`."""
        if self._listener is None:
            listener = NativeListener(self._running._node)
            await listener.listen_unix(f"{self._path}/socket")
            self._listener = listener
        return self.url

    async def restart(self) -> Broker:
        """End the broker in good order and start it anew on what it has stored; returns the new bus.

        The bus before it is closed, and so are those of `connect`. Whoever has connected to `url` comes back.
        """
        listened = self._listener is not None
        await self._close()
        bus = await self._open()
        if listened:
            await self.listen()
        return bus

    async def disconnect(self) -> None:
        """Break every connection, as a network does; buses connect again and resume by themselves."""
        for session in list(self._running._node.connections):
            assert isinstance(session, Session)
            session.transport.abort()
        await asyncio.sleep(0)

    # .. without a loop ..

    def __enter__(self) -> BlockingClient:
        self._thread = LoopThread()
        try:
            self._thread.run(self.__aenter__())
            url = self._thread.run(self.listen())
            self._blocking = connect_blocking(url, **self._options)
        except BaseException:
            self._end_thread()
            raise
        return self._blocking

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        assert self._blocking is not None
        try:
            self._blocking.close()
        finally:
            self._end_thread()

    def _end_thread(self) -> None:
        assert self._thread is not None
        try:
            if self._folder is not None:
                self._thread.run(self.__aexit__(None, None, None))
        finally:
            self._thread.stop()

    # .. inside ..

    @property
    def _path(self) -> Path:
        assert self._folder is not None
        return self._folder

    @property
    def _running(self) -> Broker:
        if self._broker is None:
            raise error("CLOSED", "test broker: it is not entered", "Use it inside of its `async with` block.")
        return self._broker

    async def _open(self) -> Broker:
        self._broker = await Broker.open(self._path / "data", reserve_bytes=0, **self._settings, **self._options)
        return self._broker

    async def _close(self) -> None:
        listener, self._listener = self._listener, None
        broker, self._broker = self._broker, None
        async with AsyncExitStack() as stack:
            if broker is not None:
                stack.push_async_callback(broker.close)
                # Whoever has connected to the listener is told to come back.
                stack.push_async_callback(broker._node.drain, 0.0)
                stack.push_async_callback(Client.close, broker)
            for bus in self._buses:
                stack.push_async_callback(bus.close)
            self._buses.clear()
            if listener is not None:
                listener.stop_accepting()

    def _forget(self) -> None:
        shutil.rmtree(self._path, ignore_errors=True)
        self._folder = None


class LoopThread:
    """A loop on a thread of its own."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="test broker", daemon=True)
        self._thread.start()

    def run(self, work: Coroutine[Any, Any, Any]) -> Any:
        """Run a coroutine there and wait for it."""
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    def stop(self) -> None:
        """End the thread."""
        self.run(self._loop.shutdown_default_executor())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


def memory_folder() -> Path | None:
    """Return a folder in memory that has room; None for wherever temporary files go."""
    try:
        roomy = shutil.disk_usage(MEMORY_FOLDER).free >= MEMORY_BYTES_MIN
        with tempfile.TemporaryFile(dir=MEMORY_FOLDER):
            return MEMORY_FOLDER if roomy else None
    except OSError:
        return None
