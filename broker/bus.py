"""The one interface of the broker: what a program does with it, whichever home it lives in.

An embedded broker, a connection to a server and a connection to a fleet are all a `Bus`, with the same semantics; a
program takes one as an argument and does not ask which.

All calls belong to the event loop on which the bus was opened. What is published to one channel by one bus is stored
and delivered in the order of the calls. Between channels there is no order.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeAlias, TypeVar

from broker.model.consumers import WINDOW_BYTES_DEFAULT, WINDOW_DEFAULT

if TYPE_CHECKING:
    from collections import deque
    from collections.abc import AsyncIterator, Awaitable, Callable, Generator, Iterable, Mapping
    from datetime import datetime
    from types import TracebackType
    from typing import Self

    from broker.model.consumers import ConsumerInfo, WaitingJob
    from broker.model.levels import Level
    from broker.model.positions import BusPosition, Position
    from broker_native.messages import Batch, Message
    from broker_native.outcomes import Publication, Receipt, Scheduled
    from broker_native.work import Job, JobBatch

__all__ = [
    "Bus",
    "ChannelInfo",
    "Consumer",
    "DelayedMessage",
    "History",
    "HistorySince",
    "HistoryUntil",
    "Last",
    "ListedChannel",
    "Output",
    "Payload",
    "Pipeline",
    "Reject",
    "Retry",
    "Since",
    "Start",
    "Subscription",
    "SubscriptionEvent",
    "Transaction",
    "Until",
]

Payload: TypeAlias = bytes | bytearray | memoryview

CREDIT_BYTES_DEFAULT = 4 * 1024 * 1024
REQUEST_TIMEOUT_S = 5.0
GRACE_S = 30.0
"""How long the functions of workers may go on when they are stopped."""
PIPELINE_JOBS = 256
PIPELINE_BYTES = 256 * 1024
"""What a pipeline takes at once."""

FunctionT = TypeVar("FunctionT", bound="Callable[..., Any]")


class Reject(Exception):
    """Raised by a worker's function: its job will never succeed, and is not to come again."""


class Retry(Exception):
    """Raised by a worker's function: its job is to come again.

    Args:
        delay_s: When, seconds from now; None leaves it to the queue's back-off.
    """

    def __init__(self, delay_s: float | None = None) -> None:
        super().__init__(delay_s)
        self.delay_s = delay_s


class Output(NamedTuple):
    """What a pipeline publishes for a job.

    Attributes:
        channel, payload, headers, key, priority, expiry_s: As for `Bus.post`.
    """

    channel: str
    payload: Payload
    headers: Mapping[str, object] | None = None
    key: bytes | None = None
    priority: int = 2
    expiry_s: int | None = None


class Last(NamedTuple):
    """Start so that the last so many messages of each channel come first. Not for patterns."""

    messages: int


class Since(NamedTuple):
    """Start with what is not older than a time, in microseconds since 1970-01-01 UTC."""

    time_us: int


Start: TypeAlias = "Literal['new', 'start'] | Position | Mapping[str, Position] | BusPosition | Last | Since"
"""Where a subscription begins: with what comes from now on; with the oldest there is; after a position of its one
channel, or after those of several (channels that are not in the mapping start new); after a place in the order of the
whole bus; or as `Last` and `Since` say."""


class Until(NamedTuple):
    """End with what is older than a time, in microseconds since 1970-01-01 UTC."""

    time_us: int


HistorySince: TypeAlias = "Position | BusPosition | Since | Last | None"
"""Where a read of what is stored begins: after a position; after a place of the bus; with a time; so that the last so
many are read; or with the oldest there is. A position with epoch 0 is a sequence alone, and is not judged."""
HistoryUntil: TypeAlias = "Position | Until | None"
"""Where it ends: with a position, before a time, or with the newest that was there when it began."""


class SubscriptionEvent(NamedTuple):
    """What happens to a subscription that is no message.

    Attributes:
        name: `resumed`, `trimmed` (retention took what would have come next), `diverged` (the reader saw what a crash
            took), `gone` (a run of messages was taken out), `lagging` (it is read too slowly, and gets what is stored
            as it reads on), `live` (it has caught up again), `dropped` (while it lagged, messages that are not stored
            were published: what comes next of their channels may leave a gap) or `slow` (it was cut off and goes on by
            itself).
        channel: the channel, or empty for the whole subscription.
        epoch: the channel's epoch, 0 when it does not apply.
        at: `resumed` and `diverged`: the last sequence that both sides know; `trimmed`: the first one there is; `gone`:
            the first of the run. For a bus position and with `lagging`, the group.
        run: how many messages are `gone`, or were `dropped` for want of a member of a live group with room; else 0.
        reason: why they are gone, as in the specification §2, else 0.
    """

    name: str
    channel: str
    epoch: int
    at: int
    run: int = 0
    reason: int = 0


