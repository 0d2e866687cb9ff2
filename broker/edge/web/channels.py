"""`GET /v1/channels`, `/v1/channels/NAME`, `/v1/consumers` and `/v1/consumers/NAME`: what there is."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from broker.edge.web.api import json_answer
from broker.edge.web.arguments import Arguments
from broker.edge.web.rendering import channel_fields, dump
from broker.model.consumers import check_consumer
from broker.model.names import check_channel

if TYPE_CHECKING:
    from starlette.responses import Response

    from broker.bus import ListedChannel
    from broker.edge.web.api import Call
    from broker.model.consumers import ConsumerInfo

__all__ = ["channel", "channels", "consumer", "consumers"]

CHANNELS_MAX: Final = 1_000
CONSUMERS_MAX: Final = 100
LISTING: Final = frozenset({"prefix", "after", "limit", "details"})
NOTHING: Final[frozenset[str]] = frozenset()


async def channels(call: Call) -> Response:
    """Answer a page of the names of stored channels."""
    arguments = Arguments(call.request.scope["query_string"], LISTING)
    limit = arguments.number("limit", CHANNELS_MAX // 10, 1, CHANNELS_MAX)
    details = arguments.flag("details")
    prefix, after = arguments.text("prefix") or "", arguments.text("after") or ""
    lent = await call.bus()
    async with lent as bus:
        rows = [row_fields(each) async for each in bus.channels(prefix, after=after, limit=limit, details=details)]
    return json_answer(dump({"channels": rows, "next": next_of(rows, limit)}))


async def channel(call: Call) -> Response:
    """Answer what a channel holds."""
    Arguments(call.request.scope["query_string"], NOTHING)
    name = call.request.path_params["name"]
    check_channel(name)
    lent = await call.bus()
    async with lent as bus:
        info = await bus.channel(name)
    return json_answer(dump({"name": name, **channel_fields(info)}))


async def consumers(call: Call) -> Response:
    """Answer a page of the consumers and work queues."""
    arguments = Arguments(call.request.scope["query_string"], LISTING - {"details"})
    limit = arguments.number("limit", CONSUMERS_MAX, 1, CONSUMERS_MAX)
    prefix, after = arguments.text("prefix") or "", arguments.text("after") or ""
    lent = await call.bus()
    async with lent as bus:
        rows = [consumer_fields(info) async for info in bus.consumers(prefix, after=after, limit=limit)]
    return json_answer(dump({"consumers": rows, "next": next_of(rows, limit)}))


async def consumer(call: Call) -> Response:
    """Answer what there is to tell of a consumer or a work queue."""
    Arguments(call.request.scope["query_string"], NOTHING)
    name = call.request.path_params["name"]
    check_consumer(name)
    lent = await call.bus()
    async with lent as bus:
        info = await bus.consumer_info(name)
    return json_answer(dump(consumer_fields(info)))


def next_of(rows: list[dict[str, object]], limit: int) -> dict[str, object] | None:
    """Return the argument that the next page has; None when this one was the last."""
    return {"after": rows[-1]["name"]} if len(rows) == limit else None


def row_fields(listed: ListedChannel) -> dict[str, object]:
    """Return a channel of a listing as JSON has it."""
    return {"name": listed.name, **({} if listed.info is None else channel_fields(listed.info))}


def consumer_fields(info: ConsumerInfo) -> dict[str, object]:
    """Return what there is to tell of a consumer as JSON has it."""
    settings = info.settings
    fields: dict[str, Any] = {
        "name": settings.name,
        "filters": list(settings.filters),
        "mode": settings.mode,
        "lease_ms": settings.lease_ms,
        "attempts_max": settings.attempts_max,
        "backoff_ms": list(settings.backoff_ms),
        "lanes": settings.lanes,
        "by_key": settings.by_key,
        "paused": settings.paused,
        "members": info.members,
        "ready": info.ready,
        "leased": info.leased,
        "delayed": info.delayed,
        "acked": info.acked,
        "redelivered": info.redelivered,
        "dead": info.dead,
        "lag": info.lag,
        "held_channels": info.held_channels,
        "held_bytes": info.held_bytes,
    }
    if settings.dead_letter is not None:
        fields["dead_letter"] = settings.dead_letter
    if info.bus is not None:
        fields["bus"] = str(info.bus)
    if info.positions:
        fields["positions"] = {name: f"{epoch}:{sequence}" for name, epoch, sequence in info.positions}
    return fields
