"""What the web listener answers, by path.

Each room of the API is a module beside this one; its routes stand here in one line each.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from starlette.applications import Starlette
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from broker.config.sections import listed

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.types import ASGIApp, Receive, Scope, Send

    from broker.edge.web.context import Web

__all__ = ["build_app"]

CORS_METHODS = ("GET", "POST")
CORS_HEADERS = ("Authorization", "Content-Type", "Last-Event-ID")


def build_app(web: Web) -> ASGIApp:
    """Build the application; `request.app.state.web` is what its routes find.

    Args:
        web: What requests need.
    """
    app = Starlette(routes=[Route("/v1/version", version)])
    app.state.web = web
    origins = listed(web.config.web.origins)
    inner = CORSMiddleware(app, origins, CORS_METHODS, CORS_HEADERS, expose_headers=("Retry-After",))
    return Guarded(inner if origins else app, web)


class Guarded:
    """Answers nobody who comes by a name that the server does not have, or from a page of somebody else.

    Args:
        app: Who answers the others.
        web: Knows names and origins.
    """

    def __init__(self, app: ASGIApp, web: Web) -> None:
        self._app = app
        self._web = web

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        refusal = refusal_of(self._web, scope["headers"])
        if refusal is None:
            await self._app(scope, receive, send)
        else:
            await PlainTextResponse(refusal, 403)(scope, receive, send)


def refusal_of(web: Web, headers: list[tuple[bytes, bytes]]) -> str | None:
    """Return why a request is not answered for its `Host` or `Origin`, or None.

    Args:
        web: Knows names and origins.
        headers: Their names in lower case.
    """
    hosts = [value.decode("latin-1") for name, value in headers if name == b"host"]
    origins = [value.decode("latin-1") for name, value in headers if name == b"origin"]
    host = hosts[0] if len(hosts) == 1 else ""
    if not web.knows_host(host):
        return f"host: got {host[:64]!a}, which is no name of this server (web.hosts)\n"
    if any(not web.knows_origin(origin, host) for origin in origins):
        return f"origin: got {origins[0][:64]!a}, whose pages may not use this server (web.origins)\n"
    return None


async def version(request: Request) -> PlainTextResponse:
    """Answer the broker's version."""
    from broker._version import __version__

    return PlainTextResponse(f"{__version__}\n")
