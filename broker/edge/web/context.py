"""What a web request needs to be answered."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeAlias

from broker.config.sections import listed
from broker.edge.web.buffers import Buffers
from broker_native.json_chunks import Renderer

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from broker.access.gate import Identity
    from broker.bus import Bus
    from broker.config import Config
    from broker.edge.accepting import Listener
    from broker.edge.web.api import Api
    from broker.node.node import Node

__all__ = ["OpenBus", "Web"]

OpenBus: TypeAlias = "Callable[[Node, Identity], Awaitable[Bus]]"
"""Opens a bus to a node on its own loop, as somebody; whoever opens it closes it."""
LOOPBACK_HOSTS = frozenset({"localhost", "127.0.0.1", "[::1]"})


@dataclass(slots=True)
class Web:
    """What all requests of a web listener share. It belongs to the node's loop.

    Attributes:
        node: The broker.
        config: The settings in force; a reload puts others here.
        listener: Takes the connections in.
        open_bus: Opens a bus to the node, as somebody.
        address: Where it listens, `host:port`; empty before it does.
        api: What the endpoints of the HTTP API share, once the application is built.
        started: When the server began, seconds since the epoch.
        renderer: Writes deliveries as JSON, for all sessions of the node.
        buffers: What reading WebSockets takes up.
    """

    node: Node
    config: Config
    listener: Listener
    open_bus: OpenBus
    address: str = ""
    api: Api | None = None
    buffers: Buffers = field(default_factory=Buffers)
    started: float = field(default_factory=time.time)
    renderer: Renderer = field(init=False)

    def __post_init__(self) -> None:
        self.renderer = Renderer(self.node.fanout, self.node.core.journal, self.node.name_of)

    def knows_host(self, host: str) -> bool:
        """Whether a browser that found the server by this name (`Host`) is meant to.

        A page from elsewhere can point a name of its own at this machine, and would then be of the same origin; so
        names that nobody has named are refused.
        """
        host = host.lower()
        name = host.rpartition(":")[0] if host.rpartition(":")[2].isdigit() else host
        listening = self.address.rpartition(":")[0]
        return name in LOOPBACK_HOSTS or name == listening or not {host, name}.isdisjoint(listed(self.config.web.hosts))

    def knows_origin(self, origin: str, host: str) -> bool:
        """Whether pages of an origin may use the broker: its own pages, and those that are named.

        Args:
            origin: The header `Origin`.
            host: The header `Host` of the same request.
        """
        origin = origin.lower()
        return origin.partition("://")[2] == host.lower() != "" or origin in listed(self.config.web.origins)
