"""One conversation with a server over a socket that two threads share: one reads it, whoever has the bus' lock writes.

A socket's timeout is a property of the object, so there are two over the one descriptor: the reader's waits, the
writer's does not. What the server does not take at once is the backlog, which one thread sends by and by; until it is
gone all others put what they send behind it. The descriptor is closed once neither is in a call with it.

TLS is spoken in memory and not by the socket, whose two threads may not be in one TLS library at once: bytes are sealed
when they are sent and unsealed when they are fed, both with the lock. What is read and what waits in the backlog is
ciphertext.

All methods are called with the bus' lock held but those that wait: `receive` and `send_piece`.
"""

from __future__ import annotations

import socket
import ssl
import time
from collections import deque
from contextlib import suppress
from typing import TYPE_CHECKING, Protocol

from broker.model.errors import BrokerError, error
from broker.remote import conversation
from broker.remote.address import TlsAddress, UnixAddress
from broker.remote.conversation import Conversation
from broker.remote.tls import tls_failed
from broker.wire.secure import SLICE_BYTES, SecureStream

if TYPE_CHECKING:
    from broker.remote.address import Address
    from broker.remote.conversation import Bytes

BACKLOG_WAIT_S = 1.0
"""How long one call waits for the server to take more; then it is looked whether the conversation still lasts."""
QUIET_S_MAX = 3600.0
"""How long one call waits for bytes when the server asks for no pings."""
READ_BYTES_MIN = 16 * 1024
READ_BYTES_MAX = 256 * 1024
"""A read buffer is as small at first and when nothing comes, and grows while reads fill it: thousands of idle buses
have one each."""


class Owner(conversation.Owner, Protocol):
    """Who is told what a connection hears."""

    def on_full(self, connection: Connection) -> None:
        """There is a backlog: `send_piece` is to be called until there is none."""

    def on_writable(self) -> None:
        """The backlog is gone."""


def dial(
    address: Address, timeout_s: float, context: ssl.SSLContext | None
) -> tuple[socket.socket, SecureStream | None]:
    """Open a socket to a server, and shake hands there if TLS is spoken.

    Args:
        address: Where it is.
        timeout_s: How long it may take.
        context: Of a `TlsAddress`.

    Raises:
        OSError: There is none; TimeoutError when nothing answers in time; ssl.SSLError when it is not to be trusted.
    """
    deadline_s = time.monotonic() + timeout_s
    sock = open_socket(address, timeout_s)
    if context is None or not isinstance(address, TlsAddress):
        return sock, None
    try:
        stream = SecureStream(context, address.expected)
        shake_hands(sock, stream, deadline_s)
    except BaseException:
        sock.close()
        raise
    return sock, stream


def shake_hands(sock: socket.socket, stream: SecureStream, deadline_s: float) -> None:
    """Do the handshake of TLS, until a time of `time.monotonic`."""
    while True:
        try:
            is_done = stream.shake_hands()
        finally:
            # What the server is to be told when it fails, too.
            sock.settimeout(max(deadline_s - time.monotonic(), 0.001))
            sock.sendall(stream.take())
        if is_done:
            return
        sock.settimeout(max(deadline_s - time.monotonic(), 0.001))
        received = sock.recv(SLICE_BYTES)
        if not received:
            raise ConnectionResetError("the server has closed it during the handshake of TLS")
        stream.feed(received)


def open_socket(address: Address, timeout_s: float) -> socket.socket:
    """Open a socket."""
    if isinstance(address, UnixAddress):
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            sock.settimeout(timeout_s)
            sock.connect(address.path)
        except BaseException:
            sock.close()
            raise
        return sock
    sock = socket.create_connection((address.host, address.port), timeout_s)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return sock


