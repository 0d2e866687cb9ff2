"""`/healthz` and `/readyz`: for those who restart a broker, and for those who send clients to it.

Healthy is a broker whose loop turns; it is not restarted for a full disk. Ready is one that takes publishes. Both are
asked by machines that have no token and find out nothing else; what is wrong stands in `/v1/stats`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from starlette.responses import PlainTextResponse

from broker.node.troubles import find_hindrances

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import Response

__all__ = ["healthz", "readyz"]

_HEADERS = {"cache-control": "no-store"}


async def healthz(request: Request) -> Response:
    """Answer 200 while the loop turns and its memory is whole, else 503."""
    broken = request.app.state.web.node.broken
    return PlainTextResponse("broken\n" if broken else "ok\n", 503 if broken else 200, _HEADERS)


async def readyz(request: Request) -> Response:
    """Answer 200 while the broker takes publishes and does not stop, else 503 and the names of what is in the way."""
    found = find_hindrances(request.app.state.web.node)
    if found:
        return PlainTextResponse("".join(f"{each.name}\n" for each in found), 503, {**_HEADERS, "retry-after": "1"})
    return PlainTextResponse("ready\n", headers=_HEADERS)