class ChannelInfo(NamedTuple):
    """What a channel holds.

    Attributes:
        epoch: the epoch of its newest messages.
        first: sequence of the oldest message it still has.
        head: sequence of the newest one; `first - 1` when there is none.
        level: the durability that its profile promises.
    """

    epoch: int
    first: int
    head: int
    level: Level


class ListedChannel(NamedTuple):
    """A channel in a listing.

    Attributes:
        name: its name.
        info: what it holds, if the listing asked for that.
    """

    name: str
    info: ChannelInfo | None


class DelayedMessage(NamedTuple):
    """A message that waits for its time.

    Attributes:
        channel: where it will be published.
        id: its id; bytes if that is no UTF-8.
        due_us: when, microseconds since 1970.
        record_bytes: how large it is, with all its fields.
        refusals: how often its channel did not take it at its time, 255 at most; it is tried again.
    """

    channel: str
    id: str | bytes
    due_us: int
    record_bytes: int
    refusals: int


class History(ABC):
    """A read of what is stored, which pages by itself and ends.

    Iterate it, or take `batches()`; they share one place, and leaving an iteration early loses nothing but the rest of
    its batch. What has expired or was taken out is not there, though it has sequences.
    """

    events: deque[SubscriptionEvent]
    """`trimmed` or `diverged`, if the position that was asked for was not simply found; `at` as for a subscription."""
    info: ChannelInfo | None
    """What the channel held when the first page was read; None before that, and for a pattern."""

    @abstractmethod
    def __aiter__(self) -> AsyncIterator[Message]:
        """Iterate over messages, oldest first, or newest first if it was asked for in reverse.

        Raises:
            BrokerError: From the iteration: DENIED, NO_PROFILE, a storage error, …
        """

    @abstractmethod
    def batches(self) -> AsyncIterator[Batch]:
        """Iterate over batches: runs of consecutive messages of one channel, each ascending."""

    @abstractmethod
    async def messages(self) -> list[Message]:
        """Read all that is left."""

    @property
    @abstractmethod
    def bus_position(self) -> BusPosition | None:
        """Where a read of a pattern goes on: behind all pages so far. None for a channel's, and before it began."""


class Subscription(ABC):
    """A stream of messages, each delivered once and in its channel's order.

    `await` it, or enter it with `async with`, to wait until the broker has accepted it; iterating starts it too, and
    then a refusal is raised by the iteration. It survives reconnects by itself and resumes exactly.

    What is delivered waits in at most `credit_bytes` of memory; a reader that is slower than that is caught up from the
    log. Leaving an iteration early loses nothing: the next one goes on.
    """

    events: deque[SubscriptionEvent]
    """The newest events, oldest first; a reader may clear it."""

    @abstractmethod
    def __await__(self) -> Generator[Any, Any, Self]:
        """Wait until the broker has accepted the subscription.

        Raises:
            BrokerError: It is refused: INVALID_PATTERN, INVALID_POSITION, DENIED, …
        """

    @abstractmethod
    def __aiter__(self) -> AsyncIterator[Message]:
        """Iterate over messages. Ends when the subscription or the bus is closed.

        Raises:
            BrokerError: From the iteration: the subscription or the bus has failed for good.
        """

    @abstractmethod
    def batches(self) -> AsyncIterator[Batch]:
        """Iterate over batches: runs of consecutive messages of one channel, the fastest way to read."""

    @property
    @abstractmethod
    def bus_position(self) -> BusPosition | None:
        """The place up to which everything was received; None for a subscription of literals only, or before it began.

        What was received may still wait to be read; `Batch.bus_position` is the place after a batch.
        """

    @property
    @abstractmethod
    def positions(self) -> Mapping[str, Position]:
        """The last received position of each channel, for a subscription of literals only; else empty."""

    @abstractmethod
    async def close(self) -> None:
        """Stop. What waits to be read is dropped, and iterations end. Calling it again does nothing."""

    async def __aenter__(self) -> Self:
        return await self

    async def __aexit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()


