"""Users of the public client library, each a process of its own, and the history of what they were told.

Publishers keep several publishes under way, readers read from the start and survive whatever happens by the library's
own means; now and then a reader stops, leaves and comes back to where it was. Nobody is told of faults.

A record's payload begins with its value, and the rest follows from the value, so that a payload that was damaged or
mixed up is a value from nowhere. Deliveries of the ephemeral channel are judged here, as they come.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from broker import BackoffPolicy, connect
from broker.model.errors import BrokerError, Remedy
from broker.model.names import matches
from broker.model.positions import Position
from tests.checker.history import Acked, Delivered, Event, History, Invoked, Refused, Run, Subscribed, Unknown
from tests.simulation.loop import SimulatedLoop
from tests.simulation.policy import EPHEMERAL, LEVELS

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from broker.bus import Start, Subscription, SubscriptionEvent
    from broker.client.client import Client
    from broker_native.messages import Batch
    from broker_native.outcomes import Receipt
    from tests.simulation.errands import Book
    from tests.simulation.kernel import Kernel
    from tests.simulation.network import Network
    from tests.simulation.policy import Policy

URL = "broker://server:4770"
BACKOFF = BackoffPolicy(first_s=0.02, longest_s=0.3, settled_s=0.2)
CONNECT_TIMEOUT_S = 1.0
UNANSWERED_MAX = 5
BATCH_MAX = 6
CHANNELS = [*LEVELS, EPHEMERAL]
FILLER = bytes(range(256)) * 128
LARGE_VALUE = 1 << 32
"""A value with this bit has a large payload."""


def payload_of(value: int) -> bytes:
    """Return the payload of a value: eight bytes of it and as many as follow from it."""
    size = 4_000 + value * 1_031 % 5_000 if value & LARGE_VALUE else value * 31 % 120
    start = value * 7 % 251
    return value.to_bytes(8, "big") + FILLER[start : start + size]


def value_of(payload: bytes) -> int:
    """Return the value of a payload, or a negative number that no one published when it is damaged."""
    value = int.from_bytes(payload[:8], "big")
    return value if payload == payload_of(value) else -1 - value


async def until(is_so: Callable[[], object], every_s: float) -> None:
    """Wait until something is so; looking again costs no time in a life."""
    while not is_so():  # noqa: ASYNC110
        await asyncio.sleep(every_s)


class Recorder:
    """The history as it grows, and the book of the ephemeral channel.

    Attributes:
        invoked: The index of the event with which a value was published.
        diverged: The lowest sequence after which a consumer was told, of a channel, that what it saw may be lost.
    """

    def __init__(self, kernel: Kernel, accepted_window_s: float) -> None:
        self.history = History(levels=LEVELS, accepted_window_s=accepted_window_s)
        self.kernel = kernel
        self.invoked: dict[int, int] = {}
        self.diverged: dict[tuple[str, str], int] = {}
        self._values = 0
        self._sent: dict[str, int] = {}
        self._ephemeral: set[int] = set()
        self._shown: dict[tuple[int, int], int] = {}

    def add(self, event: Event) -> None:
        """Write an event down."""
        self.history.events.append(event)

    def invoke(self, producer: str, channel: str, large: Sequence[bool]) -> tuple[int, list[int]]:
        """Write a publish of new values down; returns its first number and the values."""
        values = [self._values + step + (LARGE_VALUE if is_large else 0) for step, is_large in enumerate(large)]
        self._values += len(large)
        self.kernel.note("publish", channel, *values)
        if channel == EPHEMERAL:
            self._ephemeral.update(values)
            return 0, values
        number = self._sent.get(producer, 0) + 1
        self._sent[producer] = number + len(values) - 1
        self.invoked.update(dict.fromkeys(values, len(self.history.events)))
        self.add(Invoked(self.kernel.now_s, producer, number, channel, values))
        return number, values

    def answer(self, producer: str, number: int, count: int, outcome: list[Receipt] | BrokerError) -> None:
        """Write the outcome of a publish down."""
        now_s = self.kernel.now_s
        if isinstance(outcome, BrokerError):
            self.kernel.note("answer", number, outcome)
            # Of several records, one that is refused says nothing of the others.
            refused = count == 1 and outcome.remedy in (Remedy.RETRY, Remedy.STOP)
            if number:
                self.add((Refused if refused else Unknown)(now_s, producer, number, count))
            return
        if sum(receipt.count for receipt in outcome) != count:
            self.kernel.fail(f"{count} records have receipts {outcome}")
        for receipt in outcome:
            self.kernel.note("answer", number, receipt.epoch, receipt.first, receipt.count, receipt.duplicate)
            if number:
                level = int(receipt.level)
                if not receipt.epoch:
                    self.kernel.fail(f"record {number} of {producer} is so new, and its position is not known any more")
                self.add(Acked(now_s, producer, number, receipt.count, receipt.epoch, receipt.first, level))
                number += receipt.count

    def deliver(self, consumer: str, batch: Batch) -> None:
        """Write down what a consumer was handed."""
        if batch.has_gone:
            self.kernel.fail(f"nothing takes records out, and yet {batch.gone} of {batch.channel} are gone")
        values = [value_of(payload) for payload in batch.payloads()]
        self.kernel.note("deliver", consumer, batch.channel, batch.epoch, batch.first, len(values))
        if batch.channel == EPHEMERAL:
            self._deliver_ephemeral(batch, values)
        elif batch.channel in LEVELS:
            self.add(Delivered(self.kernel.now_s, consumer, batch.channel, batch.epoch, batch.first, values))

    def _deliver_ephemeral(self, batch: Batch, values: list[int]) -> None:
        """A position of the ephemeral channel has one value too, and it was published there."""
        for sequence, value in enumerate(values, batch.first):
            shown = self._shown.setdefault((batch.epoch, sequence), value)
            if shown != value or value not in self._ephemeral:
                self.kernel.fail(f"{EPHEMERAL} at {batch.epoch}:{sequence}: got {value}, first {shown}")


class User:
    """One process with a bus.

    Args:
        recorder: Writes down what it is told.
        network: What connects it.
        policy: The world's.
        name: Its own.
        loop: The process that it is part of; None for one of its own.

    Attributes:
        finishing: Nothing befalls the world any more: it is to come to its end,
        finished: and has.
    """

    finishing = False
    finished = False

    def __init__(
        self, recorder: Recorder, network: Network, policy: Policy, name: str, loop: SimulatedLoop | None = None
    ) -> None:
        self.recorder = recorder
        self.policy = policy
        self.name = name
        self.kernel = recorder.kernel
        self.random = recorder.kernel.random
        self.loop = SimulatedLoop(recorder.kernel, network, name) if loop is None else loop
        self.loop.spawn(self.run())

    async def run(self) -> None:
        """What it does."""
        raise AssertionError("each kind of user does something else")

    async def connect(self) -> Client:
        """Connect; a first connection that fails is the application's to try again."""
        while True:
            try:
                return await connect(URL, backoff=BACKOFF, connect_timeout_s=CONNECT_TIMEOUT_S)
            except BrokerError as failure:
                self.kernel.note("unconnected", failure)
                await asyncio.sleep(0.02 + 0.1 * self.random.random())


