"""`/v1/stats`: the broker as it is at this moment, for the console and for whoever watches by program.

One JSON object, put together on the loop in a millisecond or so: every list in it has a bound, and says whether there
is more.
"""

from __future__ import annotations

import os
import platform
from dataclasses import asdict
from itertools import islice
from typing import TYPE_CHECKING, Any, Final

from broker._version import __version__
from broker.config.judge import plain
from broker.config.sections import SECTIONS
from broker.edge.web.api import json_answer
from broker.edge.web.arguments import Arguments
from broker.edge.web.operator import check_operator
from broker.edge.web.rendering import dump
from broker.model.settings import settings_of
from broker.node.seconds import SECONDS_MAX
from broker.node.troubles import find_troubles

if TYPE_CHECKING:
    from starlette.responses import Response

    from broker.config import Config
    from broker.edge.web.api import Call
    from broker.edge.web.context import Web
    from broker.model.consumers import ConsumerInfo
    from broker.model.settings import Section
    from broker.node.node import Connection

__all__ = ["snapshot", "stats"]

CONNECTIONS_MAX: Final = 200
READERS_MAX: Final = 50
CONSUMERS_MAX: Final = 100


async def stats(call: Call) -> Response:
    """Answer a snapshot, to who may manage the broker; `?seconds=N` for the last N seconds' figures, 0 by default."""
    await check_operator(call)
    arguments = Arguments(call.request.scope["query_string"], frozenset({"seconds"}))
    found = snapshot(call.api.web, arguments.number("seconds", 0, 0, SECONDS_MAX))
    return json_answer(dump(found))


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
    return {
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
