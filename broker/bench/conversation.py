"""The slow part of a connection: a blocking conversation that ends in a socket for the driver.

HELLO, CHANNEL, SUBSCRIBE and REQUEST are spoken here; PUBLISH, DELIVER and CREDIT are the driver's, JOBS and ACK the
crew's. Frames are read to their last byte and no further, so that nothing of what follows is lost when the socket is
handed over.
"""

from __future__ import annotations

import socket
import time
from typing import TYPE_CHECKING, Any, Final

from broker.model.consumers import Consume
from broker.model.errors import error, from_wire
from broker.remote.address import TcpAddress, parse_url
from broker.wire import control
from broker.wire.kinds import FRAME_HEADER_BYTES, Kind

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Self

TIMEOUT_S: Final = 30.0
SUBSCRIPTION: Final = 1
"""The number that every subscription of the bench has; each has a connection of its own."""


def open_socket(url: str) -> socket.socket:
    """Connect to `broker://host:port` or `broker+unix:///path`, blocking.

    Raises:
        ConfigError: ADDRESS; the URL is neither.
        ConnectionLost: nobody listens there.
    """
    address = parse_url(url)
    try:
        if isinstance(address, TcpAddress):
            opened = socket.create_connection(address, TIMEOUT_S)
            opened.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        else:
            opened = socket.socket(socket.AF_UNIX)
            opened.settimeout(TIMEOUT_S)
            opened.connect(address.path)
    except OSError as failure:
        raise error("CONNECTION_LOST", f"{url}: {failure.strerror or failure}") from failure
    return opened


ANSWER_BYTES_MAX: Final = 4_096
UPGRADE: Final = (
    b"GET /v1/socket HTTP/1.1\r\nHost: %b\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
    b"Sec-WebSocket-Protocol: broker.v1\r\nSec-WebSocket-Key: YnJva2VyIGJlbmNoIGtleQ==\r\n\r\n"
)


def channel_frames(names: Sequence[bytes]) -> bytes:
    """Return the frames that give channels their indexes as numbers."""
    return b"".join(control.encode_channel(number, name) for number, name in enumerate(names))


