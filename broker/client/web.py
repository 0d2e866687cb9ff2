"""The same conversation over a WebSocket: what a client speaks that only HTTP's port lets through.

Frames go in binary messages of the subprotocol `broker.v1`. Towards the server messages carry bytes and their limits
mean nothing, so what is large goes in many; picows masks a copy of each. Needs the extra `web`.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from picows import WSAutoPingStrategy, WSCloseCode, WSHandshakeError, WSListener, WSMsgType
from picows.picows import WSProtocol  # type: ignore[attr-defined]

from broker.client.transport import SHUTDOWN_S, WRITE_BUFFER_BYTES_HIGH
from broker.model.errors import error

if TYPE_CHECKING:
    from collections.abc import Iterable
    from ssl import SSLContext

    from picows import WSFrame, WSTransport

    from broker.client.transport import Bytes, Connector, Receiver, Transport
    from broker.model.errors import BrokerError
    from broker.remote.address import WebAddress

__all__ = ["web_connector"]

SUBPROTOCOL = "broker.v1"
MESSAGE_BYTES = 64 << 10
"""What one message to the server carries at most: the server keeps what has come of a message until it is whole."""
MESSAGE_BYTES_MAX = 1 << 30
"""What one message from the server may carry: all that one turn of it has for us."""
BUFFER_BYTES = 64 << 10
HANDSHAKE_S = 30.0
"""The client gives up before."""


class _Log:
    """What picows has to say is told by the errors that the client raises."""

    name = "broker"

    def isEnabledFor(self, level: int) -> bool:
        return False

    def log(self, *_: object) -> None:
        """Say nothing."""

    debug = info = warning = error = exception = log


class WebTransport(WSListener):
    """A WebSocket as a connection sees it, and what picows tells of it for the receiver.

    Args:
        receiver: Who is told of bytes and of the end.
    """

    def __init__(self, receiver: Receiver) -> None:
        self._receiver = receiver
        self._ws: WSTransport | None = None
        self._failure: BrokerError | None = None

    # .. what a transport does ..

    def writelines(self, list_of_data: Iterable[Bytes]) -> None:
        """Send the pieces in order."""
        assert self._ws is not None
        data = memoryview(b"".join(list_of_data))
        for at in range(0, len(data), MESSAGE_BYTES):
            self._ws.send(WSMsgType.BINARY, data[at : at + MESSAGE_BYTES])

    def close(self) -> None:
        """Send what is buffered and a Close frame, then end."""
        assert self._ws is not None
        self._ws.send_close(WSCloseCode.OK)
        self._ws.disconnect()

    def abort(self) -> None:
        """End now."""
        assert self._ws is not None
        self._ws.disconnect(graceful=False)

    def get_extra_info(self, name: str, default: Any = None, /) -> Any:
        """Answer what is known of the socket."""
        return default if self._ws is None else self._ws.underlying_transport.get_extra_info(name, default)

    # .. what picows tells ..

    def on_ws_connected(self, transport: WSTransport) -> None:
        transport.underlying_transport.set_write_buffer_limits(high=WRITE_BUFFER_BYTES_HIGH)
        self._ws = transport

    def on_ws_frame(self, transport: WSTransport, frame: WSFrame) -> None:
        if frame.msg_type in (WSMsgType.BINARY, WSMsgType.CONTINUATION):
            self._receiver.on_bytes(frame.get_payload_as_memoryview())
        elif frame.msg_type == WSMsgType.CLOSE:
            code: Any = frame.get_close_code()
            reason = frame.get_close_reason()
            self._failure = error(
                "CONNECTION_LOST", f"connection: closed by the server with {code:d} {reason or ''}".rstrip()
            )
            self.close()
        elif frame.msg_type == WSMsgType.TEXT:
            self._failure = error("CONNECTION_LOST", "connection: got text, expected bytes")
            transport.send_close(WSCloseCode.UNSUPPORTED_DATA)
            transport.disconnect()

    def on_ws_disconnected(self, transport: WSTransport) -> None:
        self._receiver.on_lost(self._failure)

    def pause_writing(self) -> None:
        self._receiver.on_writable(False)

    def resume_writing(self) -> None:
        self._receiver.on_writable(True)


def web_connector(address: WebAddress, context: SSLContext | None) -> Connector:
    """Return what connects to a WebSocket's address, by TLS if there is a context."""

    async def open_web(receiver: Receiver) -> Transport:
        loop = asyncio.get_running_loop()
        ear = WebTransport(receiver)
        protocol: Any = WSProtocol(
            address.authority,
            address.path,
            True,
            lambda: ear,
            _Log(),
            True,
            HANDSHAKE_S,
            False,
            None,
            None,
            WSAutoPingStrategy.PING_WHEN_IDLE,
            True,
            MESSAGE_BYTES_MAX,
            {"Sec-WebSocket-Protocol": SUBPROTOCOL},
            BUFFER_BYTES,
        )
        transport, _ = await loop.create_connection(
            lambda: protocol,
            address.host,
            address.port,
            ssl=context,
            server_hostname=None if context is None else address.expected,
            ssl_shutdown_timeout=None if context is None else SHUTDOWN_S,
        )
        try:
            await protocol.wait_until_handshake_complete()
            if protocol.transport.response is None:
                raise error("CONNECTION_LOST", "connection: closed by the server before it was a WebSocket")
            agreed = protocol.transport.response.headers.get("Sec-WebSocket-Protocol")
            if agreed != SUBPROTOCOL:
                raise error("CONNECTION_LOST", f"connection: got subprotocol {agreed!a}, expected {SUBPROTOCOL}")
        except WSHandshakeError as failure:
            transport.abort()
            raise refusal_of(failure) from None
        except BaseException:
            transport.abort()
            raise
        return ear

    return open_web


def refusal_of(failure: WSHandshakeError) -> BrokerError:
    """Return what the answer to a handshake that failed means."""
    answer = failure.response
    if answer is None or answer.status is None:
        return error("CONNECTION_LOST", f"connection: it speaks no WebSocket: {failure}")
    said = (failure.raw_body or b"").decode("utf-8", "replace").strip()[:256]
    detail = f"connection: the server answered {int(answer.status)} {said}".rstrip()
    if answer.status == 503:
        seconds = answer.headers.get("Retry-After", "")
        wait_ms = 1_000 * int(seconds) if seconds.isascii() and seconds.isdigit() else None
        return error("TOO_MANY_CONNECTIONS", detail, retry_after_ms=wait_ms)
    return error("DENIED" if answer.status in (401, 403) else "CONNECTION_LOST", detail)
