"""Who may look inside: whoever may manage every channel, as `stats` of the native protocol has it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from starlette.responses import PlainTextResponse

from broker.access.gate import Identity, Verb
from broker.model.errors import BrokerError

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import Response

__all__ = ["check_operator"]


async def check_operator(request: Request) -> Response | None:
    """Return None for one who may look inside, else the answer that refuses it."""
    host = request.client.host if request.client is not None else ""
    try:
        request.app.state.web.node.gate.check(Identity(peer=f"web {host}"), Verb.MANAGE, b">")
    except BrokerError as failure:
        return PlainTextResponse(f"{failure}\n", 403)
    return None
