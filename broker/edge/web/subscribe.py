"""`GET /v1/subscribe`: what is published from now on, or since, as server-sent events or by long poll.

Without `wait` the answer is a stream that lasts (`event_stream.py`); each event's `id` is a place, and a browser's
`EventSource` goes on behind the last one by itself (`Last-Event-ID`). With `wait` the answer comes with the first
deliveries, or when the time is over, and says in `position` where the next request goes on. Neither leaves a gap.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Final

from broker.edge.web.api import json_answer
from broker.edge.web.arguments import Arguments, parse_place, wrong
from broker.edge.web.event_stream import EventStream
from broker.edge.web.rendering import dump
from broker.edge.web.subscriber import Poll, Wanted
from broker.model.errors import error
from broker.model.names import check_pattern, is_pattern
from broker.model.positions import BusPosition
from broker.node.catchup import INDEX_END
from broker.wire import control

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import Response
    from starlette.types import Receive, Scope, Send

    from broker.edge.web.api import Api, Call

__all__ = ["Subscribe"]

FILTERS_MAX: Final = 100
WAIT_S_MAX: Final = 60.0
LAST_MAX: Final = 1_000_000
QUERY: Final = frozenset({"channel", "after", "since", "last", "from", "wait"})
PASSED_ON: Final = (b"access-control-allow-origin", b"access-control-expose-headers", b"vary")
"""What others add to the head of every answer, and a stream's head has to have as well."""


class Subscribe:
    """The endpoint, as an application of its own: a stream answers by taking the connection over.

    Args:
        api: What endpoints share.
    """

    def __init__(self, api: Api) -> None:
        self._api = api

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        from starlette.requests import Request

        request = Request(scope, receive, send)
        began: list[EventStream] = []

        async def handle(call: Call) -> Response:
            return await self._answer(call, began)

        answer = await self._api.endpoint(handle)(request)
        if began:
            await answer(scope, receive, TakeOver(began[0], scope).send)
        else:
            await answer(scope, receive, send)

    async def _answer(self, call: Call, began: list[EventStream]) -> Response:
        arguments = Arguments(call.request.scope["query_string"], QUERY, frozenset({"channel"}))
        wanted = wanted_of(call, arguments)
        wait_s = arguments.seconds("wait", WAIT_S_MAX)
        identity = await call.identity()
        if wait_s is not None:
            poll = Poll(call.node, identity, wanted, call.api.pulse)
            try:
                await poll.begin()
                await while_connected(call.request, poll.wait(wait_s))
                return json_answer(
                    dump({"position": poll.place})[:-1] + b',"deliveries":[' + b",".join(poll.deliveries) + b"]}"
                )
            finally:
                poll.leave()
        stream = EventStream(call.node, identity, wanted, call.api.pulse)
        await stream.begin()
        began.append(stream)
        return json_answer(b"")


class TakeOver:
    """Stands between an answer and the connection, which it gives to a stream.

    Args:
        stream: It has begun.
        scope: The request's.
    """

    def __init__(self, stream: EventStream, scope: Scope) -> None:
        self._stream = stream
        self._scope = scope

    async def send(self, message: Any) -> None:
        """Take what would have been sent."""
        if message["type"] == "http.response.start":
            headers = [each for each in message["headers"] if each[0] in PASSED_ON]
            self._stream.take_over(self._scope["state"]["connection"], headers)


def wanted_of(call: Call, arguments: Arguments) -> Wanted:
    """Return what a request subscribes to.

    Raises:
        RequestError: MALFORMED_FRAME, INVALID_PATTERN, INVALID_POSITION.
    """
    filters = tuple(dict.fromkeys(arguments.all("channel")))
    if not 1 <= len(filters) <= FILTERS_MAX:
        raise wrong("channel", len(filters), f"1 to {FILTERS_MAX} of it")
    patterns = [name for name in filters if is_pattern(check_pattern(name))]
    literal = filters[0] if len(filters) == 1 and not patterns else None
    start, asked = start_of(call, arguments, literal)
    by_bus = literal is None or isinstance(start, control.FromBus | control.FromTime)
    if literal is None and not patterns and isinstance(start, control.FromNew | control.FromStart):
        # Several channels stand by the bus only if they begin there; else each of them has a position of its own.
        core = call.node.core
        end = core.applied_number if isinstance(start, control.FromNew) else 0
        start = control.FromBus(core.journal, end, INDEX_END if end else 0)
    return Wanted(filters, start, literal, by_bus, asked)


def start_of(call: Call, arguments: Arguments, literal: str | None) -> tuple[control.Start, str | None]:
    """Return where to begin, and the place that was asked for, if it is one.

    A browser that comes back says in `Last-Event-ID` how far it is; what its URL says is from when it began.
    """
    seen = call.request.headers.get("last-event-id")
    after, since = arguments.text("after"), arguments.time("since")
    last, word = arguments.number("last", None, 1, LAST_MAX), arguments.choice("from", ("new", "start"))
    if sum(each is not None for each in (after, since, last, word)) > 1:
        raise wrong("after, since, last, from", "several", "one beginning")
    if seen:
        return place_of("last-event-id", seen, literal), seen
    if after is not None:
        return place_of("after", after, literal), after
    if since is not None:
        return control.FromTime(since), None
    if last is not None:
        if literal is None:
            raise error("INVALID_POSITION", "last: got several channels or a pattern, expected one channel")
        return control.FromLast(last), None
    return (control.FromStart() if word == "start" else control.FromNew()), None


def place_of(name: str, text: str, literal: str | None) -> control.Start:
    """Return the start behind a place that a text names."""
    place = parse_place(name, text)
    if isinstance(place, BusPosition):
        return control.FromBus(*place)
    if literal is None:
        raise error("INVALID_POSITION", f"{name}: got a position of one channel, expected journal:group:index")
    if place.epoch == 0 and place.sequence:
        raise wrong(name, text, "epoch:sequence")
    return control.FromPositions(((literal, place.epoch, place.sequence),))


async def while_connected(request: Request, work: Any) -> None:
    """Wait for something as long as the client does.

    Raises:
        BrokerError: What the work raises; CONNECTION_LOST, when nobody is there any more to be answered.
    """

    async def hear_the_end() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    waiting, ending = asyncio.ensure_future(work), asyncio.ensure_future(hear_the_end())
    try:
        await asyncio.wait((waiting, ending), return_when=asyncio.FIRST_COMPLETED)
        if not waiting.done():
            raise error("CONNECTION_LOST", "the client has left")
        waiting.result()
    finally:
        for task in (waiting, ending):
            task.cancel()
        await asyncio.gather(waiting, ending, return_exceptions=True)