class Publisher(User):
    """Publishes so many times, to a channel at random, and at the end once more to each."""

    hosting = False
    bus: Client | None = None

    async def run(self) -> None:
        bus = self.bus = await self.connect()
        waiting: set[asyncio.Task[None]] = set()
        for _ in range(self.policy.operations):
            waiting.add(self._publish(bus, self.random.choice(CHANNELS)))
            if len(waiting) >= UNANSWERED_MAX:
                _, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            if self.random.random() < 0.6 and not self.finishing:
                await asyncio.sleep(2 * self.random.random() * self.policy.active_us / self.policy.operations / 1e6)
        await until(lambda: self.finishing, 0.02)
        await asyncio.gather(*waiting)
        # Whoever lost something hears of it with what comes next.
        await asyncio.gather(*[self._publish(bus, channel) for channel in CHANNELS])
        if not self.hosting:
            await bus.close()
        self.finished = True

    def _publish(self, bus: Client, channel: str) -> asyncio.Task[None]:
        """Publish. The call posts at once, so calls and numbers have the same order; only the answer is waited for."""
        random = self.random
        large = [random.random() < self.policy.large_share for _ in range(random.randint(1, BATCH_MAX))]
        if random.random() < 0.5:
            large = large[:1]
        number, values = self.recorder.invoke(self.name, channel, large)
        payloads = [payload_of(value) for value in values]
        answer: Awaitable[Any]
        answer = bus.publish(channel, payloads[0]) if len(large) == 1 else bus.publish_many(channel, payloads)
        return asyncio.create_task(self._await_answer(number, len(values), answer))

    async def _await_answer(self, number: int, count: int, answer: Awaitable[list[Receipt] | Receipt]) -> None:
        try:
            outcome = await answer
        except BrokerError as failure:
            self.recorder.answer(self.name, number, count, failure)
        else:
            self.recorder.answer(self.name, number, count, outcome if isinstance(outcome, list) else [outcome])


