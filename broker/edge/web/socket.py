"""WebSockets of the web listener: the handshake, and native frames in binary messages.

picows finds frames, takes masks off and holds RFC 6455's rules of form; what it leaves open is done here: reserved
bits, the order of fragments, the bound on what pings are answered, on one read, and on what half frames and buffers
that have grown take up together. The session is the one of every other listener: it takes in what messages carry, and
what it hands out leaves as one binary message a flush, which `Sender` heads.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, cast

from picows import (
    WSAutoPingStrategy,
    WSCloseCode,
    WSListener,
    WSMsgType,
    WSProtocolError,
    WSUpgradeResponse,
    WSUpgradeResponseWithListener,
)
from picows.picows import WSProtocol  # type: ignore[attr-defined]

from broker.edge.native import shares_pieces
from broker.edge.session import Session
from broker.events import emit, tally

if TYPE_CHECKING:
    import asyncio

    from picows import WSFrame, WSTransport

    from broker.access.gate import Identity
    from broker.edge.accepting import Greeting
    from broker.edge.web.buffers import Buffers
    from broker.edge.web.context import Web
    from broker.model.errors import BrokerError

__all__ = ["BINARY_PROTOCOL", "Ear", "Frames", "SocketSession", "SocketTransport", "close_code"]

BINARY_PROTOCOL: Final = "broker.v1"
READ_BYTES_MAX = 16 << 10
"""Of one read: its frames are handled before anybody else's, however small they are."""
FRAMES_A_TURN = 64
"""Who sends more frames in a turn of the loop is not read again before the next one."""
HELD_BY_FRAMES: Final = 1 << 17
"""Why a connection is not read, beside the session's own reasons: it has had its turn."""
EXPELLED_S = 0.2
"""How long who is ended for what it takes up has to read why."""
NORMAL = 1000
NEVER_SENT = frozenset({1004, 1005, 1006, 1015})
"""Close codes that are only told of connections (RFC 6455 §7.4.1)."""
BUFFER_BYTES_MIN = 2 << 10
BUFFER_BYTES_FREE = 128 << 10
"""A buffer that has grown no further is not counted: reads of `READ_BYTES_MAX` make it so large."""


def close_code(code: int) -> int:
    """Return the close code, 4000 to 4999, of an error's code: 3002 is 4302, 1007 is 4107."""
    return 4000 + code // 1000 * 100 + code % 1000


class SocketTransport:
    """A WebSocket as a session sees it. What is handed to `writelines` has its message header already.

    Args:
        ws: Of picows.
    """

    __slots__ = (
        "_closing",
        "_ws",
        "closing_code",
        "closing_reason",
        "get_write_buffer_size",
        "transport",
        "writelines",
    )

    def __init__(self, ws: WSTransport) -> None:
        self.transport: asyncio.Transport = ws.underlying_transport
        self.writelines = self.transport.writelines
        self.get_write_buffer_size = self.transport.get_write_buffer_size
        self.closing_code = NORMAL
        self.closing_reason = ""
        self._ws = ws
        self._closing = False

    def write(self, data: bytes) -> None:
        """Send one piece as a message."""
        self._ws.send(WSMsgType.BINARY, data)

    def send_pong(self, data: bytes) -> None:
        """Answer a ping."""
        self._ws.send_pong(data)

    def is_closing(self) -> bool:
        """Whether nothing can be sent any more."""
        return self._closing or self.transport.is_closing()

    def close(self) -> None:
        """Send a Close frame; the connection ends with the peer's, or when the session gives it up."""
        if not self._closing and not self.transport.is_closing():
            self._closing = True
            self._ws.send_close(cast("WSCloseCode", self.closing_code), self.closing_reason)
            # Reading may have been paused; what matters now is the peer's Close frame.
            self.transport.resume_reading()

    def on_close(self, code: WSCloseCode) -> None:
        """The peer has sent a Close frame: answer it, unless it is the answer, and end."""
        if not self._closing:
            self._closing = True
            self._ws.send_close(WSCloseCode.OK if code == WSCloseCode.NO_INFO else code)
        self.transport.close()

    def abort(self) -> None:
        """End now."""
        self.transport.abort()

    def pause_reading(self) -> None:
        """Leave what arrives with the kernel."""
        self.transport.pause_reading()

    def resume_reading(self) -> None:
        """Take what arrives again."""
        self.transport.resume_reading()

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        """Answer what is known of the socket."""
        return self.transport.get_extra_info(name, default)


