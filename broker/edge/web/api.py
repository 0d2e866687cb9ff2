"""What every request of the HTTP API goes through: who asks, how large it is, and how it is refused.

An endpoint is a coroutine function of a `Call`; what it returns is the answer, and a `BrokerError` that it raises
becomes a problem (`problems.py`). What a stranger can make us keep is bounded here: the size of a body, and what the
bodies of all requests take together.
"""

from __future__ import annotations

from hashlib import blake2b
from typing import TYPE_CHECKING, Any, Final

from starlette.responses import Response

from broker.access.identity import Identity
from broker.access.rates import address_of, too_fast
from broker.edge.standing import introduced_by
from broker.edge.web.arguments import bearer_of
from broker.edge.web.buses import Buses
from broker.edge.web.problems import Refused, problem
from broker.edge.web.pulse import Pulse
from broker.events import emit
from broker.model.errors import BrokerError, error

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Awaitable, Callable
    from contextlib import AbstractAsyncContextManager

    from starlette.requests import Request

    from broker.bus import Bus
    from broker.edge.web.context import Web
    from broker.node.node import Node

__all__ = ["Api", "Call", "json_answer"]

RETRY_AFTER_MS: Final = 1_000


class Api:
    """What the endpoints of one web listener share.

    Args:
        web: What requests need.
    """

    def __init__(self, web: Web) -> None:
        self.web = web
        self.buses = Buses(lambda identity: web.open_bus(web.node, identity))
        self.pulse = Pulse(web.node.loop)
        self.body_bytes = 0

    def endpoint(self, handler: Callable[[Call], Awaitable[Response]]) -> Callable[[Request], Awaitable[Response]]:
        """Return a handler as the web application calls it."""

        async def answer(request: Request) -> Response:
            try:
                return await handler(Call(self, request))
            except Refused as refusal:
                return problem_answer(refusal.failure, refusal.status, refusal.headers)
            except BrokerError as failure:
                return problem_answer(failure)
            except Exception as mistake:
                emit("session_failed", peer=peer_of(request), failure=mistake)
                return problem_answer(error("CLOSED", "the request failed in the server", "Its log says why."), 500)

        return answer

    async def close(self) -> None:
        """End what is kept between requests."""
        await self.buses.close()


class Call:
    """One request.

    Args:
        api: What it shares with others.
        request: As it came.
    """

    def __init__(self, api: Api, request: Request) -> None:
        self.api = api
        self.request = request
        self.node = api.web.node

    async def identity(self) -> Identity:
        """Return who asks.

        Raises:
            BrokerError: The token is none that the broker takes.
        """
        transport = self.request.scope["state"]["connection"].transport
        return await identity_of(self.node, peer_of(self.request), bearer_of(self.request.headers), transport)

    async def bus(self) -> AbstractAsyncContextManager[Bus]:
        """Return a bus as who asks, for as long as it is entered.

        Raises:
            BrokerError: The token is none that the broker takes.
        """
        identity = await self.identity()
        token = bearer_of(self.request.headers) or ""
        # By what was shown, since what follows from it may change: its session is judged anew when that does.
        return self.api.buses.lend((blake2b(token.encode()).digest(), identity.peer), identity)

    async def body(self, bytes_max: int) -> bytes:
        """Return the request's body.

        Raises:
            Refused: 413; it is larger than `bytes_max`.
            Unavailable: BUSY; the bodies of all requests are as large as they may be together.
        """
        declared = self.request.headers.get("content-length", "0")
        if declared.isdecimal() and int(declared) > bytes_max:
            raise too_large(declared, bytes_max)
        api, limit = self.api, self.node.limits.partial_bytes_max
        parts: list[bytes] = []
        size = 0
        try:
            async for part in self.request.stream():
                size += len(part)
                api.body_bytes += len(part)
                if size > bytes_max:
                    raise too_large(f"more than {bytes_max}", bytes_max)
                if api.body_bytes > limit:
                    raise error(
                        "BUSY",
                        f"bodies of all requests: got {api.body_bytes} bytes, limit {limit} bytes",
                        retry_after_ms=RETRY_AFTER_MS,
                    )
                parts.append(part)
        finally:
            api.body_bytes -= size
        return b"".join(parts)


async def identity_of(node: Node, peer: str, token: str | None, transport: asyncio.BaseTransport) -> Identity:
    """Return who asks.

    Args:
        node: Knows whether anybody is asked who he is.
        peer: Where the request comes from.
        token: What it has to show.
        transport: Its connection's, which may say who it is when there is no token: by a certificate.

    Raises:
        BrokerError: UNAUTHENTICATED, TOKEN_EXPIRED, RATE_LIMITED, BUSY.
    """
    authority = node.authority
    if authority is None:
        return Identity(peer=peer)
    if token is None:
        found = introduced_by(transport, authority, peer) or authority.anonymous(peer)
        if found is None:
            found = error("UNAUTHENTICATED", "request: got no token, and nobody is taken in without one")
    else:
        address = address_of(peer)
        wait_ms = node.rates.failing_ms(address)
        if wait_ms:
            raise too_fast("signing in", Identity(peer=peer), wait_ms)
        judged: asyncio.Future[Identity | BrokerError] = node.loop.create_future()
        authority.sign_in(token, peer, lambda outcome: None if judged.done() else judged.set_result(outcome))
        found = await judged
        if isinstance(found, BrokerError) and found.name == "UNAUTHENTICATED":
            node.rates.failed(address)
    if isinstance(found, BrokerError):
        raise found
    return found


def too_large(got: str, bytes_max: int) -> Refused:
    """Refuse a body; the rest of it is not read, so the connection ends."""
    failure = error("FRAME_TOO_LARGE", f"body: got {got} bytes, limit {bytes_max} bytes")
    return Refused(failure, 413, {"connection": "close"})


def peer_of(request: Request) -> str:
    """Return where a request comes from. What it says in place of the port is the same for all of its connections."""
    if request.client is None:
        return "http"
    host = request.client.host
    return f"[{host}]:http" if ":" in host else f"{host}:http"


def json_answer(body: bytes, status: int = 200) -> Response:
    """Return an answer that is JSON."""
    return Response(body, status, {"cache-control": "no-store"}, "application/json")


def problem_answer(failure: BrokerError, status: int | None = None, more: dict[str, str] | None = None) -> Response:
    """Return a refusal."""
    number, headers, body = problem(failure, status)
    return Response(body, number, {**headers, **(more or {})})


async def no_such_path(request: Request, _: Any) -> Response:
    """Answer a path that nothing stands behind."""
    return problem_answer(error("UNKNOWN_OPERATION", f"path: got {request.url.path[:80]!a}, which is none"), 404)


async def no_such_method(request: Request, refusal: Any) -> Response:
    """Answer a method that a path does not know."""
    allowed = dict(refusal.headers or {})
    failure = error("UNKNOWN_OPERATION", f"method: got {request.method[:20]!a}, expected {allowed.get('Allow', '')}")
    return problem_answer(failure, 405, allowed)
