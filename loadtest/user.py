"""`BrokerUser`: a Locust user with a connection of its own, an open-loop schedule, and a check of all that it reads.

A window is what a user sends at once: messages that are due together. Each carries the time at which it was due by the
schedule, which never waits for the broker, so a broker, or a generator, that falls behind is seen as latency and not as
a lower rate. One window is one request of Locust: from when it was due until the broker has answered for all of it.

Connections are those of `broker.blocking`, whose sockets Locust has replaced by gevent's. A user's reader is a greenlet
of its own where the user publishes too.
"""

from __future__ import annotations

import time
from collections import deque
from typing import TYPE_CHECKING, ClassVar, Final, NamedTuple

import gevent
from locust import User, task
from locust.exception import StopUser

from broker.blocking import connect
from broker.model.errors import BrokerError
from broker.model.positions import Position
from loadtest.conductor import side_here
from loadtest.histogram import now_ns

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from locust.env import Environment

    from broker.blocking import Client, Pending, Subscription
    from broker.bus import Start, SubscriptionEvent
    from broker_native.messages import Batch
    from broker_native.outcomes import Receipt
    from broker_native.readings import Reading
    from loadtest.side import Side

TIMEOUT_S: Final = 10.0
LOOK_S: Final = 0.5
"""How long a waiting publisher does not notice that the test is closing."""
UNANSWERED_MAX: Final = 64
"""Windows that one user may have sent without an answer. One more waits, and then it is late."""

HARMLESS: Final = frozenset({"resumed", "lagging", "live"})
"""Events of a subscription that take no message from anybody."""


class Sent(NamedTuple):
    """A window that was sent, until its answer was taken."""

    pending: Pending[list[Receipt]]
    what: str
    due_ns: int
    messages: int
    size_bytes: int


class Reader:
    """One subscription of a user, and the check of all that it brings.

    Batches are looked at by the greenlet that reads the connection, as they come: one wake-up for each read of the
    socket. What has come has therefore been checked.

    Args:
        side: where it is counted.
        kind: the scenario that it is counted for.
        client: the user's connection.
        channels: payload bytes by name.
        start: where to begin.
        since_ns: messages that were due before are in no latency.

    Raises:
        BrokerError: The broker refuses the subscription.
    """

    def __init__(
        self, side: Side, kind: str, client: Client, channels: Mapping[str, int], *, start: Start, since_ns: int
    ) -> None:
        self._side = side
        self._kind = kind
        self._channels = channels
        self._since_ns = since_ns
        self.readings: dict[str, Reading] = {}
        self._subscription = self._subscribe(client, start)
        for name, position in self._subscription.positions.items():
            if name not in self.readings:
                self.readings[name] = side.account.read(name, position.sequence, channels[name])

    def _subscribe(self, client: Client, start: Start) -> Subscription:
        return client.subscribe(*self._channels, start=start, on_event=self._on_event, on_batch=self._on_batch)

    def _on_batch(self, batch: Batch) -> None:
        reading = self.readings.get(batch.channel)
        if reading is None:
            # It came with the broker's answer, before anybody could ask where the channel stood. A gap before it would
            # be an event.
            reading = self._side.account.read(batch.channel, batch.first - 1, self._channels[batch.channel])
            self.readings[batch.channel] = reading
        self._side.counter.take(self._kind, reading, batch, self._since_ns)

    def _on_event(self, event: SubscriptionEvent) -> None:
        if event.name not in HARMLESS:
            self._side.fail(f"a subscription was told: {event.name}")

    def look(self) -> None:
        """See that it still lasts.

        Raises:
            BrokerError: It has ended, and why.
        """
        self._subscription.next_batch(0)

    def resume(self, client: Client) -> None:
        """Subscribe again over another connection, behind what was read; the one before is closed.

        Raises:
            BrokerError: The broker refuses the subscription.
        """
        positions = self._subscription.positions
        start = {
            name: Position(reading.epoch or positions[name].epoch, reading.sequence)
            for name, reading in self.readings.items()
        }
        self._subscription = self._subscribe(client, start)

    def retire(self) -> None:
        """End it before the test ends; what was still on its way was due to nobody."""
        self._subscription.close()
        for name, reading in self.readings.items():
            self._side.account.retire(name, reading)


