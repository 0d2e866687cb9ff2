"""One conversation with a server, without what carries it: the handshake, frames in and out, keep-alive.

It is fed what arrives and tells its owner what that means; what it sends goes through `send` of whoever carries it. It
lives as long as its carrier and is never used again.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from math import inf
from typing import TYPE_CHECKING, Protocol, TypeAlias

from broker.model.errors import BrokerError, error
from broker.remote.tls import is_alert, speaks_tls
from broker.wire import control
from broker.wire.kinds import FRAME_BYTES_BEFORE_WELCOME_MAX, FRAME_BYTES_MAX, Kind
from broker_native.messages import FrameReader

if TYPE_CHECKING:
    from collections.abc import Callable

Bytes: TypeAlias = bytes | bytearray | memoryview

SILENT_PINGS_MAX = 3
"""A peer that is silent for so many ping intervals is closed."""


class Owner(Protocol):
    """Who is told what a conversation hears."""

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

    def on_pong(self, token: int) -> None:
        """A ping was answered."""

    def on_going_away(self, notice: control.GoingAway) -> None:
        """The server will close the connection."""

    def on_jobs(self, body: bytes) -> None:
        """Jobs of a consumer have come."""

    def on_acked(self, body: bytes) -> None:
        """What was said of jobs is settled."""


class Conversation(ABC):
    """Frames in, calls out.

    Args:
        owner: Who is told.
        now_s: The time, by whatever clock `keep_alive` goes by.
    """

    def __init__(self, owner: Owner, now_s: float) -> None:
        self._owner = owner
        self._reader = FrameReader(error, FRAME_BYTES_BEFORE_WELCOME_MAX)
        self._frame_bytes_max = 0
        self._failure: BrokerError | None = None
        self._ended = False
        self._journal_expected = b""
        self.journal_changed = False
        self.welcome: control.Welcome | None = None
        self.writable = True
        self._heard_s = now_s
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
            Kind.JOBS: owner.on_jobs,
            Kind.ACKED: owner.on_acked,
        }

    # .. what its carrier does ..

    @abstractmethod
    def send(self, frame: Bytes) -> None:
        """Send whole frames, or nothing when the conversation has ended. They must not change afterwards."""

    @abstractmethod
    def abort(self, failure: BrokerError | None = None) -> None:
        """End now; `failure` is what the owner is told, unless there was one before."""

    def begin(self, hello: bytes, ask_ahead: Callable[[], bool] | None = None, journal: bytes = b"") -> None:
        """Say HELLO.

        Args:
            hello: The frame that begins the conversation.
            ask_ahead: Called when HELLO is sent: what it sends is answered right behind WELCOME. Answers whether it has
                sent anything.
            journal: What was asked ahead makes sense to a server with this journal alone. Another one's answers are not
                looked at: the connection ends, and `journal_changed` says why.
        """
        self.send(hello)
        self._reader.journal = journal
        if ask_ahead is not None and ask_ahead():
            # Answers may come with WELCOME, in one read, which is taken apart before WELCOME is looked at.
            self._reader.frame_bytes_max = FRAME_BYTES_MAX
            self._journal_expected = journal

    def feed(self, data: memoryview, now_s: float) -> None:
        """Parse what has arrived, split anywhere, and tell the owner."""
        self._heard_s = now_s
        if self._ended:
            return
        if self.welcome is None and is_alert(data):
            self.abort(speaks_tls())
            return
        for item in self._reader.feed(data):
            if len(item) == 2:
                item[0].on_batch(item[1])
            elif not self._handle(item[0], item[2]):
                return
        if self._reader.failure is not None:
            self._break(self._reader.failure)

    def keep_alive(self, now_s: float) -> float:
        """Ping a quiet server, leave a silent one.

        Returns:
            After how many seconds to look again; infinity when that is not needed.
        """
        ping_s = self.welcome.ping_s if self.welcome is not None else 0.0
        if ping_s <= 0 or self._ended:
            return inf
        quiet_s = now_s - self._heard_s
        limit_s = SILENT_PINGS_MAX * ping_s
        if quiet_s >= limit_s:
            self.abort(error("PING_TIMEOUT", f"the server: silent for {quiet_s:.1f} s, limit {limit_s:g} s"))
            return inf
        if quiet_s >= ping_s:
            self.send(control.encode_ping(int(now_s * 1e6)))
            return ping_s
        return ping_s - quiet_s

    # .. what the owner does ..

    @property
    def frame_bytes_max(self) -> int:
        """Largest body that the server takes."""
        return self._frame_bytes_max

    @property
    def journal(self) -> bytes:
        """Identity of the server's journal; while it is asked ahead, of the one that is expected."""
        return self._reader.journal

    def add_route(self, number: int, target: object, literal: str | None) -> None:
        """Hand deliveries of a subscription's number to `on_batch` of a target."""
        self._reader.add_route(number, target, literal)

    def mute_route(self, number: int) -> None:
        """Drop deliveries of a number that are still on their way."""
        self._reader.add_route(number, None)

    # .. frames ..

    def _handle(self, kind: int, body: bytes) -> bool:
        """Handle one frame that is no delivery; answers whether the connection goes on."""
        handler = self._handlers.get(kind)
        if self.journal_changed:
            return False
        try:
            if handler is None or (self.welcome is None and kind not in (Kind.WELCOME, Kind.ERROR)):
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
        if self.welcome is not None:
            raise error("MALFORMED_FRAME", "WELCOME: got a second one")
        if self._journal_expected and welcome.journal != self._journal_expected:
            self.journal_changed = True
            self.abort(error("CONNECTION_LOST", f"connection: another journal answers, {welcome.journal.hex()}"))
            return
        self._frame_bytes_max = welcome.limits.frame_bytes_max
        # What the server sends may have been stored under a higher limit than today's.
        self._reader.frame_bytes_max = FRAME_BYTES_MAX
        self._reader.journal = welcome.journal
        self.welcome = welcome

    def _on_error(self, body: bytes) -> None:
        refusal = control.decode_error(body)
        if refusal.ends_connection:
            # The server closes the connection; until then this is why.
            self._failure = refusal.failure
        else:
            self._owner.on_refusal(refusal)

    def _on_ping(self, body: bytes) -> None:
        self.send(control.encode_pong(control.decode_token(body)))

    def _on_pong(self, body: bytes) -> None:
        self._owner.on_pong(control.decode_token(body))

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
