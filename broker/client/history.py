"""Reading back what is stored, page by page, over a client's requests.

A read is bounded by what the first answer found, so it ends however fast the channel grows. A connection that is lost
in the middle costs nothing but time: the next page is asked for on the next one.
"""

from __future__ import annotations

from abc import abstractmethod
from collections import deque
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Protocol

from broker.bus import ChannelInfo, History, Last, Since, SubscriptionEvent, Until
from broker.model.errors import BrokerError, Remedy, error
from broker.model.history import BusQuery, HistoryPart, HistoryQuery
from broker.model.levels import Level
from broker.model.names import check_channel, check_pattern, is_pattern
from broker.model.positions import BusPosition, Position
from broker.wire import requests
from broker_native.messages import FrameReader

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping

    from broker.bus import HistorySince, HistoryUntil
    from broker_native.messages import Batch, Message

__all__ = ["make_history"]

EVENTS_KEPT = 256


class Requester(Protocol):
    """What a read needs of its client."""

    async def ask(self, operation: str, arguments: Mapping[str, object]) -> dict[str, Any]:
        """Send a request and wait for its answer."""

    @property
    def journal(self) -> bytes:
        """Identity of the journal of the server that answered last."""


def make_history(
    client: Requester, name: str, since: HistorySince, until: HistoryUntil, limit: int | None, reverse: bool
) -> History:
    """Return the read that `Bus.history` describes.

    Raises:
        InvalidChannel, InvalidPattern: It is no name.
        RequestError: INVALID_POSITION; the bounds do not fit the name.
    """
    if limit is not None and limit < 1:
        raise error("INVALID_POSITION", f"history: got a limit of {limit}, expected at least 1 message")
    if is_pattern(name.encode("utf-8", "replace")) or isinstance(since, BusPosition):
        return BusHistory(client, name, since, until, limit, reverse)
    return ChannelHistory(client, name, since, until, limit, reverse)


class PagedHistory(History):
    """What both kinds of reads share: pages in, messages out, each once."""

    def __init__(self, client: Requester, limit: int | None, *, reverse: bool) -> None:
        self.events: deque[SubscriptionEvent] = deque(maxlen=EVENTS_KEPT)
        self.info: ChannelInfo | None = None
        self._client = client
        self._journal: bytes | None = None
        self._left = limit
        self._reverse = reverse
        self._batches = self._read()

    @abstractmethod
    async def _next_page(self) -> list[Batch] | None:
        """Return the next page's batches, in the order in which they are handed out; None when there is no more."""

    async def _read(self) -> AsyncIterator[Batch]:
        while self._left != 0:
            page = await self._next_page()
            if page is None:
                return
            for batch in page:
                if self._left is not None:
                    self._left -= len(batch)
                # One without messages has nothing but runs that are gone.
                if len(batch):
                    yield batch

    def batches(self) -> AsyncIterator[Batch]:
        return self._batches

    async def _messages(self) -> AsyncIterator[Message]:
        async for batch in self._batches:
            for message in reversed(list(batch)) if self._reverse else batch:
                yield message

    def __aiter__(self) -> AsyncIterator[Message]:
        return self._messages()

    async def messages(self) -> list[Message]:
        return [message async for message in self]

    async def _ask(self, arguments: Mapping[str, object]) -> dict[str, Any]:
        """Ask for a page; again on the next connection if this one is lost."""
        while True:
            try:
                fields = await self._client.ask("history", arguments)
            except BrokerError as failure:
                if failure.remedy is Remedy.RESUME:
                    continue
                raise
            journal = self._client.journal
            if self._journal not in (None, journal):
                raise error("INVALID_POSITION", "history: the server has another journal than when the read began")
            self._journal = journal
            return fields

    def _reader(self) -> FrameReader:
        reader = FrameReader(error, 0)
        reader.journal = self._journal or b""
        return reader


class ChannelHistory(PagedHistory):
    """A read of one channel."""

    def __init__(
        self,
        client: Requester,
        name: str,
        since: HistorySince,
        until: HistoryUntil,
        limit: int | None,
        reverse: bool,
    ) -> None:
        check_channel(name)
        super().__init__(client, limit, reverse=reverse)
        query = HistoryQuery(name, reverse=reverse)
        match since:
            case Position(epoch, sequence):
                query = query._replace(after=sequence, after_epoch=epoch)
            case Since(time_us):
                query = query._replace(from_us=time_us)
            case Last(messages):
                query = query._replace(last=messages)
        match until:
            case Position(_, sequence):
                query = query._replace(before=sequence + 1)
            case Until(time_us):
                query = query._replace(until_us=time_us)
        self._query: HistoryQuery | None = query

    @property
    def bus_position(self) -> BusPosition | None:
        return None

    async def _next_page(self) -> list[Batch] | None:
        query = self._query
        if query is None:
            return None
        if self._left is not None:
            # Sequences are as many as messages or more.
            query = query._replace(limit=self._left)
        part = requests.decode_history_part(await self._ask(requests.pack_query(query)))
        if self.info is None:
            self.info = ChannelInfo(part.epoch, part.first, part.head, Level(part.level))
        self._tell(query, part)
        self._query = None
        if part.more:
            self._query = HistoryQuery(query.channel, after=part.after, before=part.before, reverse=self._reverse)
        batches = self._reader().chunks(part.chunks, query.channel)
        if self._reverse:
            batches.reverse()
        return batches

    def _tell(self, query: HistoryQuery, part: HistoryPart) -> None:
        """Keep what the server says of the position that was asked for, unless it was simply found."""
        if part.outcome not in (None, "resumed"):
            # Outcomes of later versions are `diverged` to us.
            name = "trimmed" if part.outcome == "trimmed" else "diverged"
            self.events.append(SubscriptionEvent(name, query.channel, part.epoch, part.at))


class BusHistory(PagedHistory):
    """A read of what a pattern selects, in the order of the bus."""

    def __init__(
        self,
        client: Requester,
        pattern: str,
        since: HistorySince,
        until: HistoryUntil,
        limit: int | None,
        reverse: bool,
    ) -> None:
        check_pattern(pattern)
        super().__init__(client, limit, reverse=False)
        if reverse or until is not None or limit is not None or isinstance(since, Position | Last):
            raise error(
                "INVALID_POSITION",
                f"history of {pattern}: got a bound that holds for one channel only",
                "Read patterns forwards, since a bus position or a time, and stop when it is enough.",
            )
        self._query = BusQuery(pattern)
        if isinstance(since, BusPosition):
            self._query = replace(self._query, bus=since)
        elif isinstance(since, Since):
            self._query = replace(self._query, from_us=since.time_us)
        self._position: BusPosition | None = since if isinstance(since, BusPosition) else None
        self._ended = False

    @property
    def bus_position(self) -> BusPosition | None:
        return self._position

    async def _next_page(self) -> list[Batch] | None:
        if self._ended:
            return None
        part = requests.decode_bus_part(await self._ask(requests.pack_query(self._query)))
        if part.outcome != "resumed":
            self.events.append(SubscriptionEvent("diverged", "", 0, part.bus.group))
        self._ended = not part.more
        self._position = part.bus
        self._query = BusQuery(self._query.pattern, part.bus)
        reader = self._reader()
        return [
            batch
            for chunk in part.chunks
            for batch in reader.chunks(chunk.chunk, chunk.channel, chunk.group, chunk.index)
        ]
