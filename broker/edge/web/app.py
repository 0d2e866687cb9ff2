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
from broker.edge.web.api import Api, no_such_method, no_such_path
from broker.edge.web.guard import Guarded
from broker.edge.web.health import healthz, readyz
from broker.edge.web.metrics import metrics
from broker.edge.web.pages import page_routes
from broker.edge.web.routes import api_routes
from broker.edge.web.snapshot import stats

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.types import ASGIApp

    from broker.edge.web.context import Web

__all__ = ["build_app"]

CORS_METHODS = ("GET", "POST")
CORS_HEADERS = ("Authorization", "Content-Type", "Last-Event-ID")


def build_app(web: Web) -> ASGIApp:
    """Build the application; `request.app.state.web` is what its routes find.

    Args:
        web: What requests need.
    """
    api = web.api = Api(web)
    app = Starlette(
        routes=[
            Route("/v1/version", version),
            *api_routes(api),
            Route("/v1/stats", api.endpoint(stats)),
            Route("/metrics", api.endpoint(metrics)),
            Route("/healthz", healthz),
            Route("/readyz", readyz),
            *page_routes(),
        ],
        exception_handlers={404: no_such_path, 405: no_such_method},
    )
    app.state.web = web
    origins = listed(web.config.web.origins)
    inner = CORSMiddleware(app, origins, CORS_METHODS, CORS_HEADERS, expose_headers=("Retry-After",))
    return Guarded(inner if origins else app, web)


async def version(request: Request) -> PlainTextResponse:
    """Answer the broker's version."""
    from broker._version import __version__

    return PlainTextResponse(f"{__version__}\n")
