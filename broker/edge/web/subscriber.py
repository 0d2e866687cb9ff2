"""A subscription on behalf of an HTTP request: a session of the native protocol that reads, and never publishes.

The session is the one that every connection has, so the gate, credit, demotion and the budgets hold for it as for any
other. What it would send is rendered (`rendering.py`) and kept or written by those who are made of this: `Poll` keeps
the first deliveries, `EventStream` writes them to a socket for as long as that lasts.

Runs on the node's loop only.
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from broker.edge.admission import leave_ms
from broker.edge.session import Session
from broker.edge.web.rendering import SUBSCRIPTION, Reader, Rendering
from broker.model.errors import BrokerError, error
from broker.wire import control

if TYPE_CHECKING:
    from collections.abc import Iterable

    from broker.access.gate import Identity
    from broker.edge.web.pulse import Pulse
    from broker.node.node import Node

__all__ = ["Poll", "Subscriber", "Wanted"]

CREDIT_BYTES: Final = 128 * 1024
"""What may be on its way to a stream: what is rendered in one go while it catches up."""
BEGIN_S: Final = 10.0
"""How long it may take until a subscription is accepted or refused: channels may have to be loaded."""
PIECES_BYTES_MAX: Final = 256 * 1024
"""What gathers between two beats before it is written at once."""


class Wanted(NamedTuple):
    """What a request subscribes to.

    Attributes:
        filters: Channels and patterns.
        start: Where to begin.
        literal: The one channel, if it is one.
        by_bus: It stands by places of the bus.
        asked: The place that it goes on from, as the client gave it; None for another start.
    """

    filters: tuple[str, ...]
    start: control.Start
    literal: str | None
    by_bus: bool
    asked: str | None


class ReadingSession(Session):
    """A session whose peer is a subscriber.

    Args:
        node: The broker.
        identity: Who asks.
        subscriber: What carries its bytes.
    """

    __slots__ = ("_subscriber",)

    def __init__(self, node: Node, identity: Identity, subscriber: Subscriber) -> None:
        super().__init__(node, identity)
        self._subscriber = subscriber

    def count_unsent(self, text: bytes) -> None:
        """Count what a transport was handed that has asked for a pause."""
        if self._sender is not None:
            self._sender.note([text])

    def leave(self, seconds: float) -> None:
        """The broker drains: end now. A client of HTTP has nothing under way, and comes back behind its place."""
        after_ms = leave_ms(len(self.node.connections))
        self.end(error("GOING_AWAY", "the broker is stopping", retry_after_ms=after_ms))

    def check_alive(self, now_us: int) -> None:
        """Nobody is at the other end who would answer a ping: whoever carries the bytes sees to that."""
        self.heard_us = now_us
        if not self.closed:
            self._subscriber.check_alive(now_us)
        else:
            super().check_alive(now_us)


class Subscriber(ABC):
    """The other end of a session, which takes what it sends.

    Args:
        node: The broker.
        identity: Who asks, for the gate.
        wanted: What it reads.
        pulse: When it renders.
    """

    def __init__(self, node: Node, identity: Identity, wanted: Wanted, pulse: Pulse) -> None:
        self.node = node
        self._pulse = pulse
        self._pieces: list[Any] = []
        self._pieces_bytes = 0
        self._waits = False
        self._owed = 0
        self._closed = False
        self._reader = Reader(wanted.literal, wanted.by_bus, wanted.asked)
        self._reader.set_journal(node.core.journal)
        self._kind = (wanted.literal, wanted.by_bus)
        self._wanted = wanted
        self.began: asyncio.Future[None] = node.loop.create_future()
        self.session = ReadingSession(node, identity, self)

    async def begin(self) -> None:
        """Subscribe; what is delivered from then on is taken in.

        Raises:
            BrokerError: It is refused.
        """
        session, wanted = self.session, self._wanted
        session.start(self, shares=True)
        subscribe = control.Subscribe(SUBSCRIPTION, wanted.filters, CREDIT_BYTES, wanted.start)
        session.feed(control.encode_hello("http") + control.encode_subscribe(subscribe))
        try:
            async with asyncio.timeout(BEGIN_S):
                await self.began
        except TimeoutError:
            self.leave()
            raise error("TIMEOUT", f"subscribing: no answer within {BEGIN_S:g} s") from None
        except BaseException:
            self.leave()
            raise

    def leave(self) -> None:
        """End; calling it again does nothing."""
        if not self._closed:
            self._closed = True
            self._pieces.clear()
            self.session.stopped()
            self.session.transport = None
            if not self.began.done():
                self.began.cancel()

    # -- what a transport does: the session's calls --------------------------------------------------------------------

    def writelines(self, pieces: Iterable[Any]) -> None:
        """Take whole frames, in any number of pieces."""
        for piece in pieces:
            self._pieces.append(piece)
            self._pieces_bytes += len(piece)
        if not self._waits:
            self._waits = True
            self._pulse.add(self)
        elif self._pieces_bytes > PIECES_BYTES_MAX:
            self.session.outbox.pause()  # until the beat that is due has written it

    def write(self, data: bytes) -> None:
        """Take one piece."""
        self.writelines((data,))

    def pause_reading(self) -> None:
        """Hand the session nothing: it is handed a CREDIT now and then, and keeps that itself."""
        return

    def resume_reading(self) -> None:
        """Hand it what there is: nothing was kept from it."""
        return

    def close(self) -> None:
        """The session has said why it ends."""
        self.write_out({})
        self.leave()

    def abort(self) -> None:
        """The session ends without a word."""
        self.leave()

    # -- the pulse's call ----------------------------------------------------------------------------------------------

    def write_out(self, rendered: dict[object, Rendering]) -> None:
        """Render what has gathered, and take it."""
        self._waits = False
        if self._closed or not self._pieces:
            return
        pieces, self._pieces = self._pieces, []
        self._pieces_bytes = 0
        frames = pieces[0] if len(pieces) == 1 and type(pieces[0]) is bytes else b"".join(pieces)
        try:
            self._take(self._rendering(frames, rendered))
        except BrokerError as failure:
            self._take(Rendering(b"", (), 0, None, False, failure))

    def _rendering(self, frames: bytes, rendered: dict[object, Rendering]) -> Rendering:
        if not self.began.done():
            # What it was asked to go on from is in the text of SUBSCRIBED: nobody else's is the same.
            return self._reader.render(frames)
        key = (self._kind, frames)
        made = rendered.get(key)
        if made is None:
            made = rendered[key] = self._reader.render(frames)
        elif not self._reader.knows_names:
            self._reader.learn(frames)
        return made

    def _take(self, made: Rendering) -> None:
        if made.began and not self.began.done():
            self.began.set_result(None)
        if made.failure is not None and not self.began.done():
            self.began.set_exception(made.failure)
            return
        self.on_rendered(made)
        if self.session.outbox.paused and self.takes:
            self.session.writing_resumed()
        self._owed += made.credit
        if self._owed >= CREDIT_BYTES // 4 and self.takes:
            self.grant()
        if made.failure is not None:
            self.on_failed(made.failure)

    def grant(self) -> None:
        """Let the session send as much again as was taken."""
        owed, self._owed = self._owed, 0
        if owed and not self._closed:
            self.session.feed(control.encode_credit(SUBSCRIPTION, owed))

    # -- what those who are made of this do ----------------------------------------------------------------------------

    @property
    @abstractmethod
    def takes(self) -> bool:
        """Whether more is wanted now."""

    @abstractmethod
    def on_rendered(self, made: Rendering) -> None:
        """Take events and deliveries."""

    @abstractmethod
    def on_failed(self, failure: BrokerError) -> None:
        """The subscription has ended; nothing follows."""

    @abstractmethod
    def check_alive(self, now_us: int) -> None:
        """Called now and then, with the steady clock in microseconds."""


class Poll(Subscriber):
    """Waits for the first deliveries: long poll."""

    def __init__(self, node: Node, identity: Identity, wanted: Wanted, pulse: Pulse) -> None:
        super().__init__(node, identity, wanted, pulse)
        self.deliveries: tuple[bytes, ...] = ()
        self.place: str | None = None
        self._arrived: asyncio.Future[None] = node.loop.create_future()

    async def wait(self, seconds: float) -> None:
        """Wait for deliveries, as long as it is worth it.

        Raises:
            BrokerError: The subscription has ended instead.
        """
        await asyncio.wait((self._arrived,), timeout=seconds)
        if self._arrived.done():
            self._arrived.result()

    @property
    def takes(self) -> bool:
        return not self.deliveries

    def on_rendered(self, made: Rendering) -> None:
        if not self.takes:
            return
        self.deliveries = made.deliveries
        # What is not answered now is not behind the place that the next request begins with.
        self.place = made.place or self.place
        if made.deliveries and not self._arrived.done():
            self._arrived.set_result(None)

    def on_failed(self, failure: BrokerError) -> None:
        if not self._arrived.done():
            self._arrived.set_exception(failure)

    def check_alive(self, now_us: int) -> None:
        """A poll ends by itself."""
