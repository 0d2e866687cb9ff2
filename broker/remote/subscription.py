"""A reader's side of a subscription: what is received and not yet read, its credit, and how it begins again.

States: `waiting` for a connection, or for the application to read what is here already; `asked` of the server;
`live`; `closed`. Each SUBSCRIBE has a number of its own, so what is still on its way for an older one is told apart.

How somebody waits is left to the classes that are made of it: by a loop, or by a thread.
"""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from collections import deque
from typing import TYPE_CHECKING, Protocol

from broker.bus import SubscriptionEvent
from broker.model.errors import BrokerError, Remedy, error
from broker.model.names import is_pattern
from broker.remote.places import make_places
from broker.remote.reconnect import hinted_s
from broker.wire import control
from broker_native.messages import Cursor

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Any

    from broker.bus import Start
    from broker.model.positions import BusPosition, Position
    from broker.remote.conversation import Conversation
    from broker_native.messages import Batch

EVENTS_KEPT = 256
CREDIT_BYTES_MIN = 64 * 1024
CREDIT_REPORTS = 4
"""Credit is granted anew when this part of it has been consumed: often enough that delivery never pauses for it."""
RETRY_SECONDS = 0.2


class Kept(ABC):
    """What a bus asks for on each of its connections, under a subscription's number of that connection."""

    @abstractmethod
    def attach_ahead(self, connection: Conversation, bytes_max: int) -> int:
        """There will be a connection to the journal of the last one: subscribe on it, if that takes few bytes.

        Returns:
            How many bytes it took.
        """

    @abstractmethod
    def attach(self, connection: Conversation) -> None:
        """There is a connection."""

    @abstractmethod
    def detach(self) -> None:
        """The connection is gone."""

    @abstractmethod
    def finish(self, failure: BrokerError | None) -> None:
        """The bus has ended; `failure` is why, if it is not that somebody has closed it."""

    @abstractmethod
    def on_subscribed(self, answer: control.Subscribed) -> None:
        """The server has accepted it."""

    @abstractmethod
    def on_refused(self, failure: BrokerError) -> None:
        """The server refuses it, or has ended it."""

    @abstractmethod
    def on_event(self, event: control.Event) -> None:
        """The server tells of something that is no delivery."""


class Keeper(Protocol):
    """The bus of a subscription, as far as the subscription knows it."""

    def add_subscription(self, subscription: Kept) -> None:
        """Keep a subscription on this and every later connection."""

    def remove_subscription(self, subscription: Kept, number: int) -> None:
        """Forget a subscription that has ended."""

    def next_number(self, subscription: Kept) -> int:
        """Return a number that this connection has not used for a subscription."""

    def forget_number(self, number: int) -> None:
        """Pass over what the server still says of this number."""


