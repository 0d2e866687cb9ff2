"""Reading back what is stored, page by page: what to ask for next, and what an answer brings.

Pure; who asks waits in its own way. A read is bounded by what the first answer found, so it ends however fast the
channel grows. A connection that is lost in the middle costs nothing but time: the same page is asked for on the next.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from broker.bus import ChannelInfo, Last, ListedChannel, Since, SubscriptionEvent, Until
from broker.model.errors import error
from broker.model.history import NAMES_MAX, BusQuery, HistoryPart, HistoryQuery, NamesQuery
from broker.model.levels import Level
from broker.model.names import check_channel, check_pattern, is_pattern
from broker.model.positions import BusPosition, Position
from broker.wire import requests
from broker_native.messages import FrameReader

if TYPE_CHECKING:
    from collections.abc import Mapping

    from broker.bus import HistorySince, HistoryUntil
    from broker_native.messages import Batch

__all__ = ["NamesPages", "Pages", "make_pages"]

EVENTS_KEPT = 256


def make_pages(name: str, since: HistorySince, until: HistoryUntil, limit: int | None, reverse: bool) -> Pages:
    """Return the read that `Bus.history` describes.

    Raises:
        InvalidChannel, InvalidPattern: It is no name.
        RequestError: INVALID_POSITION; the bounds do not fit the name.
    """
    if limit is not None and limit < 1:
        raise error("INVALID_POSITION", f"history: got a limit of {limit}, expected at least 1 message")
    if is_pattern(name.encode("utf-8", "replace")) or isinstance(since, BusPosition):
        return BusPages(name, since, until, limit, reverse)
    return ChannelPages(name, since, until, limit, reverse)


class Pages(ABC):
    """What both kinds of reads share: pages in, batches out, each once.

    Ask the server for `history` with what `next` returns, and hand the answer to `take`, until `next` returns None.
    """

    def __init__(self, limit: int | None, *, reverse: bool) -> None:
        self.events: deque[SubscriptionEvent] = deque(maxlen=EVENTS_KEPT)
        self.info: ChannelInfo | None = None
        self.reverse = reverse
        self._journal: bytes | None = None
        self._left = limit

    bus_position: BusPosition | None = None

    @abstractmethod
    def _ask(self) -> Mapping[str, object] | None:
        """Return what to ask for; None when there is no more."""

    @abstractmethod
    def _take(self, fields: dict[str, Any]) -> list[Batch]:
        """Return the page's batches, in the order in which they are handed out."""

    def next(self) -> Mapping[str, object] | None:
        """Return the arguments of the next request; None when the read is over."""
        return None if self._left == 0 else self._ask()

    def take(self, fields: dict[str, Any], journal: bytes) -> list[Batch]:
        """Take an answer; returns its batches, none of them without messages.

        Args:
            fields: The answer.
            journal: Identity of the journal of the server that gave it.

        Raises:
            RequestError: INVALID_POSITION; that is another journal than before.
        """
        if self._journal not in (None, journal):
            raise error("INVALID_POSITION", "history: the server has another journal than when the read began")
        self._journal = journal
        batches = self._take(fields)
        if self._left is not None:
            self._left -= sum(map(len, batches))
        # One without messages has nothing but runs that are gone.
        return [batch for batch in batches if len(batch)]

    def _reader(self) -> FrameReader:
        reader = FrameReader(error, 0)
        reader.journal = self._journal or b""
        return reader


class ChannelPages(Pages):
    """A read of one channel."""

    def __init__(self, name: str, since: HistorySince, until: HistoryUntil, limit: int | None, reverse: bool) -> None:
        check_channel(name)
        super().__init__(limit, reverse=reverse)
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

    def _ask(self) -> Mapping[str, object] | None:
        if self._query is None:
            return None
        if self._left is not None:
            # Sequences are as many as messages or more.
            self._query = self._query._replace(limit=self._left)
        return requests.pack_query(self._query)

    def _take(self, fields: dict[str, Any]) -> list[Batch]:
        query = self._query
        assert query is not None
        part = requests.decode_history_part(fields)
        if self.info is None:
            self.info = ChannelInfo(part.epoch, part.first, part.head, Level(part.level))
        self._tell(query, part)
        self._query = None
        if part.more:
            self._query = HistoryQuery(query.channel, after=part.after, before=part.before, reverse=self.reverse)
        batches = self._reader().chunks(part.chunks, query.channel)
        if self.reverse:
            batches.reverse()
        return batches

    def _tell(self, query: HistoryQuery, part: HistoryPart) -> None:
        """Keep what the server says of the position that was asked for, unless it was simply found."""
        if part.outcome not in (None, "resumed"):
            # Outcomes of later versions are `diverged` to us.
            name = "trimmed" if part.outcome == "trimmed" else "diverged"
            self.events.append(SubscriptionEvent(name, query.channel, part.epoch, part.at))


class BusPages(Pages):
    """A read of what a pattern selects, in the order of the bus."""

    def __init__(
        self, pattern: str, since: HistorySince, until: HistoryUntil, limit: int | None, reverse: bool
    ) -> None:
        check_pattern(pattern)
        super().__init__(limit, reverse=False)
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
        self.bus_position = since if isinstance(since, BusPosition) else None
        self._ended = False

    def _ask(self) -> Mapping[str, object] | None:
        return None if self._ended else requests.pack_query(self._query)

    def _take(self, fields: dict[str, Any]) -> list[Batch]:
        part = requests.decode_bus_part(fields)
        if part.outcome != "resumed":
            self.events.append(SubscriptionEvent("diverged", "", 0, part.bus.group))
        self._ended = not part.more
        self.bus_position = part.bus
        self._query = BusQuery(self._query.pattern, part.bus)
        reader = self._reader()
        return [
            batch
            for chunk in part.chunks
            for batch in reader.chunks(chunk.chunk, chunk.channel, chunk.group, chunk.index)
        ]


class NamesPages:
    """A listing of channels, as `Bus.channels` describes it; driven as `Pages` is, with `channels`."""

    def __init__(self, prefix: str, after: str, limit: int | None, *, details: bool) -> None:
        self._query = NamesQuery(prefix, after, NAMES_MAX, details)
        self._left = limit
        self._ended = False

    def next(self) -> Mapping[str, object] | None:
        """Return the arguments of the next request; None when the listing is over."""
        if self._ended or (self._left is not None and self._left <= 0):
            return None
        self._query = replace(self._query, limit=NAMES_MAX if self._left is None else min(self._left, NAMES_MAX))
        return requests.pack_query(self._query)

    def take(self, fields: dict[str, Any]) -> list[ListedChannel]:
        """Take an answer."""
        part = requests.decode_names_part(fields)
        self._ended = not part.more or not part.channels
        if part.channels:
            self._query = replace(self._query, after=part.channels[-1].name)
        if self._left is not None:
            self._left -= len(part.channels)
        return [
            ListedChannel(name, ChannelInfo(epoch, first, head, Level(level)) if level else None)
            for name, epoch, first, head, level in part.channels
        ]
