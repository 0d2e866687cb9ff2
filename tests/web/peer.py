"""A peer that writes HTTP and WebSocket frames byte by byte, as RFC 6455 draws them or otherwise. Blocking."""

from __future__ import annotations

import base64
import hashlib
import os
import socket
import struct
from contextlib import suppress
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from typing import Self

TIMEOUT_S = 10.0
TEXT, BINARY, CLOSE, PING, PONG, CONTINUATION = 1, 2, 8, 9, 10, 0
GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"


class Frame(NamedTuple):
    """A frame as it came: no mask, since servers have none."""

    first: int
    payload: bytes

    @property
    def opcode(self) -> int:
        return self.first & 15

    @property
    def code(self) -> int:
        """The code of a Close frame."""
        return struct.unpack(">H", self.payload[:2])[0] if self.payload else 1005


def frame(
    opcode: int,
    payload: bytes = b"",
    *,
    final: bool = True,
    reserved: int = 0,
    mask: bytes | None = b"\x5a\x00\xff\x81",
    width: int | None = None,
    declared: int | None = None,
) -> bytes:
    """Return a frame's bytes.

    Args:
        opcode: Any of 16.
        payload: What it carries.
        final: Whether the message ends with it.
        reserved: The three reserved bits.
        mask: Its key; None for none.
        width: In how many bytes its size is said, 0, 2 or 8; by default in as few as can be.
        declared: A size to be said instead of the payload's.
    """
    size = len(payload) if declared is None else declared
    if width is None:
        width = 0 if size < 126 else 2 if size < 1 << 16 else 8
    masked = 0 if mask is None else 0x80
    head = bytes([(0x80 if final else 0) | reserved << 4 | opcode, masked | {0: size, 2: 126, 8: 127}[width]])
    head += size.to_bytes(width, "big") if width else b""
    if mask is None:
        return head + payload
    return head + mask + bytes(byte ^ mask[at & 3] for at, byte in enumerate(payload))


def handshake(host: str, *, protocol: str | None = "broker.v1", path: str = "/v1/socket", **more: str) -> bytes:
    """Return an upgrade request; `more` replaces or adds headers, and leaves out what is empty.

    Args:
        host: What the header Host says.
        protocol: The subprotocol; None to name none.
        path: What is asked for.
        more: By name, with `_` for `-`.
    """
    headers = {
        "Host": host,
        "Upgrade": "websocket",
        "Connection": "Upgrade",
        "Sec-WebSocket-Key": base64.b64encode(os.urandom(16)).decode(),
        "Sec-WebSocket-Version": "13",
        "Sec-WebSocket-Protocol": protocol or "",
    }
    headers |= {name.replace("_", "-"): value for name, value in more.items()}
    lines = [f"GET {path} HTTP/1.1", *(f"{name}: {value}" for name, value in headers.items() if value)]
    return "\r\n".join(lines).encode() + b"\r\n\r\n"


class Peer:
    """A connection to the web listener.

    Args:
        address: `host:port`.
    """

    def __init__(self, address: str) -> None:
        host, _, port = address.rpartition(":")
        self.address = address
        self.socket = socket.create_connection((host, int(port)), TIMEOUT_S)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._unread = b""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def send(self, *pieces: bytes) -> None:
        """Send bytes, each piece by itself."""
        for piece in pieces:
            self.socket.sendall(piece)

    def read(self, size: int) -> bytes:
        """Read so many bytes; fewer at the end."""
        while len(self._unread) < size:
            piece = self.socket.recv(1 << 16)
            if not piece:
                break
            self._unread += piece
        taken, self._unread = self._unread[:size], self._unread[size:]
        return taken

    def read_head(self) -> tuple[int, dict[str, str]]:
        """Read a response's status and headers, names in lower case."""
        while b"\r\n\r\n" not in self._unread:
            piece = self.socket.recv(1 << 16)
            if not piece:
                raise EOFError(f"the server closed: {self._unread!r}")
            self._unread += piece
        head, _, self._unread = self._unread.partition(b"\r\n\r\n")
        status, *lines = head.decode("latin-1").split("\r\n")
        headers = (line.partition(":") for line in lines)
        return int(status.split(" ")[1]), {name.lower(): value.strip() for name, _, value in headers}

    def read_body(self, headers: dict[str, str]) -> bytes:
        """Read the body that such headers tell of."""
        return self.read(int(headers["content-length"]))

    def upgrade(self, **more: str) -> None:
        """Become a WebSocket, and check the answer as a client has to."""
        request = handshake(self.address, **more)
        self.send(request)
        status, headers = self.read_head()
        key = request.partition(b"Sec-WebSocket-Key: ")[2].partition(b"\r\n")[0]
        assert status == 101
        assert headers["sec-websocket-accept"] == base64.b64encode(hashlib.sha1(key + GUID).digest()).decode()
        assert headers["sec-websocket-protocol"] == more.get("protocol", "broker.v1")
        assert (headers["upgrade"].lower(), headers["connection"].lower()) == ("websocket", "upgrade")
        assert "sec-websocket-extensions" not in headers

    def read_frame(self) -> Frame | None:
        """Read a frame; None when the server has ended the connection."""
        head = self.read(2)
        if not head:
            return None
        size = head[1]
        assert size < 128, "a server masks nothing"
        if size >= 126:
            size = int.from_bytes(self.read(2 if size == 126 else 8), "big")
        return Frame(head[0], self.read(size))

    def read_close(self) -> Frame:
        """Read past whatever comes before a Close frame; then nothing more may come."""
        while True:
            got = self.read_frame()
            assert got is not None, "the connection ended without a Close frame"
            if got.opcode == CLOSE:
                break
        # A server that does not wait for the answer resets what comes too late.
        with suppress(ConnectionError):
            self.send(frame(CLOSE, got.payload))
            assert self.read_frame() is None
        return got