class BrokerUser(User):
    """A user of the broker. Scenarios say what it does in `live`."""

    abstract = True
    kind: ClassVar[str] = ""
    """The scenario, in channels' names and in Locust's statistics."""

    def __init__(self, environment: Environment) -> None:
        super().__init__(environment)
        self.side: Side = side_here()
        self.number = -1
        self._client: Client | None = None
        self._readers: list[Reader] = []
        self._sent: deque[Sent] = deque()

    def on_start(self) -> None:
        """Sit down and connect."""
        self.number = self.side.usher.take(self.kind)
        self._client = self.open_client()

    def on_stop(self) -> None:
        """Stop reading and leave. What was read is checked already."""
        self.side.unanswered -= len(self._sent)
        self._sent.clear()
        for reader in list(self._readers):
            self.leave(reader)
        if self._client is not None:
            self._client.close()
        if self.number >= 0:
            self.side.usher.leave(self.kind, self.number)

    @task
    def use(self) -> None:
        """Do what the scenario says, until the test or its shape ends this user."""
        try:
            self.live()
            self.settle()
            # Publishing is over. Who reads reads on, until all that is due has come, and is ended with the test.
            while True:
                for reader in self._readers:
                    reader.look()
                gevent.sleep(LOOK_S)
        except BrokerError as failure:
            self.side.fail(f"{self.kind}: {failure}")
            raise StopUser from failure

    def live(self) -> None:
        """Publish and read; the scenario's. It returns when the test is closing."""

    # -- what scenarios are made of -----------------------------------------------------------------------------------

    @property
    def client(self) -> Client:
        """The connection."""
        assert self._client is not None
        return self._client

    def open_client(self) -> Client:
        """Connect.

        Raises:
            StopUser: There is no connection to be had; that is counted.
        """
        begun_ns = now_ns()
        try:
            return connect(
                self.side.url, token=self.side.plan.token or None, timeout_s=TIMEOUT_S, connect_timeout_s=TIMEOUT_S
            )
        except BrokerError as failure:
            self.side.fail(f"connect: {failure}")
            self.fire("connect", begun_ns, 0, failure)
            raise StopUser from failure

    def reconnect(self) -> None:
        """Drop the connection, make another one, and let readers go on behind what they have read.

        Raises:
            BrokerError: The broker refuses a subscription.
            StopUser: There is no connection to be had.
        """
        self.client.close()
        self._client = self.open_client()
        for reader in self._readers:
            reader.resume(self.client)

    def read(self, channels: Mapping[str, int], *, start: Start = "new", since_ns: int = 0) -> Reader:
        """Subscribe, and read in a greenlet beside this one.

        Args:
            channels: payload bytes by name.
            start: where to begin.
            since_ns: messages that were due before are in no latency.

        Raises:
            BrokerError: The broker refuses the subscription.
        """
        reader = Reader(self.side, self.kind, self.client, channels, start=start, since_ns=since_ns)
        self._readers.append(reader)
        return reader

    def leave(self, reader: Reader) -> None:
        """End a reader before the test ends."""
        reader.retire()
        self._readers.remove(reader)

    def windows(self, interval_s: float, *, phase: float = 0.0) -> Iterator[int]:
        """Yield when windows are due, each at its time, until the test is closing.

        The schedule goes on while a window is late: those that are due by then follow at once.

        Args:
            interval_s: between two windows at pace 1.
            phase: where in the interval this user begins, 0 to 1.
        """
        interval_ns = int(interval_s / self.side.plan.pace * 1e9)
        due_ns = (now_ns() // interval_ns + 1) * interval_ns + int(phase * interval_ns)
        while self.wait_until(due_ns):
            yield due_ns
            due_ns += interval_ns

    def wait_until(self, due_ns: int) -> bool:
        """Wait for a time. Returns False when the test is closing."""
        while (left_ns := due_ns - now_ns()) > 0 and not self.side.closing:
            gevent.sleep(min(left_ns / 1e9, LOOK_S))
        return not self.side.closing

    def publish(self, channel: str, count: int, due_ns: int, payload_bytes: int, what: str = "window") -> None:
        """Send a window now. Its answer is waited for by nobody: `settle` takes it when it is there.

        Args:
            channel: its name.
            count: messages in the window.
            due_ns: when it was due.
            payload_bytes: of each message.
            what: tells the windows of a scenario apart in Locust's statistics.
        """
        account = self.side.account
        payloads = account.window(channel, self.number, count, due_ns, payload_bytes)
        try:
            pending = self.client.submit_many(channel, payloads)
        except BrokerError as failure:
            self.side.fail(f"{self.kind}: publish: {failure}")
            self.fire(what, due_ns, 0, failure)
            return
        account.sent(channel, self.number, count)
        self.side.unanswered += 1
        self._sent.append(Sent(pending, what, due_ns, count, count * payload_bytes))
        self.settle(at_most=UNANSWERED_MAX)

    def settle(self, at_most: int = 0) -> None:
        """Take the answers that are there, and wait for others until so few are left: each is a request of Locust."""
        while self._sent and (len(self._sent) > at_most or self._sent[0].pending.done()):
            sent = self._sent[0]
            failure = sent.pending.failure() if sent.pending.done() else self._wait_for(sent)
            self._sent.popleft()
            self.side.unanswered -= 1
            if failure is None:
                self.side.counter.publish(sent.messages)
            else:
                self.side.fail(f"{self.kind}: publish: {failure}")
            # How long ago its answer came, by the clock that it was taken with.
            ago_ns = int((time.perf_counter() - sent.pending.answered_s) * 1e9) if sent.pending.answered_s else 0
            self.fire(sent.what, sent.due_ns + ago_ns, sent.size_bytes, failure)

    def _wait_for(self, sent: Sent) -> BaseException | None:
        try:
            sent.pending.result()
        except BrokerError as failure:
            return failure
        return None

    def fire(self, what: str, since_ns: int, size_bytes: int, failure: BaseException | None = None) -> None:
        """Tell Locust of a request that began, or was due, at a time and has just ended."""
        self.environment.events.request.fire(
            request_type=self.kind,
            name=what,
            response_time=(now_ns() - since_ns) / 1e6,
            response_length=size_bytes,
            exception=failure,
            context={},
        )
