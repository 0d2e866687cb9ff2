"""What carries a conversation's bytes: sockets of a loop, or memory between two ends in one process.

A `Connector` opens a transport for a `Receiver`. A transport has `writelines`, `close` and `abort`, and an asyncio
transport is one as it is. The receiver is told of bytes, of the end, and of when the transport takes more; all calls
come on its own loop, never from inside a call of its own to the transport but `on_writable`.

All sockets of a loop share one read buffer: what a receiver wants to keep it copies before `on_bytes` returns.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias, cast
from weakref import WeakKeyDictionary

if TYPE_CHECKING:
    from collections.abc import Iterable
    from ssl import SSLContext

    from broker.remote.address import TcpAddress, TlsAddress, UnixAddress

Bytes: TypeAlias = bytes | bytearray | memoryview

READ_BUFFER_BYTES = 256 * 1024
WRITE_BUFFER_BYTES_HIGH = 512 * 1024
SHUTDOWN_S = 1.0
"""How long a server may take to answer the farewell of TLS; then the socket is closed all the same."""
MEMORY_BYTES_HIGH = 1024 * 1024
MEMORY_BYTES_LOW = 256 * 1024


class Transport(Protocol):
    """Where a connection writes to."""

    def writelines(self, list_of_data: Iterable[Bytes], /) -> None:
        """Send the pieces in order. They must not change afterwards."""

    def close(self) -> None:
        """Send what is buffered, then end."""

    def abort(self) -> None:
        """End now."""

    def get_extra_info(self, name: str, default: Any = None, /) -> Any:
        """Answer what is known of the transport, `socket` for one; else the default."""


class Receiver(Protocol):
    """Who is told what happens on a transport."""

    def on_bytes(self, data: memoryview) -> object:
        """Bytes have arrived, split anywhere. `data` is good until this returns."""

    def on_lost(self, failure: BaseException | None) -> object:
        """The transport has ended; nothing follows. None when it ended in good order."""

    def on_writable(self, writable: bool) -> object:
        """The transport's buffer is full (False), or takes more again (True)."""


Connector: TypeAlias = Callable[[Receiver], Awaitable[Transport]]
"""Opens a transport whose events go to the receiver, on the running loop. Raises OSError or BrokerError."""


# --- Sockets ------------------------------------------------------------------------------------------------------

_read_buffers: WeakKeyDictionary[asyncio.AbstractEventLoop, memoryview] = WeakKeyDictionary()


def read_buffer(loop: asyncio.AbstractEventLoop) -> memoryview:
    """Return the read buffer that all sockets of a loop share: each read is dealt with before the next."""
    buffer = _read_buffers.get(loop)
    if buffer is None:
        buffer = _read_buffers[loop] = memoryview(bytearray(READ_BUFFER_BYTES))
    return buffer


class SocketProtocol(asyncio.BufferedProtocol):
    """Tells a receiver what asyncio says of a socket."""

    def __init__(self, receiver: Receiver, buffer: memoryview) -> None:
        self._receiver = receiver
        self._buffer = buffer

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        cast("asyncio.Transport", transport).set_write_buffer_limits(high=WRITE_BUFFER_BYTES_HIGH)

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._buffer

    def buffer_updated(self, nbytes: int) -> None:
        self._receiver.on_bytes(self._buffer[:nbytes])

    def connection_lost(self, exc: Exception | None) -> None:
        self._receiver.on_lost(exc)

    def pause_writing(self) -> None:
        self._receiver.on_writable(False)

    def resume_writing(self) -> None:
        self._receiver.on_writable(True)


def tcp_connector(address: TcpAddress) -> Connector:
    """Return what connects to a TCP address."""

    async def open_tcp(receiver: Receiver) -> Transport:
        loop = asyncio.get_running_loop()
        protocol = SocketProtocol(receiver, read_buffer(loop))
        transport, _ = await loop.create_connection(lambda: protocol, address.host, address.port)
        return transport

    return open_tcp


def tls_connector(address: TlsAddress, context: SSLContext) -> Connector:
    """Return what connects to a TCP address and speaks TLS there."""

    async def open_tls(receiver: Receiver) -> Transport:
        loop = asyncio.get_running_loop()
        protocol = SocketProtocol(receiver, read_buffer(loop))
        transport, _ = await loop.create_connection(
            lambda: protocol,
            address.host,
            address.port,
            ssl=context,
            server_hostname=address.expected,
            ssl_shutdown_timeout=SHUTDOWN_S,
        )
        return transport

    return open_tls


def unix_connector(address: UnixAddress) -> Connector:
    """Return what connects to a Unix socket."""

    async def open_unix(receiver: Receiver) -> Transport:
        loop = asyncio.get_running_loop()
        protocol = SocketProtocol(receiver, read_buffer(loop))
        transport, _ = await loop.create_unix_connection(lambda: protocol, address.path)
        return transport

    return open_unix