class Transaction(ABC):
    """Publishes that happen together or not at all: `async with bus.transaction() as tx`.

    Leaving the block sends them and waits until they are committed, whatever the profiles of their channels; nobody
    sees one of them before. An exception in the block abandons them, and nothing was sent. One whose answer is lost
    with its connection is repeated until it is answered, and happens once. Cancelling the wait takes nothing back.

    Leaving the block raises BrokerError: CONFLICT, and all other errors of `Bus.publish`, for one of them and so for
    all; NOT_STORED, a channel is ephemeral; TRANSACTION_TOO_LARGE.
    """

    receipts: list[Receipt]
    """Once the block was left in good order: where each publish was stored, in their order."""

    @abstractmethod
    def publish(
        self,
        channel: str,
        payload: Payload,
        *,
        headers: Mapping[str, object] | None = None,
        key: bytes | None = None,
        priority: int = 2,
        expiry_s: int | None = None,
        expect: Position | None = None,
    ) -> int:
        """Add a publish; returns which of the receipts will be its own.

        Args:
            channel: As for `Bus.post`, and so on.
            expect: As for `Bus.publish`: the channel's newest position before the transaction.

        Raises:
            BrokerError: At once as `Bus.post` does; TRANSACTION_TOO_LARGE; CLOSED, the block was left.
        """

    @abstractmethod
    def ack(self, job: Job) -> None:
        """Acknowledge a job of this bus with the publishes: neither happens without the other.

        If its lease is over by then, the whole transaction is refused with LEASE_UNKNOWN or LEASE_EXPIRED; so it is
        when the connection that the job came on was lost. The job comes again.
        """

    @abstractmethod
    async def __aenter__(self) -> Self:
        """Begin to put it together."""

    @abstractmethod
    async def __aexit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Commit it, or abandon it when there was an exception."""


class Consumer(ABC):
    """A member of a durable consumer or a work queue: jobs come, and each is to be settled.

    `await` it, or enter it with `async with`, to wait until the broker has accepted it; iterating starts it too. Any
    number of tasks may iterate it at once: each job goes to one of them. A job is settled by what it has: `ack`,
    `nack`, `reject`, or given more time by `extend`; what is said is sent with the turn, and can be awaited.

    It survives reconnects: what was acknowledged before is told again, and what was under way may come again, marked as
    redelivered. Leaving its block waits for what was said, and gives the rest back.
    """

    name: str
    """The consumer's name."""
    events: deque[SubscriptionEvent]
    """The newest events, oldest first: besides those of subscriptions `taken` (somebody else holds it now), `paused`,
    `resumed`, and `refused` (what was said of jobs does not hold; `at` is the first, `run` how many, `reason` the
    code). A reader may clear it."""

    @abstractmethod
    def __await__(self) -> Generator[Any, Any, Self]:
        """Wait until the broker has accepted the member.

        Raises:
            BrokerError: It is refused: UNKNOWN_CONSUMER, DENIED, …
        """

    @abstractmethod
    def __aiter__(self) -> AsyncIterator[Job]:
        """Iterate over jobs. Ends when the member or the bus is closed.

        Raises:
            BrokerError: From the iteration: CONSUMER_TAKEN; the consumer was removed; the bus has failed for good.
        """

    @abstractmethod
    def batches(self) -> AsyncIterator[JobBatch]:
        """Iterate over batches of jobs as they came, the fastest way: `ack` of one acknowledges all of it."""

    @abstractmethod
    def ack_through(self, job: Job) -> Awaitable[None]:
        """Say that a job is done, and everything that this member was given before it.

        Returns:
            What can be waited for: that it is committed. Nobody has to.
        """

    @property
    @abstractmethod
    def queued(self) -> int:
        """Jobs that have come and were not handed out."""

    @abstractmethod
    def stop(self) -> None:
        """Hand out nothing any more: iterations end. What was handed out can be settled until it is closed."""

    @abstractmethod
    def flush(self) -> Awaitable[None]:
        """Wait until everything that was said is answered. What was refused is told by events."""

    @abstractmethod
    async def close(self, timeout_s: float = 5.0) -> None:
        """Wait until what was said is answered, and stop; what is not settled is given to others.

        Args:
            timeout_s: How long to wait.
        """

    async def __aenter__(self) -> Self:
        return await self

    async def __aexit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()


