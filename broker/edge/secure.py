"""TLS between a socket's transport and who talks through it: a protocol to the one, a transport to the other.

Event loops have such a thing of their own. Theirs keep a read buffer of 256 KiB for each connection, and hand the
library whatever is to be sent at once, whose buffers stay as large; here all connections share one read buffer, and
`SecureStream` keeps the library's small. An idle connection so costs 18 KiB in place of 46 (uvloop) or 277 (asyncio).

Who talks through it is told of the connection at once, before the handshake: whatever bounds those that have said
nothing yet, in number and in time, holds for handshakes too. What it says before the handshake is done is not sent.

A peer that leaves without a farewell has left; the frames or requests above say themselves whether they are whole.
"""

from __future__ import annotations

import asyncio
import ssl
from typing import TYPE_CHECKING, Any, cast

from broker.events import tally
from broker.wire.secure import NO_TLS, REFUSAL, SLICE_BYTES, SecureStream

if TYPE_CHECKING:
    import socket
    from collections.abc import Iterable

    from broker.edge.accepting import Door
    from broker.edge.certificates import Certificates
    from broker.model.errors import BrokerError

__all__ = ["SecureDoor", "SecureTransport"]

READ_BUFFER_BYTES = 256 << 10

_ciphertext = memoryview(bytearray(READ_BUFFER_BYTES))
_plaintext = memoryview(bytearray(READ_BUFFER_BYTES))
"""What is read is dealt with before the next read, on the one loop of a serving process."""


