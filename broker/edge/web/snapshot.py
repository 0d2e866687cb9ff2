"""`/v1/stats`: the broker as it is at this moment, for the console and for whoever watches by program.

One JSON object, put together on the loop in a millisecond or so: every list in it has a bound, and says whether there
is more. Numbers that JavaScript cannot hold are text, as everywhere in the web's dialect.
"""

from __future__ import annotations

import os
import platform
from dataclasses import asdict
from itertools import islice
from typing import TYPE_CHECKING, Any, Final

from starlette.responses import JSONResponse

from broker._version import __version__
from broker.config.judge import plain
from broker.config.sections import SECTIONS
from broker.edge.web.operator import check_operator
from broker.model.settings import settings_of
from broker.node.seconds import SECONDS_MAX
from broker.node.troubles import find_troubles

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import Response

    from broker.config import Config
    from broker.edge.web.context import Web
    from broker.model.consumers import ConsumerInfo
    from broker.model.settings import Section
    from broker.node.node import Connection

__all__ = ["snapshot", "stats"]

CONNECTIONS_MAX: Final = 200
READERS_MAX: Final = 50
CONSUMERS_MAX: Final = 200
SAFE_MAX: Final = (1 << 53) - 1


async def stats(request: Request) -> Response:
    """Answer a snapshot, to who may manage the broker; `?seconds=N` for the last N seconds' figures, 0 by default."""
    refusal = await check_operator(request)
    if refusal is not None:
        return refusal
    asked = request.query_params.get("seconds", "0")
    seconds = int(asked) if asked.isascii() and asked.isdigit() and len(asked) <= 4 else 0
    return JSONResponse(
        snapshot(request.app.state.web, min(seconds, SECONDS_MAX)), headers={"cache-control": "no-store"}
    )


def snapshot(web: Web, seconds: int) -> dict[str, Any]:
    """Return what there is to see.

    Args:
        web: The listener, with the node and the settings in force.
        seconds: Rows of the newest seconds that are wanted.
    """
    node = web.node
    troubles = find_troubles(node)
    readers, more_readers = node.readers_behind(READERS_MAX)
    consumers, more_consumers = node.consumers.in_memory(CONSUMERS_MAX)
    rows = node.seconds.last(seconds)
    found = {
        "server": {
            "version": __version__,
            "python": platform.python_version(),
            "pid": os.getpid(),
            "run": node.run,
            "journal": node.core.journal.hex(),
            "started_us": round(web.started * 1e6),
            "time_us": node.clock.now_us(),
        },
        "ready": not any(trouble.serious for trouble in troubles),
        "troubles": [asdict(trouble) for trouble in troubles],
        "stats": node.stats(),
        "seconds": [row._asdict() for row in rows],
        "readers": readers,
        "more_readers": more_readers,
        "connections": [describe_connection(each) for each in islice(node.connections, CONNECTIONS_MAX)],
        "more_connections": len(node.connections) > CONNECTIONS_MAX,
        "consumers": [describe_consumer(info) for info in consumers],
        "more_consumers": more_consumers,
        "config": describe_config(web.config),
    }
    safe = _safe(found)
    assert isinstance(safe, dict)
    return safe


def describe_connection(connection: Connection) -> dict[str, Any]:
    """Say who it is, and what it has open."""
    subscriptions = connection.subscriptions or {}
    return {
        **connection.describe(),
        "subscriptions": len(subscriptions),
        "lagging": sum(each.state is not None and each.state.lagging for each in subscriptions.values()),
        "publishes": connection.publishes,
        "queued_bytes": connection.outbox.queued,
    }


def describe_consumer(info: ConsumerInfo) -> dict[str, Any]:
    """Say what is waiting for it, and what it has done."""
    settings = info.settings
    return {
        "name": settings.name,
        "filters": list(settings.filters[:4]),
        "paused": settings.paused,
        "members": info.members,
        "ready": info.ready,
        "leased": info.leased,
        "delayed": info.delayed,
        "lag": info.lag,
        "acked": info.acked,
        "redelivered": info.redelivered,
        "dead": info.dead,
        "held_bytes": info.held_bytes,
    }


def describe_config(config: Config) -> dict[str, Any]:
    """Return the settings in force, as JSON has them, each with what it is for; what is secret is hidden."""
    sections: dict[str, Any] = {name: _section(getattr(config, name)) for name in SECTIONS}
    sections["profiles"] = [_section(profile) for profile in config.profiles]
    return sections


def _section(section: Section) -> dict[str, Any]:
    values = {}
    for name, described in settings_of(section).items():
        values[name] = {
            "value": plain(described.shown(getattr(section, name))),
            "unit": described.unit,
            "doc": described.doc,
            "reloadable": described.reloadable,
        }
    return values


def _safe(value: object) -> object:
    """Return a value with integers that JavaScript would round as text, and without what JSON does not have."""
    if isinstance(value, dict):
        return {key: _safe(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_safe(each) for each in value]
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) > SAFE_MAX:
        return str(value)
    return value
