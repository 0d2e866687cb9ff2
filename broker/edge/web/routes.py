"""The paths of the HTTP API."""

from __future__ import annotations

from typing import TYPE_CHECKING

from starlette.routing import Route

from broker.edge.web.channels import channel, channels, consumer, consumers
from broker.edge.web.history import history
from broker.edge.web.openapi import openapi
from broker.edge.web.publish import publish
from broker.edge.web.subscribe import Subscribe

if TYPE_CHECKING:
    from broker.edge.web.api import Api

__all__ = ["api_routes"]


def api_routes(api: Api) -> list[Route]:
    """Return the routes; a name of a channel may have any character that a path may, `/` among them."""
    return [
        Route("/v1/publish", api.endpoint(publish), methods=["POST"]),
        Route("/v1/history", api.endpoint(history)),
        Route("/v1/subscribe", Subscribe(api), methods=["GET"]),
        Route("/v1/channels", api.endpoint(channels)),
        Route("/v1/channels/{name:path}", api.endpoint(channel)),
        Route("/v1/consumers", api.endpoint(consumers)),
        Route("/v1/consumers/{name:path}", api.endpoint(consumer)),
        Route("/v1/openapi.json", api.endpoint(openapi)),
    ]