class SocketSession(Session):
    """The session of a WebSocket.

    Args:
        web: What the listener shares.
        identity: Who is at the other end, as far as the request tells.
    """

    __slots__ = ("_greeting",)

    def __init__(self, web: Web, identity: Identity) -> None:
        super().__init__(web.node, identity)
        self._greeting: dict[Greeting, None] = web.listener.greeting
        self._greeting[self] = None

    def greeted(self) -> None:
        self._greeting.pop(self, None)

    def rest(self) -> None:
        """Read nothing more in this turn: a loop reads a socket again and again while it fills what it is given."""
        if self.transport is not None and not self.closed and not self._held_by & HELD_BY_FRAMES:
            if not self._held_by:
                self.transport.pause_reading()
            self._held_by |= HELD_BY_FRAMES
            self.node.loop.call_soon(self._read_on, HELD_BY_FRAMES)

    def end(self, failure: BrokerError) -> None:
        if not self.closed and self.transport is not None:
            self.transport.closing_code = close_code(failure.code)
            self.transport.closing_reason = failure.name
        super().end(failure)


class Ear(WSListener):
    """Hears the frames of a WebSocket for its session, and passes on what binary messages carry.

    Args:
        web: What the listener shares.
        session: Takes it in.
    """

    data_type: WSMsgType = WSMsgType.BINARY
    """The kind of message that the subprotocol has."""

    def __init__(self, web: Web, session: SocketSession) -> None:
        self.web = web
        self.session = session
        self.frames: Frames | None = None
        self.transport: SocketTransport | None = None
        self.heard = 0
        self._in_message = False
        self._ping: bytes | None = None

    # -- what picows tells ---------------------------------------------------------------------------------------------

    def on_ws_connected(self, transport: WSTransport) -> None:
        self.transport = SocketTransport(transport)
        self.begin(self.transport)

    def on_ws_frame(self, transport: WSTransport, frame: WSFrame) -> None:
        assert self.transport is not None
        self.heard += 1
        if frame.last_in_buffer and self.frames is not None:
            self.frames.pending = frame.tail_size
        if frame.rsv1 or frame.rsv2 or frame.rsv3:
            raise WSProtocolError(WSCloseCode.PROTOCOL_ERROR, "reserved bits: got one that no extension has claimed")
        kind = frame.msg_type
        if kind == self.data_type or kind == WSMsgType.CONTINUATION:
            if (kind == WSMsgType.CONTINUATION) != self._in_message:
                raise WSProtocolError(
                    WSCloseCode.PROTOCOL_ERROR, "fragments: got one of no message, or a message within another"
                )
            self._in_message = not frame.fin
            self.take(frame)
        elif kind == WSMsgType.PING:
            self._ping = frame.get_payload_as_bytes()
        elif kind == WSMsgType.CLOSE:
            code: Any = frame.get_close_code()
            if frame.payload_size and (code in NEVER_SENT or not 1000 <= code <= 4999):
                raise WSProtocolError(WSCloseCode.PROTOCOL_ERROR, f"close code: got {code:d}, which nobody sends")
            self.transport.on_close(code)
            self.fall_silent()
        elif kind != WSMsgType.PONG:
            raise WSProtocolError(
                WSCloseCode.UNSUPPORTED_DATA, "message: got text or bytes where the subprotocol has the other"
            )
        if frame.last_in_buffer and self._ping is not None:
            self.answer_ping()

    def on_ws_disconnected(self, transport: WSTransport) -> None:
        self.session.greeted()
        self.session.stopped()
        self.session.transport = None

    def pause_writing(self) -> None:
        self.session.outbox.pause()

    def resume_writing(self) -> None:
        if self._ping is not None:
            self.answer_ping()
        self.session.writing_resumed()

    def fall_silent(self) -> None:
        """A Close frame has been sent: nothing follows it, and nothing that the peer still says counts."""
        self.session.stop()
        self.session.outbox.close()

    # -- what becomes of it --------------------------------------------------------------------------------------------

    def begin(self, transport: SocketTransport) -> None:
        """The handshake is over."""
        underlying = transport.transport
        secure = underlying.get_extra_info("ssl_object") is not None
        descriptor = -1 if secure else underlying.get_extra_info("socket").fileno()
        self.session.start(transport, shares=shares_pieces(underlying), fd=descriptor, messages=True)

    def take(self, frame: WSFrame) -> None:
        """A part of a message has come."""
        if frame.payload_size:
            self.session.feed(frame.get_payload_as_memoryview())

    def answer_ping(self) -> None:
        """Answer the last ping of a read, once the peer takes bytes: who pings without reading costs us one answer."""
        assert self.transport is not None
        if not self.session.outbox.paused and self._ping is not None:
            self.transport.send_pong(self._ping)
            self._ping = None


