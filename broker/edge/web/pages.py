"""The console, the chat page and the browser client: files of the package, read once and served from memory.

What is served is a table made from the package's own folder, so no request's path is ever joined to a folder's. The
pages may load, and talk to, this server alone; nobody may frame them.
"""

from __future__ import annotations

import hashlib
from importlib.resources import files
from typing import TYPE_CHECKING, NamedTuple

from starlette.responses import Response
from starlette.routing import Route

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterator

    from starlette.requests import Request

__all__ = ["page_routes"]

TYPES = {
    ".css": "text/css; charset=utf-8",
    ".d.ts": "text/plain; charset=utf-8",
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
FOLDERS = ("chat", "client", "console")
INDEXES = {"/console/index.html": "/", "/chat/index.html": "/chat"}
"""Pages, and the shorter paths at which they are."""
HEADERS = {
    # A copy is asked after each time, and costs an answer without a body.
    "cache-control": "no-cache",
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'"
    ),
    "cross-origin-opener-policy": "same-origin",
    "referrer-policy": "no-referrer",
}


class Page(NamedTuple):
    """A file that is served.

    Attributes:
        path: Where, from `/` on.
        body: What it holds.
        kind: Its media type.
        etag: Names what it holds.
    """

    path: str
    body: bytes
    kind: str
    etag: str


def page_routes() -> list[Route]:
    """Return the routes of all pages and what belongs to them. Reads files; for the start."""
    return [Route(page.path, _server_of(page)) for page in _pages()]


def _pages() -> Iterator[Page]:
    for name in FOLDERS:
        for file in files("broker.web").joinpath(name).iterdir():
            kind = next((kind for ending, kind in TYPES.items() if file.name.endswith(ending)), None)
            if kind is not None:
                path = f"/{name}/{file.name}"
                body = file.read_bytes()
                etag = f'"{hashlib.sha256(body).hexdigest()[:32]}"'
                yield Page(INDEXES.get(path, path), body, kind, etag)


def _server_of(page: Page) -> Callable[[Request], Coroutine[None, None, Response]]:
    headers = {**HEADERS, "etag": page.etag}

    async def serve(request: Request) -> Response:
        known = request.headers.get("if-none-match", "")
        if page.etag in [each.strip().removeprefix("W/") for each in known.split(",")]:
            return Response(status_code=304, headers=headers)
        return Response(page.body, headers=headers, media_type=page.kind)

    return serve