class RemoteSubscription(Kept):
    """A subscription of a bus, which owns it.

    Args:
        keeper: The bus.
        filters: Channels and patterns.
        start: Where to begin.
        credit_bytes: What may wait to be read.
        on_event: Called with each event, when and where `_call` says.
        loop: Of those who wait for what the cursor has; None when they are threads.
        group: The live group that it is a member of.
    """

    def __init__(
        self,
        keeper: Keeper,
        filters: tuple[str, ...],
        start: Start,
        credit_bytes: int,
        on_event: Callable[[SubscriptionEvent], object] | None,
        loop: Any = None,
        group: str | None = None,
    ) -> None:
        if credit_bytes < CREDIT_BYTES_MIN:
            raise error(
                "LIMIT",
                f"credit: got {credit_bytes} bytes, expected at least {CREDIT_BYTES_MIN} bytes",
                "Give the subscription more credit_bytes.",
            )
        self.filters = filters
        self.events: deque[SubscriptionEvent] = deque(maxlen=EVENTS_KEPT)
        self._keeper = keeper
        self._places = make_places(filters, start, group)
        self._group = group
        self._literal = filters[0] if len(filters) == 1 and not is_pattern(filters[0].encode()) else None
        self._credit_bytes = credit_bytes
        self._on_event = on_event
        self._cursor = Cursor(loop, credit_bytes // CREDIT_REPORTS, self._on_consumed)
        self._push: Callable[[Batch], object] = self._cursor.push
        self._connection: Conversation | None = None
        self._number = 0  # of the SUBSCRIBE that the server has; 0 when it has none
        self._started = False
        self._failure: BrokerError | None = None
        self._closed = False
        self._settled = False

    def __repr__(self) -> str:
        state = "closed" if self._closed else "waiting" if not self._number else "live"
        return f"<Subscription {' '.join(self.filters)} {state}>"

    # .. how its callers wait ..

    @abstractmethod
    def _wake(self) -> None:
        """It is settled whether the server accepts it: wake who waits for that."""

    @abstractmethod
    def _call(self, function: Callable[..., object], *args: object) -> None:
        """Have the application's function called soon, from outside of everything here."""

    @abstractmethod
    def _later(self, delay_s: float, function: Callable[[], object]) -> None:
        """Have a function of this object called after a time."""

    # .. what the application does ..

    @property
    def bus_position(self) -> BusPosition | None:
        return self._places.bus_position

    @property
    def positions(self) -> Mapping[str, Position]:
        return dict(self._places.positions)

    def end(self) -> None:
        """Stop at the application's wish: the server is told, and what waits to be read is dropped."""
        if self._closed:
            return
        if self._number and self._connection is not None:
            self._connection.mute_route(self._number)
            self._connection.send(control.encode_unsubscribe(self._number))
        self.finish(None, at_once=True)

    # .. what the bus does ..

    def begin(self) -> None:
        """Ask the server for it, once."""
        if not self._started:
            self._started = True
            self._keeper.add_subscription(self)

    def attach_ahead(self, connection: Conversation, bytes_max: int) -> int:
        """There will be a connection to the journal of the last one: subscribe on it, if that takes few bytes.

        Returns:
            How many bytes it took.
        """
        self._places.connected(connection.journal)
        self._connection = connection
        sent = self._subscribe(bytes_max)
        if not sent:
            self._connection = None
        return sent

    def attach(self, connection: Conversation) -> None:
        """There is a connection: subscribe on it, now or when enough has been read, unless that was done ahead."""
        if self._connection is connection:
            return
        self._connection = connection
        for event in self._places.connected(connection.journal):
            self._tell(event)
        self._subscribe()

    def detach(self) -> None:
        """The connection is gone."""
        self._connection = None
        self._number = 0

    def finish(self, failure: BrokerError | None, *, at_once: bool = False) -> None:
        """End it for good; readers get what is here already, unless `at_once`, and then `failure` or the end."""
        if self._closed:
            return
        self._closed = True
        self._failure = failure
        self._keeper.remove_subscription(self, self._number)
        self.detach()
        self._cursor.end(failure, at_once=at_once)
        self._settle()

    def on_batch(self, batch: Batch) -> None:
        """Take a delivery."""
        rest, event = self._places.accept(batch)
        if event is not None:
            self._tell(event)
        if batch.has_gone:
            for first, count, reason in batch.gone:
                self._tell(SubscriptionEvent("gone", batch.channel, batch.epoch, first, count, reason))
        if rest is not None:
            self._push(rest)
        else:
            self._cursor.pass_over(batch)

    def on_subscribed(self, answer: control.Subscribed) -> None:
        """The server has accepted it."""
        for event in self._places.subscribed(answer):
            self._tell(event)
        self._settle()

    def on_refused(self, failure: BrokerError) -> None:
        """The server refuses it, or has ended it."""
        if self._connection is not None:
            self._connection.mute_route(self._number)
        self._keeper.forget_number(self._number)
        self._number = 0
        if failure.remedy is Remedy.RESUME:
            self._tell(SubscriptionEvent("slow", "", 0, 0))
            self._subscribe()
        elif failure.remedy is Remedy.RETRY and self._settled:
            # It was accepted before: the server is short of something at the moment.
            after_ms = failure.retry_after_ms
            delay_s = RETRY_SECONDS if after_ms is None else hinted_s(after_ms, random.random())
            self._later(delay_s, self._subscribe)
        else:
            self.finish(failure)

    def on_event(self, event: control.Event) -> None:
        """The server tells of something that is no delivery."""
        if event.event == "trimmed":
            self._tell(self._places.trimmed(event.channel, control.take_int(event.more, "first")))
        elif event.event == "dropped":
            self._places.dropped()
            self._tell(SubscriptionEvent("dropped", "", 0, 0, event.more.get("count", 0)))
        elif event.event == "lagging":
            self._tell(SubscriptionEvent("lagging", "", 0, control.take_int(event.more, "group")))
        else:
            epoch, at = event.more.get("epoch", 0), event.more.get("at", 0)
            self._tell(SubscriptionEvent(event.event, event.channel, epoch, at))

    # .. inside ..

    def _settle(self) -> None:
        if not self._settled:
            self._settled = True
            self._wake()

    def _tell(self, event: SubscriptionEvent) -> None:
        self.events.append(event)
        if self._on_event is not None:
            self._call(self._on_event, event)

    def _subscribe(self, bytes_max: int | None = None) -> int:
        """Ask for it, if there is a connection and room for what will come, in `bytes_max` if that is given.

        Returns:
            How many bytes that took, 0 when it was not asked for.
        """
        if self._closed or self._number or self._connection is None:
            return 0
        room = self._credit_bytes - self._cursor.queued_bytes
        if 2 * room < self._credit_bytes:
            return 0  # `_on_consumed` comes back
        number = self._keeper.next_number(self)
        wanted = control.Subscribe(number, self.filters, room, self._places.start(), self._group)
        frame = control.encode_subscribe(wanted)
        if bytes_max is not None and len(frame) > bytes_max:
            self._keeper.forget_number(number)
            return 0
        self._cursor.unreported()
        self._number = number
        self._connection.add_route(number, self, self._literal)
        if bytes_max is None and len(frame) > self._connection.frame_bytes_max:
            # It would cost the whole connection.
            self.finish(
                error(
                    "FRAME_TOO_LARGE",
                    f"subscribe: got {len(frame)} bytes for {len(self.filters)} filters, "
                    f"limit {self._connection.frame_bytes_max} bytes",
                    "Use patterns, or several subscriptions.",
                )
            )
            return 0
        self._connection.send(frame)
        return len(frame)

    def _on_consumed(self, consumed_bytes: int) -> None:
        """The application has read on: let as much more come."""
        if self._number and self._connection is not None:
            self._connection.send(control.encode_credit(self._number, consumed_bytes))
        else:
            self._subscribe()
