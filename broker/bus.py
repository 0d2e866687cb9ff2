"""The one interface of the broker: what a program does with it, whichever home it lives in.

An embedded broker, a connection to a server and a connection to a fleet are all a `Bus`, with the same semantics; a
program takes one as an argument and does not ask which.

All calls belong to the event loop on which the bus was opened. What is published to one channel by one bus is stored
and delivered in the order of the calls. Between channels there is no order.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeAlias

if TYPE_CHECKING:
    from collections import deque
    from collections.abc import AsyncIterator, Awaitable, Callable, Generator, Iterable, Mapping
    from datetime import datetime
    from types import TracebackType
    from typing import Self

    from broker.model.levels import Level
    from broker.model.positions import BusPosition, Position
    from broker_native.messages import Batch, Message
    from broker_native.posting import Publication, Receipt, Scheduled

__all__ = [
    "Bus",
    "ChannelInfo",
    "DelayedMessage",
    "History",
    "HistorySince",
    "HistoryUntil",
    "Last",
    "ListedChannel",
    "Payload",
    "Since",
    "Start",
    "Subscription",
    "SubscriptionEvent",
    "Transaction",
    "Until",
]

Payload: TypeAlias = bytes | bytearray | memoryview

CREDIT_BYTES_DEFAULT = 4 * 1024 * 1024


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
        run: how many messages are `gone`, else 0.
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
    async def __aenter__(self) -> Self:
        """Begin to put it together."""

    @abstractmethod
    async def __aexit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Commit it, or abandon it when there was an exception."""


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

        Raises:
            InvalidChannel: The name can be no channel's.
            RequestError: PAYLOAD_TOO_LARGE, HEADERS_TOO_LARGE, INVALID_RECORD, or CLOSED.
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
        expect: Position | None = None,
    ) -> Publication[Receipt]:
        """Publish, and answer where the message was stored and how safely.

        It is posted at once; awaiting only waits. Cancelling the wait does not take the message back.

        Args:
            channel: As for `post`, and so on.
            expect: The position of the channel's newest message: it is stored only if that still is the newest, so of
                several who publish with the same one wins. `Position(0, 0)`: only if the channel never had a message.

        Returns:
            An awaitable of the `Receipt`, which is a future to asyncio.

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
    ) -> Publication[list[Receipt]]:
        """Publish many messages to one channel, and answer where they were stored.

        Returns:
            An awaitable of receipts in the order of the payloads; messages with consecutive sequences share one.

        Raises:
            BrokerError: As for `publish`. When one is refused, others of them may be stored.
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

        It is stored, synced, when that is answered, and published at most 50 ms after its time, or when the broker is
        there again. Its sequence, and the time of `expiry_s`, are those of then. Until then it can be cancelled by its
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
    ) -> Subscription:
        """Read channels. A message is delivered once, however many of the filters select it.

        Args:
            filters: Channels' names and patterns, at least one.
            start: Where to begin.
            credit_bytes: What may wait for the application, at least 64 KiB.
            on_event: Called with each event, on the loop.

        Returns:
            The subscription, to be awaited, entered or iterated.

        Raises:
            InvalidPattern: A filter is none.
            RequestError: INVALID_POSITION; `start` does not fit the filters.
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