class Connection(Conversation):
    """One conversation.

    Args:
        owner: Who is told.
        now_s: The time.
    """

    def __init__(self, owner: Owner, now_s: float) -> None:
        super().__init__(owner, now_s)
        self._listener = owner
        self._reading: socket.socket | None = None
        self._writing: socket.socket | None = None
        self._secure: SecureStream | None = None
        self._plain = memoryview(b"")
        self._buffer = memoryview(bytearray(READ_BYTES_MIN))
        self._backlog: deque[memoryview] = deque()
        self._is_sending = False  # somebody waits in `send_piece`
        self._is_broken = False  # nothing is sent any more; what the server said before its end is still read
        self._is_finished = False

    def open(self, sock: socket.socket, secure: SecureStream | None = None) -> None:
        """Take a connected socket, and the TLS that is spoken there; it is closed by `finish`."""
        self._reading = sock
        self._secure = secure
        if secure is not None:
            self._plain = memoryview(bytearray(READ_BYTES_MIN))
        # Not a copy of the descriptor: the same one, which this object must never close.
        self._writing = socket.socket(sock.family, sock.type, sock.proto, fileno=sock.fileno())
        self._writing.settimeout(0)

    def descriptors(self) -> list[int]:
        """Give the descriptor away, in a child process that inherited it; nothing when there is none."""
        if self._writing is None or self._reading is None:
            return []
        self._writing.detach()
        return [self._reading.fileno()] if self._reading.fileno() >= 0 else []

    # .. reading ..

    def wait_at_most(self, timeout_s: float) -> None:
        """Have `receive` give up after a time."""
        if self._reading is not None:
            self._reading.settimeout(min(max(timeout_s, 0.001), QUIET_S_MAX))

    def receive(self) -> memoryview | None:
        """Wait for bytes, without the lock; empty when none follow. None when none came in time.

        The bytes are good until the next call.

        Raises:
            OSError: The connection has ended badly.
        """
        assert self._reading is not None
        try:
            size = self._reading.recv_into(self._buffer)
        except TimeoutError:
            if len(self._buffer) > READ_BYTES_MIN:
                self._buffer = memoryview(bytearray(READ_BYTES_MIN))
            return None
        received = self._buffer[:size]
        if size == len(self._buffer) and size < READ_BYTES_MAX:
            self._buffer = memoryview(bytearray(min(4 * size, READ_BYTES_MAX)))
        return received

    def feed(self, data: memoryview, now_s: float) -> None:
        """Tell the owner what received bytes mean."""
        if self._secure is None:
            super().feed(data, now_s)
            return
        try:
            for part in self._secure.unseal(data, self._plain):
                super().feed(part, now_s)
        except ssl.SSLError as failure:
            self.abort(tls_failed(failure))
            return
        own = self._secure.take()
        if own:
            self._send_raw(own)

    @property
    def reason(self) -> BrokerError | None:
        """Why it was ended, as far as the server or this side has said."""
        return self._failure

    @property
    def ended(self) -> bool:
        """Whether nothing that still comes is looked at."""
        return self._ended

    def finish(self, failure: BaseException | None) -> BrokerError:
        """The reader has seen the end; returns why."""
        self._ended = self._is_finished = True
        self._stop()
        if not self._is_sending:
            self._close()
        if self._failure is None:
            self._failure = error("CONNECTION_LOST", f"connection: {failure or 'closed by the server'}")
        return self._failure

    def abort(self, failure: BrokerError | None = None) -> None:
        """End now: the reader, wherever it waits, sees the end at once."""
        if self._failure is None:
            self._failure = failure
        self._ended = True
        self._stop()

    def _stop(self) -> None:
        self._stop_sending()
        if self._reading is not None:
            # It ends every call that waits, in both directions. It fails when there is nothing left to end.
            with suppress(OSError):
                self._reading.shutdown(socket.SHUT_RDWR)

    def _stop_sending(self) -> None:
        self._is_broken = True
        self.writable = False
        self._backlog.clear()

    def _close(self) -> None:
        if self._writing is not None:
            self._writing.detach()
        if self._reading is not None:
            self._reading.close()

    # .. writing ..

    def send(self, frame: Bytes) -> None:
        """Send whole frames, or put what the server does not take now behind the backlog."""
        if self._is_broken or self._writing is None:
            return
        if self._secure is None:
            self._send_raw(frame)
            return
        try:
            sealed = b"".join(self._secure.seal(frame))
        except ssl.SSLError as failure:
            self.abort(tls_failed(failure))
        except BaseException:
            # Interrupted: what was sealed and is not sent is missing from the stream.
            self.abort(error("CONNECTION_LOST", "connection: sending was interrupted"))
            raise
        else:
            self._send_raw(sealed)

    def _send_raw(self, frame: Bytes) -> None:
        if self._is_broken or self._writing is None:
            return
        if self._backlog:
            self._backlog.append(memoryview(frame))
            return
        try:
            sent = self._try(self._writing, frame)
            if sent < len(frame) and not self._is_broken:
                self._backlog.append(memoryview(frame)[sent:])
                self.writable = False
                self._listener.on_full(self)
        except BaseException:
            # Interrupted: nobody knows how much has gone.
            self.abort(error("CONNECTION_LOST", "connection: sending was interrupted"))
            raise

    def _try(self, sock: socket.socket, data: Bytes | memoryview) -> int:
        try:
            return sock.send(data)
        except (BlockingIOError, TimeoutError):
            return 0
        except OSError:
            self._fail_to_send(sock)
            return len(data)

    def _fail_to_send(self, sock: socket.socket) -> None:
        """The reader finds out why: what came before the end may say it."""
        self._stop_sending()
        with suppress(OSError):
            sock.shutdown(socket.SHUT_WR)

    def next_piece(self) -> memoryview | None:
        """Return what `send_piece` is to send now; None when there is no backlog."""
        if not self._backlog or self._writing is None:
            return None
        self._is_sending = True
        self._writing.settimeout(BACKLOG_WAIT_S)
        return self._backlog[0]

    def send_piece(self, piece: memoryview) -> int:
        """Send some of a piece, without the lock; returns how many bytes. One thread does that, a second at most."""
        assert self._writing is not None
        try:
            return self._writing.send(piece)
        except (BlockingIOError, TimeoutError):
            return 0

    def sent_piece(self, sent: int, failure: BaseException | None) -> None:
        """So much of the piece has gone, or the attempt has failed."""
        self._is_sending = False
        assert self._writing is not None
        if self._is_finished:
            self._close()
        elif failure is not None:
            self._fail_to_send(self._writing)
        elif not self._is_broken:
            piece = self._backlog.popleft()
            if sent < len(piece):
                self._backlog.appendleft(piece[sent:])
            if not self._backlog:
                self._writing.settimeout(0)
                self.writable = True
                self._listener.on_writable()
