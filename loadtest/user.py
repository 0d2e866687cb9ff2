"""`BrokerUser`: a Locust user with a connection of its own, an open-loop schedule, and a check of all that it reads.

A window is what a user sends at once: messages that are due together. Each carries the time at which it was due by the
schedule, which never waits for the broker, so a broker, or a generator, that falls behind is seen as latency and not as
a lower rate. One window is one request of Locust: from when it was due until the broker has answered for all of it.

Connections are those of `broker.blocking`, whose sockets Locust has replaced by gevent's. A user's reader is a greenlet
of its own where the user publishes too.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Final

import gevent
from locust import User, task
from locust.exception import StopUser

from broker.blocking import connect
from broker.model.errors import BrokerError
from broker.model.positions import Position
from loadtest.conductor import side_of
from loadtest.histogram import now_ns

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from locust.env import Environment

    from broker.blocking import Client, Subscription
    from broker.bus import Start, SubscriptionEvent
    from loadtest.side import Side

CONNECT_TIMEOUT_S: Final = 10.0
LOOK_S: Final = 0.5
"""How long a waiting publisher does not notice that the test is closing."""
FOREVER_S: Final = 1e6
UNKNOWN_OUTCOMES: Final = frozenset({"COMMIT_UNKNOWN", "CONNECTION_LOST"})

HARMLESS: Final = frozenset({"resumed", "lagging", "live"})
"""Events of a subscription that take no message from anybody."""


class Reader:
    """One subscription of a user, and the check of all that it brings.

    Args:
        side: where it is counted.
        client: the user's connection.
        channels: payload bytes by name.
        start: where to begin.
        since_ns: messages that were due before are in no latency.

    Raises:
        BrokerError: The broker refuses the subscription.
    """

    def __init__(
        self,
        side: Side,
        client: Client,
        channels: Mapping[str, int],
        *,
        start: Start = "new",
        since_ns: int = 0,
    ) -> None:
        self._side = side
        self._channels = channels
        self._since_ns = since_ns
        self._subscription = self._subscribe(client, start)
        positions = self._subscription.positions
        self.readings = {
            name: side.account.read(name, positions[name].sequence, payload_bytes)
            for name, payload_bytes in channels.items()
        }
        self._fresh = set(channels)

    def _subscribe(self, client: Client, start: Start) -> Subscription:
        subscription = client.subscribe(*self._channels, start=start, on_event=self._on_event)
        return subscription.__enter__()

    def run(self) -> None:
        """Read until the subscription ends.

        Raises:
            BrokerError: It has failed for good.
        """
        readings, fresh, take, since_ns = self.readings, self._fresh, self._side.counter.take, self._since_ns
        for batch in self._subscription.batches():
            if batch.channel in fresh:
                self._begin(batch.channel, batch.first)
            take(readings[batch.channel], batch, since_ns)

    def _begin(self, name: str, first: int) -> None:
        """Take the first batch of a channel: it may have come before anybody could ask where the channel stood.

        A gap before it would have been an event.
        """
        self._fresh.remove(name)
        if first <= self.readings[name].after:
            self._side.account.retire(name, self.readings[name])
            self.readings[name] = self._side.account.read(name, first - 1, self._channels[name])

    def resume(self, client: Client) -> None:
        """Subscribe again over another connection, behind what was read, which may be less than what had come.

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
        for name, reading in self.readings.items():
            self._side.account.retire(name, reading)
        self._subscription.close()

    def _on_event(self, event: SubscriptionEvent) -> None:
        if event.name not in HARMLESS:
            self._side.fail(f"a subscription was told: {event.name}")


class BrokerUser(User):
    """A user of the broker. Scenarios say what it does in `live`."""

    abstract = True
    kind: ClassVar[str] = ""
    """The scenario, in channels' names and in Locust's statistics."""

    def __init__(self, environment: Environment) -> None:
        super().__init__(environment)
        self.side: Side = side_of(environment)
        self.number = -1
        self._client: Client | None = None
        self._readers: list[Reader] = []
        self._greenlets: list[gevent.Greenlet] = []

    def on_start(self) -> None:
        """Sit down and connect."""
        self.number = self.side.take_seat(self.kind)
        self._client = self.open_client()

    def on_stop(self) -> None:
        """Stop reading and leave. What was read is checked already."""
        gevent.killall(self._greenlets)
        for reader in list(self._readers):
            self.leave(reader)
        if self._client is not None:
            self._client.close()
        if self.number >= 0:
            self.side.leave_seat(self.kind, self.number)

    @task
    def use(self) -> None:
        """Do what the scenario says, until the test or its shape ends this user."""
        try:
            self.live()
        except BrokerError as failure:
            self.side.fail(f"{self.kind}: {failure}")
            raise StopUser from failure
        # Publishing is over. Who reads reads on until all that is due has come, and is ended with the test.
        gevent.sleep(FOREVER_S)

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
            return connect(self.side.url, token=self.side.plan.token or None, timeout_s=CONNECT_TIMEOUT_S)
        except BrokerError as failure:
            self.side.fail(f"connect: {failure}")
            self.fire("connect", begun_ns, 0, failure)
            raise StopUser from failure

    def reconnect(self) -> None:
        """Drop the connection and make another one; readers of the old one are over."""
        self.client.close()
        self._client = self.open_client()

    def read(self, channels: Mapping[str, int], *, start: Start = "new", since_ns: int = 0) -> Reader:
        """Subscribe, and read in a greenlet beside this one.

        Args:
            channels: payload bytes by name.
            start: where to begin.
            since_ns: messages that were due before are in no latency.

        Raises:
            BrokerError: The broker refuses the subscription.
        """
        reader = Reader(self.side, self.client, channels, start=start, since_ns=since_ns)
        self._readers.append(reader)
        self._greenlets.append(gevent.spawn(self._read, reader))
        return reader

    def read_on(self, reader: Reader) -> None:
        """Let a reader go on over another connection, behind what it has read.

        Raises:
            BrokerError: The broker refuses the subscription.
        """
        reader.resume(self.client)
        self._greenlets = [each for each in self._greenlets if not each.ready()]
        self._greenlets.append(gevent.spawn(self._read, reader))

    def leave(self, reader: Reader) -> None:
        """End a reader before the test ends."""
        reader.retire()
        self._readers.remove(reader)

    def _read(self, reader: Reader) -> None:
        try:
            reader.run()
        except BrokerError as failure:
            self.side.fail(f"{self.kind}: reading: {failure}")

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

    def publish(self, channel: str, count: int, due_ns: int, payload_bytes: int, what: str = "") -> None:
        """Publish a window and wait for its answer: one request of Locust.

        Args:
            channel: its name.
            count: messages in the window.
            due_ns: when it was due.
            payload_bytes: of each message.
            what: tells the windows of a scenario apart in Locust's statistics.
        """
        side = self.side
        with side.publishing():
            payloads = side.account.window(channel, self.number, count, due_ns, payload_bytes)
            failure: BrokerError | None = None
            try:
                self.client.publish_many(channel, payloads)
            except BrokerError as caught:
                failure = caught
                side.fail(f"{self.kind}: publish: {failure}")
            # One whose outcome nobody knows may have been taken: counting it has its loss seen rather than its gap.
            if failure is None or failure.name in UNKNOWN_OUTCOMES:
                side.account.sent(channel, self.number, count)
                side.counter.publish(count)
        self.fire(what or "window", due_ns, count * payload_bytes, failure)

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