class Workers(ABC):
    """Functions that work off queues; see `Bus.run_workers`."""

    @abstractmethod
    def __await__(self) -> Generator[Any, Any, None]:
        """Work until this is cancelled.

        Raises:
            BrokerError: A worker cannot start, or cannot go on.
        """

    @abstractmethod
    async def __aenter__(self) -> Self:
        """Begin to work.

        Raises:
            BrokerError: A worker cannot start: INVALID_CONSUMER, CONSUMER_EXISTS, UNKNOWN_CONSUMER, …
        """

    @abstractmethod
    async def __aexit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Take no more jobs, let functions end, and give the rest back."""


class Pipeline(ABC):
    """A loop that consumes, transforms and publishes; see `Bus.pipeline`."""

    @abstractmethod
    def __await__(self) -> Generator[Any, Any, None]:
        """Work until this is cancelled.

        Raises:
            BrokerError: The pipeline cannot start, or cannot go on.
        """

    @abstractmethod
    async def __aenter__(self) -> Self:
        """Begin to work.

        Raises:
            BrokerError: The pipeline cannot start: UNKNOWN_CONSUMER, DENIED, …
        """

    @abstractmethod
    async def __aexit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Take no more jobs, let the batch that is under way end, and give the rest back.

        Raises:
            BrokerError: The pipeline could not go on.
        """