class Conversation:
    """One connection that has said HELLO. Owns its socket until `detach`."""

    def __init__(self, url: str) -> None:
        """Connect and say HELLO.

        Raises:
            BrokerError: there is no server, or it refuses.
        """
        self._socket = self._open(url)
        self._detached = False
        self._requests = 0
        try:
            self._send(control.encode_hello("broker bench"))
            self.limits = control.decode_welcome(self._expect(Kind.WELCOME)).limits
        except BaseException:
            self._socket.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if not self._detached:
            self._socket.close()

    def name_channels(self, frames: bytes) -> None:
        """Send what `channel_frames` has made. A refusal comes with the first publish."""
        self._send(frames)

    def subscribe(self, filters: Sequence[str], credit_bytes: int, *, from_start: bool = False) -> None:
        """Subscribe, as number SUBSCRIPTION, from new or from the start.

        Raises:
            BrokerError: the server refuses.
        """
        start = control.FromStart() if from_start else control.FromNew()
        self._send(control.encode_subscribe(control.Subscribe(SUBSCRIPTION, tuple(filters), credit_bytes, start)))
        control.decode_subscribed(self._expect(Kind.SUBSCRIBED))

    def join(self, consumer: str, window: int, bytes_max: int) -> None:
        """Subscribe, as number SUBSCRIPTION, as a member of a consumer.

        Args:
            consumer: its name.
            window: jobs that may be under way to it.
            bytes_max: and of how many bytes.

        Raises:
            BrokerError: the server refuses.
        """
        consume = Consume(consumer, window, bytes_max)
        self._send(control.encode_subscribe(control.Subscribe(SUBSCRIPTION, (), 0, consumer=consume)))
        control.decode_subscribed(self._expect(Kind.SUBSCRIBED))

    def stats(self) -> dict[str, Any]:
        """Ask the server for its figures.

        Raises:
            BrokerError: the server refuses.
        """
        stats: dict[str, Any] = self.ask("stats")["stats"]
        return stats

    def ask(self, operation: str, arguments: Mapping[str, object] | None = None) -> dict[str, Any]:
        """Send a REQUEST and return the fields of its REPLY.

        Raises:
            BrokerError: the server refuses.
        """
        self._requests += 1
        self._send(control.encode_request(self._requests, operation, arguments))
        _, fields = control.decode_reply(self._expect(Kind.REPLY))
        return fields

    def ping_ns(self) -> int:
        """Send a PING, wait for its PONG, and return how long that took, nanoseconds.

        Raises:
            BrokerError: the server refuses, or is gone.
        """
        begun = time.monotonic_ns()
        self._send(control.encode_ping(begun))
        self._expect(Kind.PONG)
        return time.monotonic_ns() - begun

    def close(self) -> None:
        """Close the connection."""
        self._socket.close()

    def detach(self) -> socket.socket:
        """Hand the socket over, non-blocking, to a caller who closes it; the conversation is over."""
        self._detached = True
        self._socket.setblocking(False)
        return self._socket

    def _open(self, url: str) -> socket.socket:
        return open_socket(url)

    def _send(self, data: bytes) -> None:
        self._socket.sendall(data)

    def _expect(self, kind: Kind) -> bytes:
        """Read frames until one of a kind comes; PINGs are answered, an ERROR is raised."""
        while True:
            size, got, _, _ = control.FRAME_HEADER.unpack(self._read(FRAME_HEADER_BYTES))
            body = self._read(size)
            if got == kind:
                return body
            if got == Kind.ERROR:
                raise from_wire(control.decode(body))
            if got == Kind.PING:
                self._send(control.encode_pong(control.decode_token(body)))
            elif got not in (Kind.PONG, Kind.EVENT):
                raise error("MALFORMED_FRAME", f"the server: got a frame of kind {got}, expected {kind.name}")

    def _read(self, size: int) -> bytes:
        data = bytearray()
        while len(data) < size:
            try:
                piece = self._socket.recv(size - len(data))
            except OSError as failure:
                raise error("CONNECTION_LOST", f"while waiting for an answer: {failure}") from failure
            if not piece:
                raise error("CONNECTION_LOST", "the server closed the connection")
            data += piece
        return bytes(data)


class WebConversation(Conversation):
    """The same over a WebSocket: `url` is of the web listener's port. Messages are whole frames, and masks are zero."""

    _left = 0
    """Bytes of the message under way that were not read."""

    def detach(self) -> socket.socket:
        """As `Conversation.detach`.

        Raises:
            MalformedFrame: the server said more than was asked.
        """
        if self._left:
            raise error("MALFORMED_FRAME", f"the server: {self._left} bytes of a message are left")
        return super().detach()

    def _open(self, url: str) -> socket.socket:
        opened = open_socket(url)
        try:
            opened.sendall(UPGRADE % url.partition("://")[2].encode())
            answer = b""
            while not answer.endswith(b"\r\n\r\n"):
                seen = opened.recv(ANSWER_BYTES_MAX, socket.MSG_PEEK)
                if not seen:
                    raise error("CONNECTION_LOST", f"{url}: the server closed the connection")
                # To its last byte and no further: the driver, or the next answer, is behind it.
                head, end, _ = seen.partition(b"\r\n\r\n")
                answer += opened.recv(len(head + end))
            if not answer.startswith(b"HTTP/1.1 101 "):
                raise error("CONNECTION_LOST", f"{url}: got {answer[:64]!a}, expected a WebSocket")
        except BaseException:
            opened.close()
            raise
        return opened

    def _send(self, data: bytes) -> None:
        size = len(data)
        head = bytes([0x82, 0x80 | size]) if size < 126 else b"\x82\xff" + size.to_bytes(8, "big")
        if 126 <= size < 1 << 16:
            head = b"\x82\xfe" + size.to_bytes(2, "big")
        super()._send(head + bytes(4) + data)

    def _read(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            if not self._left:
                first, width = super()._read(2)
                if first != 0x82:
                    raise error(
                        "MALFORMED_FRAME", f"the server: got a message that begins with {first:#x}, expected 0x82"
                    )
                self._left = int.from_bytes(super()._read(2 if width == 126 else 8), "big") if width > 125 else width
            part = super()._read(min(size - len(data), self._left))
            self._left -= len(part)
            data += part
        return data
