"""Reading back what is stored, for a thread. What is asked for: `broker.remote.pages`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from broker.blocking.waiting import Deadline
from broker.model.errors import BrokerError, Remedy

if TYPE_CHECKING:
    from collections import deque
    from collections.abc import Iterator, Mapping

    from broker.blocking.questions import Questions
    from broker.bus import ChannelInfo, SubscriptionEvent
    from broker.model.positions import BusPosition
    from broker.remote.pages import Pages
    from broker_native.messages import Batch, Message

__all__ = ["History"]


class History:
    """A read of what is stored, which pages by itself and ends. It belongs to one thread.

    Iterate it, or take `batches()`; they share one place, and leaving an iteration early loses nothing but the rest of
    its batch.

    Args:
        client: Who asks.
        pages: What for.
        timeout_s: How long to wait for each page; None for the bus' own timeout.
    """

    def __init__(self, client: Questions, pages: Pages, timeout_s: float | None) -> None:
        self.events: deque[SubscriptionEvent] = pages.events
        """`trimmed` or `diverged`, if the position that was asked for was not simply found."""
        self._client = client
        self._pages = pages
        self._timeout_s = client.timeout_s if timeout_s is None else timeout_s
        self._batches = self._read()

    @property
    def info(self) -> ChannelInfo | None:
        """What the channel held when the first page was read; None before that, and for a pattern."""
        return self._pages.info

    @property
    def bus_position(self) -> BusPosition | None:
        """Where a read of a pattern goes on: behind all pages so far. None for a channel's, and before it began."""
        return self._pages.bus_position

    def batches(self) -> Iterator[Batch]:
        """Iterate over batches: runs of consecutive messages of one channel, each ascending."""
        return self._batches

    def __iter__(self) -> Iterator[Message]:
        """Iterate over messages, oldest first, or newest first if it was asked for in reverse.

        Raises:
            BrokerError: From the iteration: DENIED, NO_PROFILE, a storage error, TIMEOUT, …
        """
        for batch in self._batches:
            yield from reversed(list(batch)) if self._pages.reverse else batch

    def messages(self) -> list[Message]:
        """Read all that is left."""
        return list(self)

    def _read(self) -> Iterator[Batch]:
        while (arguments := self._pages.next()) is not None:
            fields = self._ask(arguments)
            yield from self._pages.take(fields, self._client.journal)

    def _ask(self, arguments: Mapping[str, object]) -> dict[str, Any]:
        """Ask for a page; again on the next connection if this one is lost."""
        deadline = Deadline(self._timeout_s)
        while True:
            try:
                return self._client.ask_by(deadline, "history", arguments)
            except BrokerError as failure:
                if failure.remedy is not Remedy.RESUME:
                    raise