class Bus(ABC):
    """A connection to a broker, wherever it lives. An asynchronous context manager: leaving it closes it."""

    @abstractmethod
    def post(
        self,
        channel: str,
        payload: Payload,
        *,
        headers: Mapping[str, object] | None = None,
        key: bytes | None = None,
        priority: int = 2,
        expiry_s: int | None = None,
        id: str | bytes | None = None,
    ) -> None:
        """Publish without waiting: the message leaves with all others of this turn of the loop.

        It is repeated until it is answered, across reconnects and never twice. A refusal is raised by the next
        `drain` or `flush`. Call `await drain()` now and then: that is what makes a fast publisher wait for a slower
        broker.

        Args:
            channel: The channel's name.
            payload: The bytes, which are never looked into; copied.
            headers: What msgpack can hold; about 16 KiB packed.
            key: 1 to 255 bytes, what the message is about.
            priority: 0 critical, 1 high, 2 normal, 3 low.
            expiry_s: Seconds after which it is no longer delivered, at least 1.
            id: 1 to 64 bytes, or text of as many in UTF-8, that names the message. While the channel remembers it
                (`ids_window_s` and `ids_max` of its profile) another message with this id is not stored: it is answered
                with the position of the first, whoever published that. Only for channels that are stored.

        Raises:
            InvalidChannel: The name can be no channel's.
            RequestError: PAYLOAD_TOO_LARGE, HEADERS_TOO_LARGE, INVALID_ID, INVALID_RECORD, or CLOSED.
            Unavailable: BUSY; more is unanswered than the bus may hold.
        """

    @abstractmethod
    def drain(self) -> Awaitable[None]:
        """Wait until little enough is unanswered to go on posting. Costs next to nothing when that is so already.

        Raises:
            BrokerError: A message that was posted earlier was refused, or its outcome is unknown; raised once.
        """

    @abstractmethod
    def flush(self) -> Awaitable[None]:
        """Wait until everything that was posted is answered.

        Raises:
            BrokerError: As for `drain`.
        """

    @abstractmethod
    def publish(
        self,
        channel: str,
        payload: Payload,
        *,
        headers: Mapping[str, object] | None = None,
        key: bytes | None = None,
        priority: int = 2,
        expiry_s: int | None = None,
        id: str | bytes | None = None,
        expect: Position | None = None,
    ) -> Publication[Receipt]:
        """Publish, and answer where the message was stored and how safely.

        It is posted at once; awaiting only waits. Cancelling the wait does not take the message back.

        Args:
            channel: As for `post`, and so on.
            expect: The position of the channel's newest message: it is stored only if that still is the newest, so of
                several who publish with the same one wins. `Position(0, 0)`: only if the channel never had a message.

        Returns:
            An awaitable of the `Receipt`, which is a future to asyncio; its `duplicate` says that the message was there
            already, under its id or as the same publish repeated.

        Raises:
            BrokerError: At once as `post` does; from the awaitable when it is refused, or COMMIT_UNKNOWN. With
                `expect` CONFLICT, whose `head` is the newest position, or NOT_STORED: the channel is ephemeral.
        """

    @abstractmethod
    def publish_many(
        self,
        channel: str,
        payloads: Iterable[Payload],
        *,
        headers: Mapping[str, object] | None = None,
        key: bytes | None = None,
        priority: int = 2,
        expiry_s: int | None = None,
        ids: Iterable[str | bytes | None] | None = None,
    ) -> Publication[list[Receipt]]:
        """Publish many messages to one channel, and answer where they were stored.

        Args:
            channel, payloads: As for `post`, and so on.
            ids: One for each payload, None for one without.

        Returns:
            An awaitable of receipts in the order of the payloads; messages with consecutive sequences share one.

        Raises:
            BrokerError: As for `publish`. When one is refused, others of them may be stored.
            ValueError: There are more payloads than ids, or fewer.
        """

    @abstractmethod
    def schedule(
        self,
        channel: str,
        payload: Payload,
        *,
        delay_s: float | None = None,
        deliver_at: datetime | float | None = None,
        id: str | bytes | None = None,
        headers: Mapping[str, object] | None = None,
        key: bytes | None = None,
        priority: int = 2,
        expiry_s: int | None = None,
    ) -> Publication[Scheduled]:
        """Have a message published later, once, whatever restarts in between.

        It is stored, synced, when that is answered, and published within 50 ms of its time while the broker has
        processor time left, later when it has none, or when it is there again. Its sequence, and the time of
        `expiry_s`, are those of then. Until then it can be cancelled by its
        channel and id.

        Args:
            channel: As for `publish`, and so on. Its profile stores its messages.
            delay_s: Seconds from now on, by the broker's clock.
            deliver_at: A datetime with a time zone, or seconds since 1970, instead; what is past is due now.
            id: 1 to 64 bytes, a string or bytes; None draws one. While a message of the channel with that id waits,
                another one is not taken: the answer is that one's time, and says so (`duplicate`).

        Returns:
            An awaitable of `Scheduled`.

        Raises:
            BrokerError: At once as `publish` does, INVALID_TIME, INVALID_ID; from the awaitable INVALID_TIME (further
                away than limits.delay_s_max), NOT_STORED (the channel is ephemeral), and as of `publish`.
        """

    @abstractmethod
    async def cancel(self, channel: str, id: str | bytes) -> None:
        """Have a message wait no more; it is committed on return, and the message is never published.

        Raises:
            BrokerError: UNKNOWN_MESSAGE; it does not wait (any more). DENIED, INVALID_CHANNEL, a storage error.
        """

    @abstractmethod
    def delayed(self, prefix: str = "", *, limit: int | None = None) -> AsyncIterator[DelayedMessage]:
        """Iterate over the messages that wait, the earliest first, but for a second here or there; pages by itself.

        What is scheduled, published or cancelled meanwhile is listed or not; far-off messages move now and then, and
        one that does so meanwhile may be missed or listed twice.

        Args:
            prefix: What their channels' names begin with; any text.
            limit: At most so many, from 1.

        Raises:
            BrokerError: From the iteration: DENIED, a storage error.
        """

    @abstractmethod
    def transaction(self) -> Transaction:
        """Begin to put publishes together that happen together or not at all."""

    @abstractmethod
    def subscribe(
        self,
        *filters: str,
        start: Start = "new",
        credit_bytes: int = CREDIT_BYTES_DEFAULT,
        on_event: Callable[[SubscriptionEvent], object] | None = None,
        group: str | None = None,
    ) -> Subscription:
        """Read channels. A message is delivered once, however many of the filters select it.

        Args:
            filters: Channels' names and patterns, at least one.
            start: Where to begin.
            credit_bytes: What may wait for the application, at least 64 KiB.
            on_event: Called with each event, on the loop.
            group: Be a member of a live group, by its name: of the members that read a channel each message goes to
                one, in turn, and a member that lags is passed over. It has no place: it begins with what is published
                from now on, after each reconnect too, and what no member has room for is lost to the group (`dropped`,
                `run` says how many messages). A consumer is what loses nothing.

        Returns:
            The subscription, to be awaited, entered or iterated.

        Raises:
            InvalidPattern: A filter is none.
            RequestError: INVALID_POSITION; `start` does not fit the filters, or a live group.
        """

    @abstractmethod
    async def request(
        self,
        channel: str,
        payload: Payload,
        *,
        headers: Mapping[str, object] | None = None,
        timeout_s: float = REQUEST_TIMEOUT_S,
    ) -> Message:
        """Publish a message that asks for a reply, and wait for that.

        Everybody who subscribes to the channel gets it, or one member of each live group, and whoever calls `respond`
        with it replies. The first reply counts. It is published once: when the connection or the time ends, nobody
        knows whether it was handled, and nothing repeats it.

        On an ephemeral channel to which nobody subscribes it fails at once. On a stored one it is a stored message as
        well, which somebody may yet read: then only the time ends the wait.

        Args:
            channel: As for `post`, and so on.
            headers: `reply-to` among them is the request's own.
            timeout_s: How long to wait, a connection included.

        Returns:
            The reply; its channel and position say nothing.

        Raises:
            Unavailable: NO_RESPONDERS; TIMEOUT; CONNECTION_LOST; BUSY.
            BrokerError: As `post` does, and as the channel's refusal says: DENIED, NO_PROFILE, …
        """

    @abstractmethod
    def respond(self, message: Message, payload: Payload, *, headers: Mapping[str, object] | None = None) -> None:
        """Reply to a request, without waiting. A reply that finds nobody waiting is dropped, and counted.

        Args:
            message: What was received.
            payload: The bytes; copied.
            headers: What msgpack can hold.

        Raises:
            InvalidChannel: It is no request: nobody waits for a reply to it.
            RequestError: PAYLOAD_TOO_LARGE, HEADERS_TOO_LARGE, INVALID_RECORD, or CLOSED.
            Unavailable: BUSY; more is not sent than the bus may hold.
        """

    @abstractmethod
    async def stats(self) -> dict[str, Any]:
        """Answer the broker's own figures."""

    @abstractmethod
    async def channel(self, name: str) -> ChannelInfo:
        """Answer what a channel holds.

        Raises:
            BrokerError: INVALID_CHANNEL, NO_PROFILE, DENIED.
        """

    @abstractmethod
    async def backup(self, path: str, on_progress: Callable[[int, int], object] | None = None) -> str:
        """Copy everything that is stored at this moment, while the broker serves on.

        Args:
            path: An absolute path on the broker's machine, of a folder that is missing or empty.
            on_progress: Called with (bytes done, bytes in all) now and then, on the loop.

        Returns:
            What came of it, for people.

        Raises:
            BrokerError: BUSY, other long work is under way; DENIED; STORAGE_FAILED, with what went wrong.
        """

    @abstractmethod
    def history(
        self,
        channel: str,
        *,
        since: HistorySince = None,
        until: HistoryUntil = None,
        limit: int | None = None,
        reverse: bool = False,
    ) -> History:
        """Read what is stored of a channel, or of what a pattern selects.

        What was answered before the call is there, whatever its durability, but for ephemeral messages, which are
        never read back. A read of one channel ends where the channel ended when its first page was read; one of a
        pattern goes on until it has caught up with what is committed, in the order of the bus.

        Args:
            channel: The channel's name, or a pattern; a pattern is read from a bus position, a time or the start, and
                has no other bounds.
            since, until: The stretch; all that is stored without them.
            limit: At most so many messages, from 1.
            reverse: The newest first.

        Returns:
            The read, to be iterated; nothing is asked for before.

        Raises:
            InvalidChannel, InvalidPattern: It is no name.
            RequestError: INVALID_POSITION; the bounds do not fit the name.
        """

    @abstractmethod
    def channels(
        self, prefix: str = "", *, after: str = "", limit: int | None = None, details: bool = False
    ) -> AsyncIterator[ListedChannel]:
        """Iterate over the names of stored channels, ascending by bytes; pages by itself.

        A channel that is created or removed meanwhile is listed or not; all others are, once.

        Args:
            prefix: What the names begin with; any text, whole tokens or not.
            after: Only names greater than this.
            limit: At most so many, from 1.
            details: Say of each what it holds.

        Raises:
            BrokerError: From the iteration: DENIED, a storage error.
        """

    @abstractmethod
    async def trim(self, name: str, first: int) -> int:
        """Take the messages before a sequence out of a channel, for good.

        Args:
            name: The channel's name.
            first: The oldest sequence to keep, from 1 to one past the newest; at or below the oldest there is, nothing
                happens. What is not committed yet stays.

        Returns:
            The oldest sequence that the channel has now. It is committed.

        Raises:
            BrokerError: DENIED, INVALID_POSITION (past one behind the newest, or there is no such channel), or a
                storage error.
        """

    @abstractmethod
    async def remove(self, name: str) -> None:
        """Remove a channel and all that it holds, for good; it is committed on return.

        Raises:
            BrokerError: BUSY while anybody publishes to it or reads it by its name; DENIED, INVALID_CHANNEL, or a
                storage error.
        """

    @abstractmethod
    async def compact(self, on_progress: Callable[[int, int], object] | None = None) -> str:
        """Give the disk back what was trimmed, expired or removed, so that no file holds it any more.

        Args:
            on_progress: Called with (bytes done, bytes in all), zeros while they are not known, on the loop.

        Returns:
            What came of it, for people.

        Raises:
            BrokerError: BUSY, other long work is under way; DENIED; STORAGE_FAILED, with what went wrong.
        """

    # .. consumers and work queues ..

    @abstractmethod
    async def create_consumer(
        self,
        name: str,
        *filters: str,
        start: Start = "start",
        lease_s: float | None = 30.0,
        attempts_max: int = 0,
        backoff_s: tuple[float, float] = (1.0, 60.0),
        dead_letter: str | None = None,
        paused: bool = False,
        update: bool = False,
    ) -> ConsumerInfo:
        """Make a durable consumer: a reader with a name, whose place the broker keeps.

        One member holds it at a time and gets all messages in order; whoever consumes later takes over. Made again with
        the same settings, nothing changes.

        Args:
            name: A channel's name of at most 200 bytes.
            filters: The channels and patterns that it reads, at least one; they stay as they are.
            start: Where it begins, if it is made.
            lease_s: How long its holder may take over a job; then it, and all after it, come again. None: for ever.
            attempts_max: After so many attempts a job is given up; 0: never.
            backoff_s: How long a job waits that failed: before its second attempt, and at most before later ones.
            dead_letter: A channel that gets a copy of each job that is given up, with the reason in its headers.
            paused: It is made so, and gives out nothing until it is resumed.
            update: Change the settings of one that is there.

        Returns:
            What there is to tell of it.

        Raises:
            BrokerError: INVALID_CONSUMER; CONSUMER_EXISTS, it has other settings; NOT_STORED, a filter names an
                ephemeral channel; INVALID_PATTERN, INVALID_POSITION, DENIED, …
        """

    @abstractmethod
    async def create_queue(
        self,
        name: str,
        *filters: str,
        start: Start = "start",
        lease_s: float = 30.0,
        attempts_max: int = 0,
        backoff_s: tuple[float, float] = (1.0, 60.0),
        dead_letter: str | None = None,
        lanes: bool = False,
        by_key: bool = False,
        paused: bool = False,
        update: bool = False,
    ) -> ConsumerInfo:
        """Make a work queue: a consumer that any number of members share, each message for one of them.

        Args:
            name, filters, start, attempts_max, backoff_s, dead_letter, paused, update: As for `create_consumer`.
            lease_s: How long a member may take over a job; then it is given to another.
            lanes: Jobs go by their priority, and low never starves.
            by_key: At most one job of a key is under way, so that each key's jobs are done in order.

        Raises:
            BrokerError: As for `create_consumer`.
        """

    @abstractmethod
    def consume(
        self,
        name: str,
        *,
        window: int = WINDOW_DEFAULT,
        window_bytes: int = WINDOW_BYTES_DEFAULT,
        on_event: Callable[[SubscriptionEvent], object] | None = None,
    ) -> Consumer:
        """Become a member of a consumer or a work queue.

        Args:
            name: Its name.
            window: Jobs that may be under way to this member: given out and not settled.
            window_bytes: And of how many bytes; one job in any case.
            on_event: Called with each event, on the loop.

        Returns:
            The member, to be awaited, entered or iterated.

        Raises:
            RequestError: INVALID_CONSUMER; that can be no consumer's name.
        """

    @abstractmethod
    def worker(
        self,
        *filters: str,
        queue: str | None = None,
        concurrency: int = 1,
        prefetch: int | None = None,
        **queue_settings: Any,
    ) -> Callable[[FunctionT], FunctionT]:
        """Have a coroutine function work off a queue, when `run_workers` is called: `@bus.worker("jobs.resize")`.

        It is called with each job. When it returns, the job is done; when it raises, the job comes again after the
        queue's back-off; `Reject` gives it up, and `Retry` says when it comes again. It may settle the job itself. The
        job's lease is extended while it runs.

        Args:
            filters: What the queue reads; it is made when the workers start. None: it is there already.
            queue: Its name; the function's name without it.
            concurrency: Jobs that are done at once, from 1.
            prefetch: Jobs that wait in the client besides; as many as `concurrency` without it.
            queue_settings: As for `create_queue`: `lease_s`, `attempts_max`, `dead_letter`, …

        Raises:
            RequestError: INVALID_CONSUMER; it is no coroutine function, or there is nothing to work off.
        """

    @abstractmethod
    def run_workers(self, grace_s: float = GRACE_S) -> Workers:
        """Run the workers: `await bus.run_workers()`, until that is cancelled; or `async with bus.run_workers():`,
        while the block lasts.

        When they stop, no more jobs are taken, functions that run may end, and the rest is given back.

        Args:
            grace_s: How long they may take; then they are cancelled, and their jobs given to others.

        Returns:
            The workers, to be awaited or entered once. Waiting raises why one of them cannot go on.
        """

    @abstractmethod
    def pipeline(
        self,
        source: str,
        transform: Callable[[Job], Any],
        *,
        batch: int = PIPELINE_JOBS,
        batch_bytes: int = PIPELINE_BYTES,
        grace_s: float = GRACE_S,
    ) -> Pipeline:
        """Transform what a consumer or a queue gives out, and publish what is made of it, each job exactly once:
        `await bus.pipeline("orders", price)`, until that is cancelled; or `async with`, while the block lasts.

        The jobs that are there are a batch. Their outputs and their acknowledgements are one transaction: whatever is
        killed or lost, each job has its outputs published once, to stored channels. What the function does besides may
        happen more than once. Any number of pipelines share a queue.

        A function that raises has failed, and its job comes again after the back-off; `Reject` gives it up, and `Retry`
        says when it comes again; the rest of the batch goes on. So it is with a job whose outputs are refused. When
        leases are over, what was made of the batch is dropped, and its jobs come again. Leases are extended meanwhile.

        Args:
            source: Name of a durable consumer or a work queue that is there.
            transform: Called with one job after the other, which it is not to settle. It returns nothing, one output or
                several, or yields them, each an `Output` or a tuple (channel, payload); it may be `async def`.
            batch: Jobs that are taken at once, from 1 to 2,048.
            batch_bytes: And of how many payload bytes; one job in any case.
            grace_s: How long a batch may go on when the pipeline is stopped; then it is cancelled, and its jobs given
                to others.

        Returns:
            The pipeline, to be awaited or entered once. Both raise why it cannot go on.

        Raises:
            RequestError: LIMIT; no batch can be so large.
        """

    @abstractmethod
    async def consumer_info(self, name: str) -> ConsumerInfo:
        """Answer what there is to tell of a consumer or a work queue.

        Raises:
            BrokerError: UNKNOWN_CONSUMER, DENIED.
        """

    @abstractmethod
    def consumers(self, prefix: str = "", *, after: str = "", limit: int | None = None) -> AsyncIterator[ConsumerInfo]:
        """Iterate over consumers and work queues, ascending by name; pages by itself.

        Args:
            prefix: What the names begin with.
            after: Only names greater than this.
            limit: At most so many, from 1.
        """

    @abstractmethod
    async def remove_consumer(self, name: str) -> None:
        """Remove a consumer or a work queue, and what it remembers, for good; messages stay. Members are told.

        Raises:
            BrokerError: UNKNOWN_CONSUMER, DENIED.
        """

    @abstractmethod
    async def pause_consumer(self, name: str) -> ConsumerInfo:
        """Give out nothing until `resume_consumer`, also over restarts. What is under way can be settled.

        Raises:
            BrokerError: UNKNOWN_CONSUMER, DENIED.
        """

    @abstractmethod
    async def resume_consumer(self, name: str) -> ConsumerInfo:
        """Give out jobs again.

        Raises:
            BrokerError: UNKNOWN_CONSUMER, DENIED.
        """

    @abstractmethod
    async def reset_consumer(self, name: str, start: Start) -> ConsumerInfo:
        """Go on somewhere else: what is behind it is done, what is before it comes (again), and leases are void.

        Args:
            name: The consumer's or queue's name.
            start: Where. A position alone is one of its only channel.

        Raises:
            BrokerError: UNKNOWN_CONSUMER, INVALID_POSITION, DENIED.
        """

    @abstractmethod
    async def peek(self, name: str, limit: int = 100) -> list[WaitingJob]:
        """Answer jobs that are not done, the next ones first, without taking them.

        Args:
            name: The consumer's or queue's name.
            limit: At most so many, from 1 to 1,000; of those that are in the broker's memory.

        Raises:
            BrokerError: UNKNOWN_CONSUMER, DENIED.
        """

    @abstractmethod
    async def purge(self, name: str) -> int:
        """Have everything done that there is up to now, under way or not; answer how many jobs waited.

        Raises:
            BrokerError: UNKNOWN_CONSUMER, DENIED.
        """

    @abstractmethod
    async def redrive(self, name: str, limit: int | None = None) -> int:
        """Publish a queue's dead letters to their channels again, and take them from the dead letters.

        Args:
            name: The consumer's or queue's name.
            limit: At most so many, from 1; all there are without it.

        Returns:
            How many.

        Raises:
            BrokerError: UNKNOWN_CONSUMER, INVALID_CONSUMER (it has no dead letters), DENIED.
        """

    @abstractmethod
    async def close(self, timeout_s: float = 5.0) -> None:
        """Wait until everything posted is answered, then end. Calling it again does nothing.

        Args:
            timeout_s: How long to wait; what is unanswered then fails, with COMMIT_UNKNOWN if it was sent.

        Raises:
            BrokerError: A message that was posted and awaited by nobody was refused, or its outcome is unknown.
        """

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()