class Frames(WSProtocol):  # type: ignore[misc]
    """picows' protocol, with bounds on what it reads at once and on what it keeps.

    Args:
        ear: Hears what it finds.
        buffers: The account of the listener's buffers.
        response: The answer to the handshake.
    """

    def __init__(self, ear: Ear, buffers: Buffers, response: WSUpgradeResponse) -> None:
        limits = ear.session.node.limits
        super().__init__(
            None,
            None,
            False,
            lambda request: WSUpgradeResponseWithListener(response, ear),
            LOG,
            True,
            limits.hello_timeout_s,
            False,
            None,
            None,
            WSAutoPingStrategy.PING_WHEN_IDLE,
            False,
            # Base64 and JSON around the largest payload are less than twice as large.
            2 * limits.frame_bytes_max,
            None,
            BUFFER_BYTES_MIN,
        )
        self.ear = ear
        self.pending = 0
        self._buffers = buffers
        self._free = BUFFER_BYTES_FREE
        self._limit = limits.partial_bytes_max
        ear.frames = self

    def get_buffer(self, size_hint: int) -> memoryview:
        room: memoryview = super().get_buffer(size_hint)
        return room[:READ_BYTES_MAX]

    def buffer_updated(self, nbytes: int) -> None:
        self.pending += nbytes
        if self.pending > self._free:
            # It doubles when it is full.
            self._free *= 2
            self._buffers.note(self, self._free, self._limit)
        super().buffer_updated(nbytes)
        if self.transport.is_close_frame_sent:
            self.ear.fall_silent()
        elif self.ear.heard > FRAMES_A_TURN:
            self.ear.session.rest()
        self.ear.heard = 0

    def expel(self, failure: BrokerError) -> None:
        """End a connection in the middle of a frame: its peer cannot answer a Close frame, so nobody waits for that."""
        self.ear.session.end(failure)
        self.ear.session.node.loop.call_later(EXPELLED_S, self.transport.underlying_transport.close)

    def connection_lost(self, exc: BaseException | None) -> None:
        self._buffers.forget(self)
        super().connection_lost(exc)


class _Log:
    """What picows has to say: of peers' mistakes a count, of ours an event, and nothing else."""

    name = "web"

    def isEnabledFor(self, level: int) -> bool:
        return False

    def log(self, *_: object) -> None:
        """Say nothing."""

    debug = info = warning = log

    def error(self, *_: object) -> None:
        tally("MALFORMED_FRAME")

    def exception(self, message: str, *_: object) -> None:
        emit("session_failed", peer="web", failure=RuntimeError(message))


LOG: Any = _Log()
