"""The web listener's life: opened beside the native one, and ended before the node is."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from uvicorn.config import Config as Uvicorn
from uvicorn.server import ServerState

from broker.edge.web.app import build_app
from broker.edge.web.context import Web
from broker.edge.web.http import Http, WebDoor

if TYPE_CHECKING:
    from broker.config import Config
    from broker.edge.accepting import Listener
    from broker.edge.web.context import OpenBus
    from broker.node.node import Node

__all__ = ["WebServer"]


class WebServer:
    """A web listener. Use `WebServer.open`.

    Attributes:
        web: What its requests share.
    """

    def __init__(self, web: Web) -> None:
        self.web = web
        self._state = ServerState()
        self._state.default_headers = [(b"x-content-type-options", b"nosniff")]
        # The application is given as it is, and nothing of the process is uvicorn's: no loop, no log, no signals.
        self._uvicorn = Uvicorn(
            build_app(web),
            loop="none",
            http="httptools",
            ws="none",
            lifespan="off",
            interface="asgi3",
            log_config=None,
            access_log=False,
            proxy_headers=False,
            server_header=False,
        )
        self._uvicorn.load()

    @classmethod
    def open(cls, node: Node, config: Config, listener: Listener, open_bus: OpenBus) -> WebServer:
        """Make one that does not listen yet."""
        return cls(Web(node, config, listener, open_bus))

    def listen(self, host: str, port: int) -> str:
        """Listen on a TCP address; as `Listener.listen_at`."""
        self.web.address = self.web.listener.listen_at(host, port, WebDoor(self.web, self._uvicorn, self._state))
        return self.web.address

    async def close(self, seconds: float) -> None:
        """End: what is being answered may finish, and connections that wait for a request are closed.

        Args:
            seconds: How long answers may take.
        """
        for connection in list(self._state.connections):
            connection.shutdown()
        if self._state.tasks:
            await asyncio.wait(list(self._state.tasks), timeout=seconds)
        for task in list(self._state.tasks):
            task.cancel()
        for connection in list(self._state.connections):
            if isinstance(connection, Http):
                connection.transport.abort()
        if self.web.api is not None:
            await self.web.api.close()
