"""One conversation with a server: the handshake, frames in and out, keep-alive.

It lives as long as its transport and is never used again. Whoever owns it is told of everything by `Owner`'s calls, on
the loop; it decides nothing about what a frame means.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Protocol

from broker.model.errors import BrokerError, error
from broker.wire import control
from broker.wire.kinds import FRAME_BYTES_BEFORE_WELCOME_MAX, FRAME_BYTES_MAX, Kind
from broker_native.messages import FrameReader

if TYPE_CHECKING:
    from collections.abc import Callable

    from broker.client.subscription import ClientSubscription
    from broker.client.transport import Bytes, Connector, Transport

SILENT_PINGS_MAX = 3
"""A peer that is silent for so many ping intervals is closed."""


class Owner(Protocol):
    """Who is told what a connection hears."""

    def on_published(self, body: bytes) -> None:
        """Publishes were answered."""

    def on_refusal(self, refusal: control.Refusal) -> None:
        """An ERROR that concerns a publish, a channel, a subscription or a request."""

    def on_subscribed(self, answer: control.Subscribed) -> None:
        """A subscription was accepted."""

    def on_event(self, event: control.Event) -> None:
        """Something happened to a subscription."""

    def on_reply(self, request: int, fields: dict[str, object]) -> None:
        """A request was answered."""

    def on_going_away(self, notice: control.GoingAway) -> None:
        """The server will close the connection."""

    def on_writable(self) -> None:
        """The connection takes bytes again."""

    def on_closed(self, failure: BrokerError) -> None:
        """The connection has ended after its handshake; nothing follows."""


class Connection:
    """One conversation. A `Receiver` of its transport.

    Args:
        loop: The running loop.
        owner: Who is told.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, owner: Owner) -> None:
        self._loop = loop
        self._owner = owner
        self._reader = FrameReader(error, FRAME_BYTES_BEFORE_WELCOME_MAX)
        self._frame_bytes_max = 0
        self._transport: Transport | None = None
        self._welcome: asyncio.Future[control.Welcome] = loop.create_future()
        self._failure: BrokerError | None = None
        self._reason = error("CONNECTION_LOST", "connection: not open")
        self._opened = False
        self._ended = False
        self._journal_expected = b""
        self.journal_changed = False
        self._ping_s = 0.0
        self._heard_s = loop.time()
        self._timer: asyncio.TimerHandle | None = None
        self.writable = True
        self._handlers: dict[int, Callable[[bytes], None]] = {
            Kind.WELCOME: self._on_welcome,
            Kind.ERROR: self._on_error,
            Kind.PING: self._on_ping,
            Kind.PONG: self._on_pong,
            Kind.GOING_AWAY: self._on_going_away,
            Kind.SUBSCRIBED: self._on_subscribed,
            Kind.UNSUBSCRIBED: self._on_unsubscribed,
            Kind.EVENT: self._on_event,
            Kind.REPLY: self._on_reply,
            Kind.PUBLISHED: owner.on_published,
        }

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
            hello: The frame that begins the conversation.
            timeout_s: How long it may take until WELCOME is here.
            ask_ahead: Called when HELLO is sent: what it sends is answered right behind WELCOME. Answers whether it has
                sent anything.
            journal: What was asked ahead makes sense to a server with this journal alone. Another one's answers are not
                looked at: the connection ends, and `journal_changed` says why.

        Raises:
            BrokerError: The server refuses us; CONNECTION_LOST or TIMEOUT.
            OSError: There is no server to be had.
        """
        try:
            async with asyncio.timeout(timeout_s):
                self._transport = await connector(self)
                self._transport.writelines([hello])
                self._reader.journal = journal
                if ask_ahead is not None and ask_ahead():
                    # Answers may come with WELCOME, in one read, which is taken apart before WELCOME is looked at.
                    self._reader.frame_bytes_max = FRAME_BYTES_MAX
                    self._journal_expected = journal
                welcome = await self._welcome
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
        self._ping_s = welcome.ping_s
        self._schedule_ping()
        return welcome

    # .. what the owner does ..

    @property
    def frame_bytes_max(self) -> int:
        """Largest body that the server takes."""
        return self._frame_bytes_max

    @property
    def journal(self) -> bytes:
        """Identity of the server's journal; while it is asked ahead, of the one that is expected."""
        return self._reader.journal

    def descriptors(self) -> list[int]:
        """Return the open socket's descriptor; nothing when there is none."""
        sock = None if self._transport is None else self._transport.get_extra_info("socket")
        return [] if sock is None or sock.fileno() < 0 else [sock.fileno()]

    def send(self, frame: Bytes) -> None:
        """Send whole frames now."""
        if self._transport is not None and not self._ended:
            self._transport.writelines([frame])

    def add_route(self, number: int, subscription: ClientSubscription, literal: str | None) -> None:
        """Hand deliveries of a subscription's number to it."""
        self._reader.add_route(number, subscription, literal)

    def mute_route(self, number: int) -> None:
        """Drop deliveries of a number that are still on their way."""
        self._reader.add_route(number, None)

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
        self._heard_s = self._loop.time()
        if self._ended:
            return
        for item in self._reader.feed(data):
            if len(item) == 2:
                item[0].on_batch(item[1])
            elif not self._handle(item[0], item[2]):
                return
        if self._reader.failure is not None:
            self._break(self._reader.failure)

    def on_writable(self, writable: bool) -> None:
        """The transport is full, or takes more again."""
        self.writable = writable
        if writable and not self._ended:
            self._owner.on_writable()

    def on_lost(self, failure: BaseException | None) -> None:
        """The transport has ended."""
        if self._ended:
            return
        self._ended = True
        self._stop_ping()
        self._reason = self._failure or error("CONNECTION_LOST", f"connection: {failure or 'closed by the server'}")
        if self._opened:
            self._owner.on_closed(self._reason)
        elif not self._welcome.done():
            self._welcome.set_exception(self._reason)
            # Whoever connects may have failed already, at its socket: then nobody waits, and nothing is amiss.
            self._welcome.exception()

    # .. frames ..

    def _handle(self, kind: int, body: bytes) -> bool:
        """Handle one frame that is no delivery; answers whether the connection goes on."""
        handler = self._handlers.get(kind)
        if self.journal_changed:
            return False
        try:
            if handler is None or (not self._welcome.done() and kind not in (Kind.WELCOME, Kind.ERROR)):
                raise error("MALFORMED_FRAME", f"frame of kind {kind}: not expected from a server now")
            handler(body)
        except BrokerError as failure:
            self._break(failure)
            return False
        return not self.journal_changed

    def _break(self, failure: BrokerError) -> None:
        """The server's bytes make no sense. To it we are gone; to the owner it is as if the connection had broken."""
        self.abort(error("CONNECTION_LOST", f"connection: the server broke the protocol: {failure.detail}"))

    def _on_welcome(self, body: bytes) -> None:
        welcome = control.decode_welcome(body)
        if self._welcome.done():
            raise error("MALFORMED_FRAME", "WELCOME: got a second one")
        if self._journal_expected and welcome.journal != self._journal_expected:
            self.journal_changed = True
            self.abort(error("CONNECTION_LOST", f"connection: another journal answers, {welcome.journal.hex()}"))
            return
        self._frame_bytes_max = welcome.limits.frame_bytes_max
        # What the server sends may have been stored under a higher limit than today's.
        self._reader.frame_bytes_max = FRAME_BYTES_MAX
        self._reader.journal = welcome.journal
        self._welcome.set_result(welcome)

    def _on_error(self, body: bytes) -> None:
        refusal = control.decode_error(body)
        concerns = (refusal.subscription, refusal.request, refusal.channel, refusal.number)
        if any(one is not None for one in concerns):
            self._owner.on_refusal(refusal)
        else:
            # The server closes the connection; until then this is why.
            self._failure = refusal.failure

    def _on_ping(self, body: bytes) -> None:
        self.send(control.encode_pong(control.decode_token(body)))

    def _on_pong(self, body: bytes) -> None:
        control.decode_token(body)

    def _on_going_away(self, body: bytes) -> None:
        self._owner.on_going_away(control.decode_going_away(body))

    def _on_subscribed(self, body: bytes) -> None:
        self._owner.on_subscribed(control.decode_subscribed(body))

    def _on_unsubscribed(self, body: bytes) -> None:
        self._reader.drop_route(control.decode_unsubscribe(body))

    def _on_event(self, body: bytes) -> None:
        self._owner.on_event(control.decode_event(body))

    def _on_reply(self, body: bytes) -> None:
        self._owner.on_reply(*control.decode_reply(body))

    # .. keep-alive ..

    def _schedule_ping(self) -> None:
        if self._ping_s > 0 and not self._ended:
            self._timer = self._loop.call_later(self._ping_s, self._check_alive)

    def _stop_ping(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _check_alive(self) -> None:
        """Ping a quiet server, leave a silent one."""
        quiet_s = self._loop.time() - self._heard_s
        if quiet_s >= SILENT_PINGS_MAX * self._ping_s:
            limit_s = SILENT_PINGS_MAX * self._ping_s
            self.abort(error("PING_TIMEOUT", f"the server: silent for {quiet_s:.1f} s, limit {limit_s:g} s"))
            return
        if quiet_s >= self._ping_s:
            self.send(control.encode_ping(int(self._loop.time() * 1e6)))
            self._schedule_ping()
        else:
            self._timer = self._loop.call_later(self._ping_s - quiet_s, self._check_alive)
