"""From an HTTP request to a WebSocket, on the same socket.

The request has been parsed as every other; here it is judged, and picows is given a plain one in its place: it takes
the header `Connection` of no browser that says more in it than `Upgrade`.
"""

from __future__ import annotations

from base64 import b64decode
from typing import TYPE_CHECKING, Any

from picows import WSUpgradeResponse

from broker.access.gate import Identity
from broker.edge.accepting import peer_of
from broker.edge.web.dialect import JSON_PROTOCOL, open_text
from broker.edge.web.guard import refusal_of
from broker.edge.web.socket import BINARY_PROTOCOL, Ear, Frames, SocketSession

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

    from uvicorn._types import HTTPScope

    from broker.edge.web.context import Web

__all__ = ["upgrade"]

PATH = "/v1/socket"
VERSION = b"13"


def open_binary(web: Web, identity: Identity) -> Ear:
    """Make what hears native frames in binary messages."""
    return Ear(web, SocketSession(web, identity))


SUBPROTOCOLS: dict[str, Callable[[Web, Identity], Ear]] = {BINARY_PROTOCOL: open_binary, JSON_PROTOCOL: open_text}
"""What a WebSocket speaks, by the name that its handshake agrees on; without any it speaks JSON."""


def upgrade(web: Web, transport: asyncio.Transport, scope: HTTPScope, url: bytes, rest: bytes) -> bytes | None:
    """Make a connection a WebSocket; answers None, or the response that refuses it.

    Args:
        web: What the listener shares.
        transport: The connection's.
        scope: The request, its headers' names in lower case.
        url: What it asks for.
        rest: What followed its head in the same read.
    """
    headers = list(scope["headers"])
    refusal = refusal_of(web, headers)
    if refusal is not None:
        return response("403 Forbidden", refusal)
    if url.partition(b"?")[0].decode("latin-1") != PATH:
        return response("404 Not Found", f"WebSocket: got path {url[:64]!a}, expected {PATH}\n")
    if scope["method"] != "GET" or scope["http_version"] != "1.1":
        return response("400 Bad Request", "WebSocket: got another request than GET of HTTP/1.1\n")
    if values_of(headers, b"sec-websocket-version") != [VERSION]:
        return response("426 Upgrade Required", "WebSocket: expected version 13\n", "sec-websocket-version: 13\r\n")
    keys = values_of(headers, b"sec-websocket-key")
    if len(keys) != 1 or not is_key(keys[0]):
        return response("400 Bad Request", "WebSocket: Sec-WebSocket-Key: expected 16 bytes in base64, once\n")
    offered = [
        name.strip().decode("latin-1")
        for value in values_of(headers, b"sec-websocket-protocol")
        for name in value.split(b",")
    ]
    agreed = next((name for name in offered if name in SUBPROTOCOLS), None)
    if agreed is None and offered:
        known = ", ".join(SUBPROTOCOLS)
        return response("400 Bad Request", f"WebSocket: Sec-WebSocket-Protocol: expected one of {known}\n")
    switch(web, transport, agreed, keys[0], rest)
    return None


def switch(web: Web, transport: asyncio.Transport, agreed: str | None, key: bytes, rest: bytes) -> None:
    """Have picows answer the handshake and hear the connection from now on."""
    address = transport.get_extra_info("peername")
    peer = peer_of(address) if address else "web"
    ear = SUBPROTOCOLS[agreed or JSON_PROTOCOL](web, Identity(peer=peer))
    answer = WSUpgradeResponse.create_101_response({"Sec-WebSocket-Protocol": agreed} if agreed else {})
    protocol: Any = Frames(ear, web.buffers, answer)
    transport.set_protocol(protocol)
    protocol.connection_made(transport)
    head = b"GET %b HTTP/1.1\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n" % PATH.encode()
    head += b"Sec-WebSocket-Version: %b\r\nSec-WebSocket-Key: %b\r\n\r\n" % (VERSION, key)
    unread = memoryview(head + rest)
    while unread:
        room = protocol.get_buffer(-1)
        count = min(len(room), len(unread))
        room[:count] = unread[:count]
        protocol.buffer_updated(count)
        unread = unread[count:]


def values_of(headers: list[tuple[bytes, bytes]], name: bytes) -> list[bytes]:
    """Return all values of a header."""
    return [value for found, value in headers if found == name]


def is_key(key: bytes) -> bool:
    """Whether it is the base64 of 16 bytes."""
    try:
        return len(b64decode(key, validate=True)) == 16
    except ValueError:
        return False


def response(status: str, body: str, headers: str = "") -> bytes:
    """Return a whole response that ends the connection."""
    return (
        f"HTTP/1.1 {status}\r\n{headers}content-type: text/plain; charset=utf-8\r\n"
        f"content-length: {len(body.encode())}\r\nconnection: close\r\n\r\n{body}"
    ).encode()
