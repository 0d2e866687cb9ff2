"""HTTP/1.1 on the web listener's sockets: uvicorn's protocol, with bounds on what a peer may make us keep.

Uvicorn parses and runs the application; sockets, their number and their pace are `Listener`'s. What it leaves open is
closed here: a request's head has a bound and a time, its body a time, pipelined requests a number, and a peer that does
not read what it is answered is let go.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from broker.edge.web.upgrade import upgrade
from broker.events import emit, tally

if TYPE_CHECKING:
    import asyncio
    import socket

    from uvicorn.config import Config as Uvicorn
    from uvicorn.server import ServerState

    from broker.edge.web.context import Web
    from broker.model.errors import BrokerError

__all__ = ["Http", "WebDoor"]

HEAD_BYTES_MAX = 16 << 10
"""Of a request before its body, beside what comes with its last read."""
BODY_S = 60.0
"""How long a request's body may take to arrive."""
PIPELINED_MAX = 16
"""Requests that wait behind one that is being answered."""
WRITE_BUFFER_BYTES_HIGH = 256 << 10


class _Log:
    """What uvicorn has to say: of strangers' mistakes nothing, of ours an event."""

    level = 100

    def warning(self, *_: object) -> None:
        tally("MALFORMED_FRAME")

    def info(self, *_: object) -> None:
        """Say nothing."""

    def error(self, message: str, *values: object, exc_info: BaseException | None = None) -> None:
        emit("session_failed", peer="web", failure=exc_info or RuntimeError(message % values))


_LOG: Any = _Log()


class Http(HttpToolsProtocol):
    """One connection that speaks HTTP until it ends or becomes a WebSocket.

    Args:
        web: What requests need.
        uvicorn: Its settings, with the application.
        state: Its account of connections and tasks.
        sock: The accepted socket.
    """

    put_off = False
    suspended = False

    def __init__(self, web: Web, uvicorn: Uvicorn, state: ServerState, sock: socket.socket) -> None:
        super().__init__(uvicorn, state, {}, web.node.loop)
        self.logger = _LOG
        self.access_log = False
        self.web = web
        self.sock = sock
        self._head_bytes = 0
        self._in_head = True
        self._read = b""
        self._timer: asyncio.TimerHandle | None = None
        self._unread: asyncio.TimerHandle | None = None

    # -- the transport's calls -----------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        transport.set_write_buffer_limits(high=WRITE_BUFFER_BYTES_HIGH)
        self.web.listener.plain[self] = None
        self.web.listener.greeting[self] = None
        self._expect_within(self.web.node.limits.hello_timeout_s)

    def connection_lost(self, exc: Exception | None) -> None:
        self.leave()
        self._read_or_not()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._in_head:
            self._head_bytes += len(data)
        self._read = data
        super().data_received(data)
        self._read = b""
        if self._in_head and self._head_bytes > HEAD_BYTES_MAX and not self.transport.is_closing():
            self.send_400_response(f"Request head: more than {HEAD_BYTES_MAX} bytes.")

    def pause_writing(self) -> None:
        super().pause_writing()
        if self._unread is None:
            self._unread = self.loop.call_later(self.web.node.limits.ping_timeout_s, self.transport.abort)

    def resume_writing(self) -> None:
        self._read_or_not()
        super().resume_writing()

    def _read_or_not(self) -> None:
        """Whether what was answered is read matters no more."""
        if self._unread is not None:
            self._unread.cancel()
            self._unread = None

    # -- the parser's calls --------------------------------------------------------------------------------------------

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self.scope["state"]["connection"] = self
        self._in_head = True
        self._head_bytes = 0
        self._expect_within(self.web.node.limits.hello_timeout_s)

    def on_headers_complete(self) -> None:
        if len(self.pipeline) >= PIPELINED_MAX:
            raise httptools.HttpParserError(f"more than {PIPELINED_MAX} requests wait")
        self._in_head = False
        self.greeted()
        self._expect_within(BODY_S)
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        self._expect_nothing()
        super().on_message_complete()

    # -- what it is to a response that never ends ----------------------------------------------------------------------

    def hand_over(self, protocol: asyncio.Protocol) -> asyncio.Transport:
        """Give the socket away instead of answering the request: what comes from now on is told to another protocol.

        Args:
            protocol: It writes what there is to answer, the head included, and closes the socket.
        """
        self.leave()
        self._read_or_not()
        self.connections.discard(self)
        self.pipeline.clear()
        # To uvicorn the peer has left: it writes nothing more, and expects no answer of the application.
        self.cycle.disconnected = True
        self.transport.set_protocol(protocol)
        self.flow.resume_reading()
        return self.transport

    def _should_upgrade_to_ws(self) -> bool:
        return True

    def handle_websocket_upgrade(self) -> None:
        """The request's head asks for a WebSocket; what follows it in the same read is no HTTP any more."""
        stopped = sys.exception()
        rest = self._read[stopped.args[0] :] if stopped is not None else b""
        if self.cycle is not None and not self.cycle.response_complete:
            # Its answer would come after the one that is under way, and frames of the peer before.
            self.send_400_response("WebSocket: the request came before the one ahead of it was answered.")
            return
        refusal = upgrade(self.web, self.transport, self.scope, self.url, rest)
        if refusal is None:
            self.leave()
            self.connections.discard(self)
        else:
            self.transport.write(refusal)
            self.transport.close()

    # -- what it is to the listener ------------------------------------------------------------------------------------

    def greeted(self) -> None:
        self.web.listener.greeting.pop(self, None)

    def end(self, failure: BrokerError) -> None:
        self.transport.write(farewell(failure))
        self.transport.close()

    def leave(self) -> None:
        """Be no longer among the connections that speak HTTP."""
        self.greeted()
        self._expect_nothing()
        self.web.listener.plain.pop(self, None)

    def _expect_within(self, seconds: float) -> None:
        self._expect_nothing()
        self._timer = self.loop.call_later(seconds, self._too_slow)

    def _expect_nothing(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _too_slow(self) -> None:
        self._timer = None
        tally("TIMEOUT")
        self.transport.abort()


class WebDoor:
    """Where HTTP is spoken.

    Args:
        web: What requests need.
        uvicorn: Its settings, with the application.
        state: Its account of connections and tasks.
    """

    option = "--web"

    def __init__(self, web: Web, uvicorn: Uvicorn, state: ServerState) -> None:
        self._web = web
        self._uvicorn = uvicorn
        self._state = state

    def connection(self, sock: socket.socket) -> Http:
        return Http(self._web, self._uvicorn, self._state, sock)

    def farewell(self, failure: BrokerError) -> bytes:
        return farewell(failure)


def farewell(failure: BrokerError) -> bytes:
    """Return a response, 503, that says why a connection is not wanted now, and when to come back."""
    body = f"{failure.detail}\n".encode()
    seconds = -(-(failure.retry_after_ms or 1_000) // 1_000)
    head = (
        f"HTTP/1.1 503 Service Unavailable\r\nretry-after: {seconds}\r\ncontent-type: text/plain; charset=utf-8\r\n"
        f"content-length: {len(body)}\r\nconnection: close\r\n\r\n"
    )
    return head.encode() + body
