"""A stream of server-sent events: a subscriber that has taken a request's socket over.

A stream lasts for hours, so it is no running request: no task waits for it and no part of the HTTP machinery is kept.
Its bytes go to the transport as they were rendered for all; the response has no length and ends with its connection, so
nothing stands between one stream's bytes and another's. When the transport has enough, its session is paused, and
what its reader misses meanwhile it reads from the log, as any slow reader does.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final, cast

from broker.edge.web.subscriber import Subscriber
from broker.events import tally

if TYPE_CHECKING:
    from broker.access.gate import Identity
    from broker.edge.web.http import Http
    from broker.edge.web.pulse import Pulse
    from broker.edge.web.rendering import Rendering
    from broker.edge.web.subscriber import Wanted
    from broker.model.errors import BrokerError
    from broker.node.node import Node

__all__ = ["EventStream"]

HEAD: Final = (
    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ncache-control: no-store\r\nx-accel-buffering: no\r\n"
    b"x-content-type-options: nosniff\r\nconnection: close\r\n"
)
ALIVE: Final = b": alive\n\n"
"""A comment: what keeps proxies from taking a quiet stream for a dead one."""
WRITE_BUFFER_BYTES_HIGH: Final = 64 * 1024
"""What the transport takes before it asks for a pause."""
UNASKED_BYTES_MAX: Final = 64 * 1024
"""What a peer may send that has nothing to say."""


class EventStream(Subscriber, asyncio.Protocol):
    """One stream; `take_over` begins to write it."""

    def __init__(self, node: Node, identity: Identity, wanted: Wanted, pulse: Pulse) -> None:
        super().__init__(node, identity, wanted, pulse)
        self._socket: asyncio.Transport | None = None
        self._first: list[bytes] = []
        self._writable = True
        self._unasked_bytes = 0
        self._wrote_us = self._took_us = node.clock.steady_us()

    def take_over(self, connection: Http, headers: list[tuple[bytes, bytes]]) -> None:
        """Begin to answer: write the head and what has come meanwhile, on the request's socket.

        Args:
            connection: The request's.
            headers: More of the head than every stream has.
        """
        if connection.transport.is_closing():
            self.leave()
            return
        paused = connection.flow.write_paused
        self._socket = connection.hand_over(self)
        self._socket.set_write_buffer_limits(high=WRITE_BUFFER_BYTES_HIGH)
        head = HEAD + b"".join(b"%b: %b\r\n" % each for each in headers)
        self._writable = not paused
        self._socket.write(b"".join((head, b"\r\n", *self._first)))
        self._first.clear()

    # -- what the subscription has -------------------------------------------------------------------------------------

    @property
    def takes(self) -> bool:
        return self._writable and not self._closed

    def on_rendered(self, made: Rendering) -> None:
        if self._socket is None:
            self._first.append(made.text)
            return
        self._wrote_us = self.node.clock.steady_us()
        self._socket.write(made.text)
        if not self._writable:
            self.session.count_unsent(made.text)

    def on_failed(self, failure: BrokerError) -> None:
        self.close()

    def write_out(self, rendered: dict[object, Rendering]) -> None:
        if self._writable or self.session.closed:
            super().write_out(rendered)
        else:
            self._waits = False  # until the transport takes more

    def leave(self) -> None:
        super().leave()
        if self._socket is not None and not self._socket.is_closing():
            self._socket.close()

    def abort(self) -> None:
        if self._socket is not None:
            self._socket.abort()
        self.leave()

    def check_alive(self, now_us: int) -> None:
        limits = self.node.limits
        if self._writable:
            self._took_us = now_us
            if self._socket is not None and now_us - self._wrote_us >= limits.ping_interval_s * 1e6:
                self._wrote_us = now_us
                self._socket.write(ALIVE)
        elif now_us - self._took_us >= limits.ping_timeout_s * 1e6:
            tally("PING_TIMEOUT")
            self.abort()

    # -- the socket's calls --------------------------------------------------------------------------------------------

    def get_write_buffer_size(self) -> int:
        """Return what the transport has not sent, bytes."""
        return 0 if self._socket is None else self._socket.get_write_buffer_size()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """A transport that is handed over was made before."""
        self._socket = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        """The peer has nothing to say; one that goes on speaking is let go."""
        self._unasked_bytes += len(data)
        if self._unasked_bytes > UNASKED_BYTES_MAX:
            self.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        self._socket = None
        self.leave()

    def pause_writing(self) -> None:
        self._writable = False
        self._took_us = self.node.clock.steady_us()
        self.session.outbox.pause()

    def resume_writing(self) -> None:
        self._writable = True
        if self._closed:
            return
        self.session.writing_resumed()
        if self._pieces and not self._waits:
            self._waits = True
            self._pulse.add(self)
        self.grant()