class SecureTransport(asyncio.BufferedProtocol, asyncio.Transport):
    """The server's end of one TLS connection.

    Args:
        loop: The loop of both sides.
        context: Certificates and versions; the handshake keeps to what it was when the connection came.
        protocol: Who talks through it. Like any transport it may be given another one (`set_protocol`).
    """

    __slots__ = ("_buffered", "_context", "_is_over", "_is_paused", "_left", "_loop", "_protocol", "_stream", "_under")

    def __init__(
        self, loop: asyncio.AbstractEventLoop, context: ssl.SSLContext, protocol: asyncio.BaseProtocol
    ) -> None:
        super().__init__()
        self._loop = loop
        self._context = context
        self._stream = SecureStream(context)
        self._under: asyncio.Transport
        self._left = b""  # ciphertext that came and waits until this side is read again
        self._is_paused = False
        self._is_over = False  # nothing that still comes is looked at
        self.set_protocol(protocol)

    # -- what the socket's transport tells ---------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._under = cast("asyncio.Transport", transport)
        self._protocol.connection_made(self)

    def get_buffer(self, sizehint: int) -> memoryview:
        return _ciphertext

    def buffer_updated(self, nbytes: int) -> None:
        self._take(_ciphertext[:nbytes])

    def eof_received(self) -> bool:
        # Half a connection is none: the farewell of TLS ends both directions.
        if not self._is_over:
            self._end_of_bytes()
        return False

    def pause_writing(self) -> None:
        self._protocol.pause_writing()

    def resume_writing(self) -> None:
        self._protocol.resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        self._is_over = True
        self._left = b""
        self._protocol.connection_lost(exc)

    # -- what a transport does ---------------------------------------------------------------------------------------

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Send bytes; before the handshake is done, and after the end, they are dropped."""
        if not self._stream.opened or self._under.is_closing():
            return
        try:
            self._under.writelines(self._stream.seal(memoryview(data)))
        except ssl.SSLError:
            self._fail()

    def writelines(self, list_of_data: Iterable[bytes | bytearray | memoryview]) -> None:
        """Send the pieces as one: a record of TLS for each would cost more than it carries."""
        self.write(b"".join(list_of_data))

    def close(self) -> None:
        """Send what is buffered and a farewell, then end."""
        self._is_over = True
        if not self._under.is_closing():
            farewell = self._stream.farewell()
            if farewell:
                self._under.write(farewell)
            self._under.close()

    def abort(self) -> None:
        """End now."""
        self._is_over = True
        self._under.abort()

    def is_closing(self) -> bool:
        """Whether it is ending, or has ended."""
        return self._under.is_closing()

    def pause_reading(self) -> None:
        """Hand nothing on; what has come waits."""
        self._is_paused = True
        self._under.pause_reading()

    def resume_reading(self) -> None:
        """Hand what comes on again, from the next turn of the loop."""
        if self._is_paused:
            self._is_paused = False
            self._loop.call_soon(self._go_on)

    def is_reading(self) -> bool:
        """Whether what comes is handed on."""
        return not self._is_paused and not self._is_over

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        """Say from when on this side is told to pause, bytes of ciphertext."""
        self._under.set_write_buffer_limits(high, low)

    def get_write_buffer_limits(self) -> tuple[int, int]:
        """Return what `set_write_buffer_limits` has set."""
        return self._under.get_write_buffer_limits()

    def get_write_buffer_size(self) -> int:
        """Return the bytes of ciphertext that the socket has not taken."""
        return self._under.get_write_buffer_size()

    def can_write_eof(self) -> bool:
        """Return that there is no such thing: the farewell of TLS ends both directions."""
        return False

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        """Have another one talk through it."""
        self._protocol: Any = protocol
        # As loops find it out: not all that are written in C have the class.
        self._buffered = hasattr(protocol, "get_buffer")

    def get_protocol(self) -> asyncio.BaseProtocol:
        """Return who talks through it."""
        protocol: asyncio.BaseProtocol = self._protocol
        return protocol

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        """Answer what is known of TLS (`ssl_object`, `sslcontext`, `peercert`, `cipher`), or of the socket."""
        if name == "ssl_object":
            return self._stream.tls
        if name == "sslcontext":
            return self._context
        if name == "cipher":
            return self._stream.tls.cipher()
        if name == "peercert":
            return self._stream.tls.getpeercert() if self._stream.opened else default
        return self._under.get_extra_info(name, default)

    # -- bytes that come ---------------------------------------------------------------------------------------------

    def _take(self, data: memoryview) -> None:
        """Decrypt what has come and hand it on; what is left over when this side is paused waits."""
        at, more = 0, True
        try:
            while not self._is_over and (more or at < len(data)):
                if self._is_paused:
                    self._left = bytes(data[at:])
                    break
                if self._stream.opened:
                    at, more = self._hand_on(data, at)
                else:
                    more = at < len(data)
                    at = self._feed(data, at)
        except ssl.SSLError:
            self._fail()
        else:
            self._send_own()

    def _feed(self, data: memoryview, at: int) -> int:
        """Give the library a slice; answers where the next one begins."""
        end = min(at + SLICE_BYTES, len(data))
        self._stream.feed(data[at:end])
        if not self._stream.opened:
            self._stream.shake_hands()
        return end

    def _hand_on(self, data: memoryview, at: int) -> tuple[int, bool]:
        """Fill one buffer of this side and hand that on; answers where the rest begins, and whether more is at hand."""
        stream, protocol = self._stream, self._protocol
        room = protocol.get_buffer(-1) if self._buffered else _plaintext
        filled = stream.read_into(room)
        while filled < len(room) and at < len(data) and not stream.ended:
            at = self._feed(data, at)
            filled += stream.read_into(room[filled:])
        if filled and self._buffered:
            protocol.buffer_updated(filled)
        elif filled:
            protocol.data_received(bytes(room[:filled]))
        if stream.ended and not self._is_over:
            self._end_of_bytes()
        return at, filled == len(room)

    def _go_on(self) -> None:
        """This side is read again: first what had come before."""
        if self._is_paused or self._is_over:
            return
        left, self._left = self._left, b""
        self._take(memoryview(left))
        if not self._is_paused and not self._is_over:
            self._under.resume_reading()

    def _end_of_bytes(self) -> None:
        """The peer sends nothing any more."""
        self._is_over = True
        self._protocol.eof_received()
        self.close()

    def _send_own(self) -> None:
        """Send what the library has to say by itself: of the handshake, or new keys."""
        own = self._stream.take()
        if own and not self._under.is_closing():
            self._under.write(own)

    # -- failing -----------------------------------------------------------------------------------------------------

    def _fail(self) -> None:
        """The peer does not speak TLS as it should: tell it in TLS' own words, and end."""
        tally("TLS_FAILED")
        self._is_over = True
        if not self._under.is_closing():
            own = self._stream.take()
            if own or not self._stream.opened:
                self._under.write(own or NO_TLS)
            self._under.close()


class SecureDoor:
    """A door behind which all is said by TLS.

    Args:
        loop: The loop.
        certificates: What connections are met with.
        door: What is spoken there.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, certificates: Certificates, door: Door) -> None:
        self._loop = loop
        self._certificates = certificates
        self._door = door
        self.option = door.option

    def connection(self, sock: socket.socket) -> SecureTransport:
        return SecureTransport(self._loop, self._certificates.context, self._door.connection(sock))

    def farewell(self, failure: BrokerError) -> bytes:
        return REFUSAL
