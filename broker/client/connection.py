"""One conversation with a server over an asyncio transport, and the timer that keeps it alive.

What frames mean is the matter of `broker.remote.conversation`; here is when bytes come, go and end. Whoever
owns it is told of everything on the loop.
"""

from __future__ import annotations

import asyncio
import ssl
from math import isinf
from typing import TYPE_CHECKING, Protocol

from broker.model.errors import BrokerError, error
from broker.remote import conversation
from broker.remote.conversation import Conversation
from broker.remote.tls import tls_failed

if TYPE_CHECKING:
    from collections.abc import Callable

    from broker.client.transport import Connector, Transport
    from broker.remote.conversation import Bytes
    from broker.wire import control


class Owner(conversation.Owner, Protocol):
    """Who is told what a connection hears."""

    def on_writable(self) -> None:
        """The connection takes bytes again."""

    def on_closed(self, failure: BrokerError) -> None:
        """The connection has ended after its handshake; nothing follows."""


class Connection(Conversation):
    """One conversation. A `Receiver` of its transport.

    Args:
        loop: The running loop.
        owner: Who is told.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, owner: Owner) -> None:
        super().__init__(owner, loop.time())
        self._loop = loop
        self._listener = owner
        self._transport: Transport | None = None
        self._welcomed: asyncio.Future[control.Welcome] = loop.create_future()
        self._reason = error("CONNECTION_LOST", "connection: not open")
        self._opened = False
        self._timer: asyncio.TimerHandle | None = None

    async def open(
        self,
        connector: Connector,
        hello: bytes,
        timeout_s: float,
        ask_ahead: Callable[[], bool] | None = None,
        journal: bytes = b"",
    ) -> control.Welcome:
        """Connect and shake hands.

        Args:
            connector: Opens the transport.
            hello, ask_ahead, journal: As for `begin`.
            timeout_s: How long it may take until WELCOME is here.

        Raises:
            BrokerError: The server refuses us; CONNECTION_LOST or TIMEOUT.
            OSError: There is no server to be had.
        """
        try:
            async with asyncio.timeout(timeout_s):
                self._transport = await connector(self)
                self.begin(hello, ask_ahead, journal)
                welcome = await self._welcomed
        except TimeoutError:
            self.abort()
            raise error("TIMEOUT", f"connecting: no answer within {timeout_s:g} s") from None
        except BaseException:
            self.abort()
            raise
        if self._ended:
            # It ended in the very turn in which the welcome came.
            raise self._reason
        self._opened = True
        self._check_alive()
        return welcome

    # .. what the owner does ..

    def descriptors(self) -> list[int]:
        """Return the open socket's descriptor; nothing when there is none."""
        sock = None if self._transport is None else self._transport.get_extra_info("socket")
        return [] if sock is None or sock.fileno() < 0 else [sock.fileno()]

    def send(self, frame: Bytes) -> None:
        """Send whole frames now."""
        if self._transport is not None and not self._ended:
            self._transport.writelines([frame])

    def close(self, failure: BrokerError | None = None) -> None:
        """Send what is buffered and end; `failure` is what the owner is told, once the transport has ended."""
        if self._failure is None:
            self._failure = failure
        if self._transport is not None:
            self._transport.close()

    def abort(self, failure: BrokerError | None = None) -> None:
        """The same, without sending what is buffered."""
        if self._failure is None:
            self._failure = failure
        self._stop_ping()
        if self._transport is not None:
            self._transport.abort()

    # .. what the transport tells ..

    def on_bytes(self, data: memoryview) -> None:
        """Parse what arrived and tell the owner."""
        self.feed(data, self._loop.time())

    def on_writable(self, writable: bool) -> None:
        """The transport is full, or takes more again."""
        self.writable = writable
        if writable and not self._ended:
            self._listener.on_writable()

    def on_lost(self, failure: BaseException | None) -> None:
        """The transport has ended."""
        if self._ended:
            return
        self._ended = True
        self._stop_ping()
        if self._failure is None and isinstance(failure, ssl.SSLError):
            self._failure = tls_failed(failure)
        self._reason = self._failure or error("CONNECTION_LOST", f"connection: {failure or 'closed by the server'}")
        if self._opened:
            self._listener.on_closed(self._reason)
        elif not self._welcomed.done():
            self._welcomed.set_exception(self._reason)
            # Whoever connects may have failed already, at its socket: then nobody waits, and nothing is amiss.
            self._welcomed.exception()

    def _on_welcome(self, body: bytes) -> None:
        super()._on_welcome(body)
        if self.welcome is not None and not self._welcomed.done():
            self._welcomed.set_result(self.welcome)

    # .. keep-alive ..

    def _stop_ping(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _check_alive(self) -> None:
        """Ping a quiet server, leave a silent one, and come back when it may be time again."""
        delay_s = self.keep_alive(self._loop.time())
        self._timer = None if isinf(delay_s) else self._loop.call_later(delay_s, self._check_alive)
