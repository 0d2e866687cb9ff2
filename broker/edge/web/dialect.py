"""The JSON dialect on a WebSocket (broker/wire/json.md): a translator at both ends of the session that all others have.

What a client says becomes native frames, which the session takes in as it takes anybody's, so there is one semantics.
What the session hands out becomes texts: deliveries by the renderer, once for all who get the same, every other frame
in `told`. Texts are taken one by one, and so few in a turn that a burst of one client delays nobody; while the session
listens to nobody they wait here, and the socket is not read.

Runs on the node's loop only.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any, Final

from picows import WSCloseCode, WSMsgType, WSProtocolError

from broker.edge.native import shares_pieces
from broker.edge.web.dialect_ops import GRANT_BYTES, OPERATIONS, NotReady, say_hello
from broker.edge.web.socket import Ear, SocketSession
from broker.edge.web.told import Told, refusal_text
from broker.events import emit
from broker.model.errors import BrokerError, error
from broker.wire import control
from broker.wire.dialect import TEXT_BYTES_BEFORE_WELCOME_MAX, Members, is_digits, parse
from broker.wire.kinds import Kind
from broker_native.json_chunks import framed

if TYPE_CHECKING:
    from picows import WSFrame, WSTransport

    from broker.access.gate import Identity
    from broker.edge.web.context import Web
    from broker.edge.web.socket import SocketTransport
    from broker_native.json_chunks import Renderer

__all__ = ["JSON_PROTOCOL", "Dialect", "TextEar", "open_text"]

JSON_PROTOCOL: Final = "broker.json.v1"
HELD_BY_TEXTS: Final = 1 << 16
"""Why a connection is not read, beside the session's own reasons: texts wait."""
TEXTS_A_TURN: Final = 32
PING: Final = b"\x89\x00"
"""A WebSocket's (RFC 6455 §5.5.2), as a server sends it; the peer's stack answers it."""