# --- Memory -------------------------------------------------------------------------------------------------------


class MemoryTransport:
    """One end of a pipe in memory. What it is given to write reaches the other end's receiver in a later loop turn.

    Each end lives on a loop, and all calls to it are made there; the two loops may be of different threads. It offers
    what a server's session asks of an asyncio transport, so that a session can have either.

    The counters `written` and `read` are each changed by one side only, and appending to a deque is atomic: so nothing
    here needs a lock.

    Args:
        loop: The loop of this end and its receiver.
        name: What `get_extra_info("peername")` answers.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, name: str) -> None:
        self.loop = loop
        # A pipe within one loop needs no wake-up through the loop's own socket.
        self._schedule: Callable[..., object] = loop.call_soon_threadsafe
        self._name = name
        self._peer: MemoryTransport = self
        self._receiver: Receiver | None = None
        self._inbox: deque[bytes] = deque()
        self._woken = False
        self._written = 0  # bytes that this end has sent
        self._read = 0  # bytes that this end has taken from its inbox
        self._full = False
        self._reading = True
        self._closing = False
        self._peer_closed = False
        self._lost = False

    def attach(self, receiver: Receiver) -> None:
        """Name who is told of this end's events; what has arrived before is told in the next turn."""
        self._receiver = receiver
        self._wake()

    # .. what a transport does ..

    def writelines(self, list_of_data: Iterable[Bytes]) -> None:
        """Send the pieces as one."""
        if self._closing or self._lost:
            return
        data = b"".join(list_of_data)
        self._written += len(data)
        self._peer._inbox.append(data)
        self._peer._wake()
        if not self._full and self.get_write_buffer_size() > MEMORY_BYTES_HIGH:
            self._full = True
            if self._receiver is not None:
                self._receiver.on_writable(False)

    def write(self, data: Bytes) -> None:
        """Send one piece."""
        self.writelines((data,))

    def get_write_buffer_size(self) -> int:
        """Return the bytes that the other end has not taken yet."""
        return self._written - self._peer._read

    def pause_reading(self) -> None:
        """Leave what arrives in the inbox, where it counts against the sender."""
        self._reading = False

    def resume_reading(self) -> None:
        """Take what arrives again."""
        self._reading = True
        self._wake()

    def is_closing(self) -> bool:
        """Whether this end has been closed, or the pipe has ended."""
        return self._closing or self._lost

    def close(self) -> None:
        """End after the other end has taken what was sent."""
        if not self._closing:
            self._closing = True
            self._peer._peer_closed = True
            self._peer._wake()
            self._wake()

    def abort(self) -> None:
        """End now, whatever was not taken."""
        self._inbox.clear()
        self.close()

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        """Answer `peername`; there is no socket."""
        return self._name if name == "peername" else default

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        """Keep the limits of this module, whatever is asked."""

    # .. how it gets there ..

    def _wake(self) -> None:
        """Have this end's loop look after it. Any thread."""
        # The flag is cleared before the inbox is emptied, so what is appended while it is set is not overlooked.
        if self._woken:
            return
        self._woken = True
        try:
            self._schedule(self._turn)
        except RuntimeError:
            # That loop is closed, and so is everybody who could be told.
            self._lost = True

    def _turn(self) -> None:
        self._woken = False
        if self._receiver is None or self._lost:
            return
        # Asked before the inbox is looked at: what the other end sent before it closed is in there.
        ended = self._peer_closed or self._closing
        if self._reading and not self._closing:
            self._take_inbox(self._receiver)
        if self._full and self.get_write_buffer_size() <= MEMORY_BYTES_LOW:
            self._full = False
            self._receiver.on_writable(True)
        if ended and (self._closing or not self._inbox):
            self._end(self._receiver)

    def _take_inbox(self, receiver: Receiver) -> None:
        taken = 0
        while self._inbox and self._reading and not self._closing:
            data = self._inbox.popleft()
            self._read += len(data)
            taken += len(data)
            receiver.on_bytes(memoryview(data))
            if taken >= MEMORY_BYTES_HIGH and self._inbox:
                self._wake()  # let others have a turn
                break
        if taken and self._peer._full:
            self._peer._wake()

    def _end(self, receiver: Receiver) -> None:
        self._lost = True
        self._inbox.clear()
        self.close()
        receiver.on_lost(None)


def memory_pair(
    near: asyncio.AbstractEventLoop, far: asyncio.AbstractEventLoop
) -> tuple[MemoryTransport, MemoryTransport]:
    """Make a pipe in memory: one end for a receiver on `near`, one for a receiver on `far`, which may be the same."""
    here, there = MemoryTransport(near, "memory"), MemoryTransport(far, "memory")
    here._peer, there._peer = there, here
    if near is far:
        here._schedule = there._schedule = near.call_soon
    return here, there