class Reader(User):
    """Reads some channels from the start, all of them to the end.

    Args:
        filters: What it reads.
        slow: It stops reading now and then.
        leaving: It leaves now and then, and comes back to where it was.
        fresh: It begins with what is new, not at the start.
        host: The publisher whose bus it shares; None for one of its own.
    """

    def __init__(
        self,
        recorder: Recorder,
        network: Network,
        policy: Policy,
        name: str,
        filters: Sequence[str],
        *,
        slow: bool,
        leaving: bool,
        fresh: bool,
        host: Publisher | None,
    ) -> None:
        self.host = host
        if host is not None:
            host.hosting = True
        self.filters = filters
        self.slow = slow
        self.leaving = leaving
        self.fresh = fresh
        self.begun: int | None = None  # index of the event with which it began
        self.hurrying = False
        self.subscription: Subscription | None = None
        self.places: dict[str, Position] = {}
        self._bus_place: Any = None
        self.channels = [name for name in LEVELS if any(matches(each.encode(), name.encode()) for each in filters)]
        super().__init__(recorder, network, policy, name, None if host is None else host.loop)

    async def run(self) -> None:
        bus = await self.connect()
        if not self.fresh:
            self._begin()
        while True:
            await self._read(bus, self._start())

    async def connect(self) -> Client:
        if self.host is None:
            return await super().connect()
        host = self.host
        await until(lambda: host.bus is not None, 0.001)
        assert host.bus is not None
        return host.bus

    def _begin(self) -> None:
        self.begun = len(self.recorder.history.events)
        for channel in self.channels:
            self.recorder.add(Subscribed(self.kernel.now_s, self.name, channel, not self.fresh))

    def _start(self) -> Start:
        """Where it was, as an application knows it."""
        if self._bus_place is not None:
            return self._bus_place  # type: ignore[no-any-return]
        if not self.places:
            return "new" if self.fresh else "start"
        return {name: self.places.get(name, Position(1, 0)) for name in self.channels}

    async def _read(self, bus: Client, start: Start) -> None:
        """Read until it leaves."""
        subscription = self.subscription = bus.subscribe(
            *self.filters, start=start, credit_bytes=self.policy.credit_bytes, on_event=self._on_event
        )
        if self.begun is None:
            await subscription
            self._begin()
        async for batch in subscription.batches():
            self.recorder.deliver(self.name, batch)
            if batch.channel in LEVELS:
                self.places[batch.channel] = Position(batch.epoch, batch.last)
                if len(self.channels) != len(self.filters):
                    self._bus_place = batch.bus_position
            if self.slow and not self.hurrying and self.random.random() < 0.1:
                await asyncio.sleep(0.2 * self.random.random())
            if self.leaving and self.random.random() < 0.03:
                break
        self.kernel.note("leave", self.name)
        await subscription.close()

    def _on_event(self, event: SubscriptionEvent) -> None:
        self.kernel.note("event", self.name, *event[:4])
        if event.name == "diverged":
            key = self.name, event.channel
            self.recorder.diverged[key] = min(event.at, self.recorder.diverged.get(key, event.at))


class Witness(User):
    """Comes after everything, asks for the heads, reads the log, and waits until everybody has got there."""

    def __init__(
        self, recorder: Recorder, network: Network, policy: Policy, readers: Sequence[Reader], book: Book | None
    ) -> None:
        self.readers = readers
        self.book = book
        self.heads: dict[str, Position] = {}
        self.finished = False
        super().__init__(recorder, network, policy, "witness")

    async def run(self) -> None:
        bus = await self.connect()
        for name in LEVELS:
            found = await bus.channel(name)
            if found.head >= found.first:
                self.heads[name] = Position(found.epoch, found.head)
        self.recorder.history.log = await self._read_log(bus)
        if self.book is not None:
            await self.book.read(bus)
        await until(lambda: not self.behind(), 0.01)
        await bus.close()
        self.finished = True

    def behind(self) -> list[str]:
        """Say who has not begun, or has not got the last record of a channel."""
        return [f"{reader.name} has not begun" for reader in self.readers if reader.begun is None] + [
            f"{reader.name} in {name} at {reader.places.get(name)}, head {head}"
            for reader in self.readers
            for name, head in self.heads.items()
            if name in reader.channels and self._is_due(reader, name)
            if reader.places.get(name, Position(0, 0)) < head
        ]

    def _is_due(self, reader: Reader, channel: str) -> bool:
        """Whether the last record of a channel is for a reader: older ones are not for one that began anew."""
        log = self.recorder.history.log.get(channel)
        if not reader.fresh or not log:
            return True
        return reader.begun is None or self.recorder.invoked[log[-1].values[-1]] > reader.begun

    async def _read_log(self, bus: Client) -> dict[str, list[Run]]:
        log: dict[str, list[Run]] = {name: [] for name in LEVELS}
        left = set(self.heads)
        async with bus.subscribe(*LEVELS, start="start") as subscription:
            batches = aiter(subscription.batches())
            while left:
                batch = await anext(batches)
                log[batch.channel].append(Run(batch.epoch, batch.first, [value_of(each) for each in batch.payloads()]))
                if Position(batch.epoch, batch.last) >= self.heads[batch.channel]:
                    left.discard(batch.channel)
        return log