class Dialect(SocketSession):
    """One conversation in JSON.

    Args:
        web: What the listener shares.
        identity: Who is at the other end, as far as the request tells.
    """

    __slots__ = ("_granting", "_pings", "_renderer", "_resting", "_taken", "_texts", "requests", "told")

    def __init__(self, web: Web, identity: Identity) -> None:
        super().__init__(web, identity)
        self.told = Told(self.text_bytes_max)
        self.requests = 0
        self._renderer: Renderer = web.renderer
        self._texts: deque[bytes] = deque()
        self._taken = 0
        self._resting = False
        self._granting = False
        self._pings = False

    @property
    def text_bytes_max(self) -> int:
        """Bytes of a client's text after WELCOME: base64 and JSON make less than twice as much of a payload."""
        return 2 * self.node.limits.frame_bytes_max

    # -- the transport's calls -----------------------------------------------------------------------------------------

    def open(self, transport: SocketTransport, *, shares: bool) -> None:
        """The transport is there: it is handed whole messages, and keeps them as they are if it `shares`."""
        self.start(transport, shares=shares)
        # What the outbox hands over is translated before the transport's account sees it.
        self.outbox.transport = self

    def text(self, text: bytes) -> None:
        """Take a text of the client's."""
        if self.closed:
            return
        if self._texts or self._is_busy() or self._taken >= TEXTS_A_TURN:
            self._texts.append(text)
            self._hold_texts()
            return
        self._take(text)
        self._taken += 1
        self._rest()

    def heard(self) -> None:
        """The client's stack has answered a ping."""
        self.feed(control.encode_pong(0))

    def writing_resumed(self) -> None:
        super().writing_resumed()
        self._grant_soon()
        if self._texts:
            self._rest()

    # -- what comes in -------------------------------------------------------------------------------------------------

    def _is_busy(self) -> bool:
        """Whether the session takes nothing now, or its client takes no answers."""
        return bool(self._held_by & ~HELD_BY_TEXTS) or self.suspended or self.put_off or self.outbox.paused

    def _hold_texts(self) -> None:
        """Read nothing more until the texts that wait were taken."""
        if self.transport is not None and not self._held_by & HELD_BY_TEXTS:
            if not self._held_by:
                self.transport.pause_reading()
            self._held_by |= HELD_BY_TEXTS
        self._rest()

    def _rest(self) -> None:
        """Have a turn of its own for what is left, or for what comes then."""
        if not self._resting:
            self._resting = True
            self.node.loop.call_soon(self._go_on)

    def _go_on(self) -> None:
        """Another turn: take what waits."""
        self._resting = False
        self._taken = 0
        while self._texts and not self.closed and not self._is_busy() and self._taken < TEXTS_A_TURN:
            self._taken += 1
            self._take(self._texts.popleft())
        if self.closed:
            self._texts.clear()
        elif not self._texts:
            self._read_on(HELD_BY_TEXTS)
        elif not self._is_busy():
            self._rest()

    def _read_on(self, why: int) -> None:
        super()._read_on(why)
        if self._texts and not self.closed:
            self._rest()

    def _take(self, text: bytes) -> None:
        """Do what a text says."""
        limit = self.text_bytes_max if self.opened else TEXT_BYTES_BEFORE_WELCOME_MAX
        if len(text) > limit:
            self.end(error("FRAME_TOO_LARGE", f"message: got {len(text)} bytes, limit {limit}"))
            return
        try:
            members = parse(text)
        except BrokerError as failure:
            self.end(failure)
            return
        op, id, sub = members.pop("op", None), members.get("id"), members.get("sub")
        try:
            if not self.opened and op != "hello":
                say_hello(self, Members("hello", {}))
                if not self.opened:
                    raise NotReady
            self._operate(op, members)
        except NotReady:
            if not self.closed:
                self._texts.appendleft(text)
                self._hold_texts()
        except BrokerError as failure:
            said: dict[str, object] = {"refused": op if isinstance(op, str) else ""}
            if isinstance(id, (str, int)) and len(str(id)) <= 64:
                said["id"] = id
            if type(sub) is int or is_digits(sub):
                said["sub"] = sub
            self.say(refusal_text(failure, said))

    def _operate(self, op: object, members: dict[str, Any]) -> None:
        operation = OPERATIONS.get(op) if isinstance(op, str) else None
        if operation is None:
            shown = op if isinstance(op, str) else type(op).__name__
            raise error("UNKNOWN_OPERATION", f"op: got {shown!a:.80}, known: {', '.join(sorted(OPERATIONS))}")
        operation(self, Members(str(op), members))

    def frame(self, kind: int, body: bytes, flags: int = 0) -> bytes:
        """Return a frame that the session takes.

        Raises:
            BrokerError: FRAME_TOO_LARGE.
        """
        if len(body) > self.frame_bytes_max:
            raise error("FRAME_TOO_LARGE", f"message: got {len(body)} bytes of records, limit {self.frame_bytes_max}")
        return control.frame(kind, body, flags)

    # -- what leaves ---------------------------------------------------------------------------------------------------

    def writelines(self, pieces: list[Any]) -> None:
        """Send what the outbox hands over, as texts."""
        assert self._sender is not None
        try:
            messages = self._renderer.translate(pieces, self)
        except MemoryError:
            raise
        except Exception as failure:
            # The others of this flush get theirs.
            emit("session_failed", peer=self.identity.peer, failure=failure)
            self.stop()
            self.transport.abort()
            return
        if not self._renderer.forgets:
            self._renderer.forgets = True
            self.node.loop.call_soon(self._renderer.forget)
        if self._pings:
            self._pings = False
            messages.append(PING)
        if messages:
            self._sender.writelines([*messages])

    def say(self, text: bytes) -> None:
        """Send a text that no frame of the session's becomes."""
        if self._sender is not None and not self.closed:
            self._sender.writelines([framed(text)])

    def on_answer(self, kind: int, flags: int, body: bytes) -> list[bytes]:
        """Return the texts that a frame becomes (the renderer's call)."""
        if kind == Kind.PING:
            self._pings = True
            return []
        return self.told.texts(kind, body)

    def on_spent(self, subscription: int, size: int) -> None:
        """So many bytes of a subscription's chunks were handed over (the renderer's call)."""
        watched = self.told.watched.get(subscription)
        if watched is not None and watched.grants:
            watched.due += size
            if watched.due >= GRANT_BYTES // 4:
                self._grant_soon()

    def _grant_soon(self) -> None:
        if not self._granting:
            self._granting = True
            self.node.loop.call_soon(self._grant)

    def _grant(self) -> None:
        """Grant anew what the socket has taken."""
        self._granting = False
        if self.closed or self.outbox.paused or self.transport is None:
            return
        frames = b""
        for number, watched in self.told.watched.items():
            if watched.due:
                frames += control.encode_credit(number, watched.due)
                watched.due = 0
        if frames:
            # The peer has said nothing: that its socket takes bytes does not prove that it lives.
            heard_us = self.heard_us
            self.feed(frames)
            self.heard_us = heard_us

    def on_exhausted(self) -> None:
        self.stop()
        if self.transport is not None:
            self.transport.abort()
        emit("connection_exhausted", code="LIMIT", detail="memory: none is left for a connection's texts")


class TextEar(Ear):
    """Hears the texts of a WebSocket.

    Args:
        web: What the listener shares.
        session: Takes them in.
    """

    data_type = WSMsgType.TEXT

    def __init__(self, web: Web, session: Dialect) -> None:
        super().__init__(web, session)
        self.dialect = session
        self._parts: list[bytes] = []
        self._parts_bytes = 0

    def begin(self, transport: SocketTransport) -> None:
        self.dialect.open(transport, shares=shares_pieces(transport.transport))

    def on_ws_frame(self, transport: WSTransport, frame: WSFrame) -> None:
        super().on_ws_frame(transport, frame)
        if frame.msg_type == WSMsgType.PONG:
            self.dialect.heard()

    def take(self, frame: WSFrame) -> None:
        part = frame.get_payload_as_bytes()
        if frame.fin and not self._parts:
            self._text(part)
            return
        limit = self.dialect.text_bytes_max
        self._parts.append(part)
        self._parts_bytes += len(part) + PART_BYTES
        if self._parts_bytes > limit:
            raise WSProtocolError(WSCloseCode.MESSAGE_TOO_BIG, f"message: got more than {limit} bytes in parts")
        if frame.fin:
            text, self._parts, self._parts_bytes = b"".join(self._parts), [], 0
            self._text(text)

    def _text(self, text: bytes) -> None:
        try:
            text.decode()
        except UnicodeDecodeError:
            raise WSProtocolError(WSCloseCode.INVALID_TEXT, "message: it is no UTF-8") from None
        self.dialect.text(text)


PART_BYTES: Final = 64
"""What a part of a message costs beside its bytes: one may have none."""


def open_text(web: Web, identity: Identity) -> TextEar:
    """Make what hears JSON in text messages."""
    return TextEar(web, Dialect(web, identity))
