"""`GET /v1/history`: a page of what is stored of a channel, or of what a pattern selects.

A page has at most `MESSAGES_MAX` messages and about a megabyte, and says where the next one begins. It is read and
rendered a chunk at a time, and the loop is given back between two of them: nobody waits for a page of somebody else.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

from broker.bus import Last
from broker.edge.web.api import json_answer
from broker.edge.web.arguments import Arguments, parse_place, since_of, until_of, wrong
from broker.edge.web.rendering import channel_fields, delivery, dump
from broker.model.names import check_pattern, is_pattern
from broker.model.positions import BusPosition, Position

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from starlette.responses import Response

    from broker.bus import History, HistorySince, HistoryUntil
    from broker.edge.web.api import Call
    from broker_native.messages import Batch

__all__ = ["history"]

MESSAGES_MAX: Final = 1_000
MESSAGES_DEFAULT: Final = 100
PAGE_BYTES: Final = 1024 * 1024
"""Of a page's chunks; the last one may go beyond."""
QUERY: Final = frozenset({"channel", "after", "since", "before", "until", "last", "limit", "reverse"})


async def history(call: Call) -> Response:
    """Answer a page."""
    arguments = Arguments(call.request.scope["query_string"], QUERY)
    channel = arguments.needed("channel")
    pattern = is_pattern(check_pattern(channel))
    limit = arguments.number("limit", MESSAGES_DEFAULT, 1, MESSAGES_MAX)
    since, until, reverse = since_where(arguments), until_where(arguments), arguments.flag("reverse")
    lent = await call.bus()
    async with lent as bus:
        if pattern:
            # Its bounds are refused with the others that hold for one channel only.
            read = bus.history(channel, since=since, until=until, reverse=reverse)
        else:
            read = bus.history(channel, since=since, until=until, limit=limit, reverse=reverse)
        page = Page(read, limit)
        await page.fill()
    return json_answer(page.answer(channel, pattern, reverse))


def since_where(arguments: Arguments) -> HistorySince:
    """Return where a read begins.

    Raises:
        RequestError: MALFORMED_FRAME; there are two beginnings, or one is none.
    """
    after, since, last = arguments.text("after"), since_of(arguments), arguments.number("last", None, 1, MESSAGES_MAX)
    if sum(each is not None for each in (after, since, last)) > 1:
        raise wrong("after, since, last", "several", "one beginning")
    if last is not None:
        return Last(last)
    return since if after is None else parse_place("after", after)


def until_where(arguments: Arguments) -> HistoryUntil:
    """Return where it ends."""
    before, until = arguments.text("before"), until_of(arguments)
    if before is None:
        return until
    if until is not None:
        raise wrong("before, until", "both", "one end")
    place = parse_place("before", before)
    if isinstance(place, BusPosition) or place.sequence < 1:
        raise wrong("before", before, "sequence or epoch:sequence, from 1")
    return Position(place.epoch, place.sequence - 1)


class Page:
    """Chunks until there are enough.

    Args:
        read: Where from.
        limit: Messages that are enough.
    """

    def __init__(self, read: History, limit: int) -> None:
        self._read = read
        self._limit = limit
        self._chunks: list[bytes] = []
        self._last: Batch | None = None
        self._lowest: Position | None = None
        self._ended = False

    async def fill(self) -> None:
        """Read."""
        messages = size = 0
        batches: AsyncIterator[Batch] = self._read.batches()
        async for batch in batches:
            self._chunks.append(delivery(batch))
            self._last = batch
            self._lowest = Position(batch.epoch, batch.first)
            messages += len(batch)
            size += batch.size_bytes
            if messages >= self._limit or size >= PAGE_BYTES:
                break
            await asyncio.sleep(0)
        else:
            self._ended = True

    def answer(self, channel: str, pattern: bool, reverse: bool) -> bytes:
        """Return the page as JSON."""
        fields: dict[str, object] = {"channel": channel}
        info = self._read.info
        if info is not None:
            fields["info"] = channel_fields(info)
        if self._read.events:
            told = self._read.events[-1]
            fields["outcome"] = told.name
            fields["at"] = told.at
        fields["next"] = self._next(pattern, reverse)
        return dump(fields)[:-1] + b',"chunks":[' + b",".join(self._chunks) + b"]}"

    def _next(self, pattern: bool, reverse: bool) -> dict[str, str] | None:
        """Return the argument that the next page has instead; None when this one was the last."""
        last = self._last
        if pattern:
            if not self._ended and last is not None and last.bus_position is not None:
                return {"after": str(last.bus_position)}
            return None
        if last is None or self._lowest is None:
            return None
        info = self._read.info
        if reverse:
            more = info is None or self._lowest.sequence > info.first
            return {"before": str(self._lowest)} if more else None
        more = not self._ended or (info is not None and last.last < info.head)
        return {"after": str(last.position)} if more else None
