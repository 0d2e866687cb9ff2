"""Who is answered at all: whoever comes by a name of this server, and from no page of somebody else."""

from __future__ import annotations

from typing import TYPE_CHECKING

from starlette.responses import PlainTextResponse

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Receive, Scope, Send

    from broker.edge.web.context import Web

__all__ = ["Guarded", "refusal_of"]

PROBES = ("/healthz", "/readyz")


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
        # Who asks whether it lives asks by the address of the moment, and is told no more than that.
        refusal = None if scope["path"] in PROBES else refusal_of(self._web, scope["headers"])
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
