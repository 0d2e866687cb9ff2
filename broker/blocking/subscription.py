"""A subscription whose readers are threads. What it is and how it goes on: `broker.remote.subscription`."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from broker.blocking.reading import Reader, Stream
from broker.remote.subscription import RemoteSubscription
from broker_native.messages import Cursor

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from broker.blocking.client import Client
    from broker.bus import Start, SubscriptionEvent
    from broker.model.errors import BrokerError
    from broker_native.messages import Batch, Message


class Subscription(Reader, RemoteSubscription):
    """A stream of messages, each delivered once and in its channel's order. Use `Client.subscribe`.

    It survives reconnects by itself and resumes exactly. What is delivered waits in at most `credit_bytes` of memory; a
    reader that is slower than that is caught up from the log. Leaving an iteration early loses nothing: the next one
    goes on.

    Any number of threads may read it, and close it, at once: each message goes to one of them, and order is kept within
    each, not between them. Leaving its `with` block closes it. A call that a signal interrupts while it waits has taken
    nothing; one that is interrupted as it returns may take what it was about to return with it.
    """

    def __init__(
        self,
        client: Client,
        filters: tuple[str, ...],
        start: Start,
        credit_bytes: int,
        on_event: Callable[[SubscriptionEvent], object] | None,
        on_batch: Callable[[Batch], object] | None = None,
        group: str | None = None,
    ) -> None:
        super().__init__(client, filters, start, credit_bytes, on_event, group=group)
        self._set_up(client, f"subscription of {' '.join(filters)}")
        self._on_batch = on_batch
        if on_batch is not None:
            self._push = self._hand_out

    # .. reading ..

    def __iter__(self) -> Iterator[Message]:
        """Iterate over messages. Ends when the subscription or the bus is closed.

        Raises:
            BrokerError: From the iteration: the subscription or the bus has failed for good.
        """
        return self.messages()

    def messages(self, timeout_s: float | None = None) -> Iterator[Message]:
        """The same, and it ends as well when no message has come for so long; None: never."""
        return Stream(self._read_message, timeout_s)

    def batches(self, timeout_s: float | None = None) -> Iterator[Batch]:
        """Iterate over batches: runs of consecutive messages of one channel, the fastest way to read.

        Args:
            timeout_s: It ends as well when none has come for so long; None: never.
        """
        return Stream(self._read_batch, timeout_s)

    def next(self, timeout_s: float | None = None) -> Message | None:
        """Return the next message; None when none comes in time.

        Args:
            timeout_s: How long to wait, 0 for what is at hand; None for the bus' own timeout.

        Raises:
            BrokerError: CLOSED; the subscription or the bus is closed, or has failed for good.
        """
        return self._next(self._read_message, timeout_s)

    def next_batch(self, timeout_s: float | None = None) -> Batch | None:
        """Return the next batch; None when none comes in time. As `next` otherwise."""
        return self._next(self._read_batch, timeout_s)

    def next_batches(self, timeout_s: float | None = None) -> list[Batch]:
        """Wait for a batch, and return all that are at hand; none when none comes in time. As `next` otherwise.

        One lock and at most one wait for all that whole reads of the socket have brought.
        """
        first = self.next_batch(timeout_s)
        if first is None:
            return []
        found = [first]
        with self._client.lock:
            while (batch := self._cursor.take_now(True)) is not None:
                found.append(batch)
        return found

    def _read_message(self, timeout_s: float | None) -> Message | None:
        return cast("Message | None", self._take(False, timeout_s))

    def _read_batch(self, timeout_s: float | None) -> Batch | None:
        return cast("Batch | None", self._take(True, timeout_s))

    def _hand_out(self, batch: Batch) -> None:
        """Have the application called with a batch instead of keeping it; it is consumed when it is called."""
        assert self._on_batch is not None
        if len(batch):
            self._client.call_outside(self._on_batch, batch)
        self._cursor.pass_over(batch)

    # .. the end ..

    def close(self) -> None:
        """Stop. What waits to be read is dropped, and iterations end. Calling it again does nothing."""
        with self._client.lock:
            self.end()

    def on_forked(self, failure: BrokerError) -> None:
        """This is a child process, and the subscription is its parent's, with all that it has received."""
        self._cursor = Cursor(None, self._credit_bytes, self._on_consumed)
        self._closed = True
        self._failure = failure
        self._connection = None
