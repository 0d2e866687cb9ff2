"""One conversation with a server: a socket, HELLO and WELCOME, frames in both directions, keep-alive, the end.

Blocking, for one thread. A conversation remembers nothing that outlives its connection; what does is the client's
(client.py). It answers PING itself and reads while it writes, so that neither side can wait for the other for good.
"""

from __future__ import annotations

import select
import socket
import time

from . import frames
from .frames import Answer, Error, Kind, Malformed, Ping, Splitter, Welcome

Address = tuple[str, int] | str

_RECEIVE_BYTES = 65_536


class Ended(Exception):
    """The conversation is over. `error` is the server's reason, None when the stream ended without one."""

    def __init__(self, error: Error | None, why: str = "") -> None:
        super().__init__(str(error) if error is not None else f"CONNECTION_LOST (2003): {why}")
        self.error = error


class Conversation:
    """Connects and says HELLO.

    Args:
        address: (host, port) for TCP, a path for a Unix socket.
        producer: 16 bytes, or None for a line that ends with the connection.
        versions: the versions to offer.
        timeout_s: for connecting, for WELCOME, and for the server to take what is sent.

    Raises:
        Ended: refused, or no server there.
        Malformed: an answer that the document does not allow.
    """

    def __init__(
        self,
        address: Address,
        *,
        producer: bytes | None = None,
        versions: tuple[int, ...] = (1,),
        token: str | None = None,
        timeout_s: float = 10.0,
    ) -> None:
        self._timeout_s = timeout_s
        self._splitter = Splitter()
        self._end = ""
        self._ping_s = 0.0
        self._heard = self._pinged = self.begun = time.monotonic()
        self._socket = _connect(address, timeout_s)
        self.send(frames.hello(list(versions), "independent 1", producer, token))
        self.welcome = self._greet(versions)
        self._splitter.size_max = frames.FRAME_BYTES_MAX
        self._ping_s = self.welcome.ping_s

    def _greet(self, versions: tuple[int, ...]) -> Welcome:
        try:
            answer = self.receive(self._timeout_s)
            if isinstance(answer, Welcome) and answer.version in versions:
                return answer
            raise Malformed(f"{answer} as the answer to HELLO")
        except BaseException:
            self._socket.close()
            raise

    def close(self) -> None:
        """Close the socket, which is all the farewell there is."""
        self._socket.close()
        self._end = "closed"

    def send(self, data: bytes) -> None:
        """Write whole frames, and read what comes meanwhile.

        Raises nothing when the connection is lost: the server may have said why, and what it said is for `receive`,
        which reports the end behind it.
        """
        left = memoryview(data)
        until = time.monotonic() + self._timeout_s
        while left and not self._end:
            if time.monotonic() > until:
                self._end = f"the server took nothing for {self._timeout_s} s"
                return
            readable, writable, _ = select.select([self._socket], [self._socket], [], 0.5)
            if readable:
                self._read()
            if writable and not self._end:
                try:
                    left = left[self._socket.send(left) :]
                except BlockingIOError:
                    continue
                except OSError as error:
                    self._drain(f"writing: {error}")

    def receive(self, timeout_s: float) -> Answer | None:
        """The server's next frame, None if none is there in time. PINGs are answered here.

        Raises:
            Ended: an ERROR about the connection, the end of the stream, or silence of 3 × ping_s.
            Malformed: the server broke the protocol; the socket is closed.
        """
        until = time.monotonic() + timeout_s
        looked = False
        while True:
            answer = self._next()
            if isinstance(answer, Ping):
                self.send(frames.token(Kind.PONG, answer.token))
                continue
            if isinstance(answer, Error) and not answer.concerns:
                self.close()
                raise Ended(answer)
            if answer is not None:
                return answer
            if self._end:
                self._socket.close()
                raise Ended(None, self._end)
            left = until - time.monotonic()
            if left < 0 and looked:
                return None
            looked = True
            self._wait(max(0.0, left))

    def _next(self) -> Answer | None:
        try:
            found = self._splitter.next()
            if found is None:
                return None
            answer = frames.decode(*found)
            welcomed = hasattr(self, "welcome")
            if isinstance(answer, Welcome) if welcomed else not isinstance(answer, Welcome | Error):
                raise Malformed(f"{answer} {'after' if welcomed else 'before'} WELCOME")
            return answer
        except Malformed:
            self.close()
            raise

    def _wait(self, timeout_s: float) -> None:
        """Read once. What lies in the socket counts as heard, however long this side has not looked."""
        if self._ping_s:
            timeout_s = min(timeout_s, self._ping_s)
        if select.select([self._socket], [], [], timeout_s)[0]:
            self._read()
        now = time.monotonic()
        if not self._ping_s or now - max(self._heard, self._pinged) < self._ping_s:
            return
        if now - self._heard > 3 * self._ping_s and self._pinged > self._heard:
            self._end = self._end or "silence"
            return
        self._pinged = now
        self.send(frames.token(Kind.PING, 0))

    def _read(self) -> None:
        try:
            data = self._socket.recv(_RECEIVE_BYTES)
        except BlockingIOError:
            return
        except OSError as error:
            self._end = f"reading: {error}"
            return
        self._heard = time.monotonic()
        if not data:
            self._end = "the end of the stream"
        self._splitter.feed(data)

    def _drain(self, why: str) -> None:
        """After a failed write: the server's reason may have come already."""
        while not self._end and select.select([self._socket], [], [], 0)[0]:
            self._read()
        self._end = self._end or why


def _connect(address: Address, timeout_s: float) -> socket.socket:
    family = socket.AF_UNIX if isinstance(address, str) else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.settimeout(timeout_s)
        sock.connect(address)
        if family == socket.AF_INET:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    except OSError as error:
        sock.close()
        raise Ended(None, f"connecting: {error}") from error
    sock.setblocking(False)
    return sock
