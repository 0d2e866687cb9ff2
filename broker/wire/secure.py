"""One end of a TLS connection as bytes that come and bytes that go: it knows no socket, no loop and no thread.

What a TLS library keeps for a connection is what an idle one costs, and its buffers never shrink. Ciphertext is
therefore given to it, and taken from it, in slices: a connection that has once moved a megabyte is as small afterwards
as one that never did.

An end without a farewell is an end as any other: frames say themselves how long they are, so nothing that was cut off
is taken for whole.
"""

from __future__ import annotations

import ssl
from contextlib import suppress
from itertools import pairwise
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["NO_TLS", "REFUSAL", "SLICE_BYTES", "SecureStream"]

SLICE_BYTES = 4 << 10
"""What the library is given at once in either direction. A buffer of its own grows to four thirds of that and stays.
A record of the peer that is longer is put together by the library, which gives that memory back."""

REFUSAL = b"\x15\x03\x03\x00\x02\x02\x50"
"""A record that ends a connection before its first word: alert, TLS 1.2, 2 bytes, fatal, internal_error (RFC 8446 §6).
Who is refused for want of room is told no more: a word of ours would cost a handshake."""

NO_TLS = b"\x15\x03\x03\x00\x02\x02\x0a"
"""The same, with unexpected_message: what a peer that speaks no TLS is told. The library ends such a one in silence."""


class SecureStream:
    """One end of one connection. One call at a time.

    Args:
        context: Certificates and versions.
        hostname: A client's: what the server's certificate must name. None: this is the server's end.

    Attributes:
        opened: The handshake is done.
        ended: The peer has said that nothing follows.
    """

    __slots__ = ("_incoming", "_object", "_outgoing", "ended", "opened")

    def __init__(self, context: ssl.SSLContext, hostname: str | None = None) -> None:
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        self._object = context.wrap_bio(
            self._incoming, self._outgoing, server_side=hostname is None, server_hostname=hostname
        )
        self.opened = False
        self.ended = False

    @property
    def tls(self) -> ssl.SSLObject:
        """What says whose certificate the peer has, which version and which cipher."""
        return self._object

    def feed(self, data: memoryview | bytes) -> None:
        """Take ciphertext.

        Args:
            data: At most SLICE_BYTES, copied.
        """
        self._incoming.write(data)

    def shake_hands(self) -> bool:
        """Go on with the handshake as far as that goes; answers whether it is done. Then look at `take`.

        Raises:
            ssl.SSLError: It has failed. `take` has what the peer is to be told.
        """
        try:
            self._object.do_handshake()
        except ssl.SSLWantReadError:
            return False
        self.opened = True
        return True

    def read_into(self, buffer: memoryview) -> int:
        """Put what has come into a buffer; answers how many bytes. Fewer than it takes: more must be fed first.

        Raises:
            ssl.SSLError: The peer has sent what is no TLS, or an alert.
        """
        filled, size = 0, len(buffer)
        tls = self._object
        try:
            # An attempt in vain costs an exception.
            while filled < size and (self._incoming.pending or tls.pending()):
                count = tls.read(size - filled, buffer[filled:])
                if not count:
                    self.ended = True
                    break
                filled += count  # type: ignore[operator]  # with a buffer it answers a count
        except ssl.SSLWantReadError:
            pass
        except ssl.SSLZeroReturnError:
            self.ended = True
        return filled

    def unseal(self, data: memoryview, room: memoryview) -> Iterator[memoryview]:
        """Take ciphertext and yield what has come, in parts that are good until the next one.

        Args:
            data: Of any size.
            room: Where the parts are put.

        Raises:
            ssl.SSLError: The peer has sent what is no TLS, or an alert.
        """
        filled = self.read_into(room)
        for start in range(0, len(data), SLICE_BYTES):
            self.feed(data[start : start + SLICE_BYTES])
            filled += self.read_into(room[filled:])
            while filled == len(room):
                yield room
                filled = self.read_into(room)
        if filled:
            yield room[:filled]

    def seal(self, data: bytes | bytearray | memoryview) -> list[bytes]:
        """Return the ciphertext of bytes, after what is to be sent before it; the handshake is done.

        Raises:
            ssl.SSLError: The connection has failed, or is over.
        """
        view = memoryview(data)
        tls, outgoing = self._object, self._outgoing
        pieces = []
        for start, end in pairwise((*range(0, len(view), SLICE_BYTES), len(view))):
            tls.write(view[start:end])
            pieces.append(outgoing.read())
        return pieces

    def take(self) -> bytes:
        """Return what is to be sent; empty for nothing."""
        return self._outgoing.read() if self._outgoing.pending else b""

    def farewell(self) -> bytes:
        """Return what says that nothing follows, behind what is to be sent."""
        if self.opened:
            # It waits for the peer's own, for which nobody waits; or the connection has failed before.
            with suppress(ssl.SSLError, ValueError):
                self._object.unwrap()
        return self.take()
