"""The client's own reader and publishing buffer, without a client around them: bytes in, bytes out."""

from __future__ import annotations

from collections import deque

from broker.model.errors import error
from broker.model.names import check_channel
from broker.remote.bus import VERDICTS
from broker.wire import control
from broker.wire.kinds import Kind
from broker_native.messages import FrameReader
from broker_native.posting import PublishBuffer

FOR_GOOD = 0
PRODUCER = bytes(range(16, 32))


class BufferClient:
    """A client that publishes and nothing else; it goes on over any number of connections."""

    def __init__(self) -> None:
        self.buffer = PublishBuffer(
            None,  # type: ignore[arg-type]  # a loop is for those who wait for answers
            error=error,
            check_channel=check_channel,
            pack_headers=control.pack_headers,
            kick=lambda: None,
            bytes_max=1 << 20,
        )
        self._reader = FrameReader(error, 1 << 20)
        self._later = deque([("a.x", b"accepted"), ("s.a", b"a"), ("s.a", b"b")])
        self._post()

    def connect(self) -> bytes:
        """Begin a connection; returns what is sent first."""
        self.buffer.suspend()
        self._reader = FrameReader(error, 1 << 20)
        return control.encode_hello("buffer", PRODUCER)

    def say_more(self) -> bytes:
        """Post the next of what this client says later; returns what is sent."""
        self.buffer.post(*self._later.popleft())
        return self.take()

    def _post(self) -> None:
        """Post what this client has to say first: the third record is larger than the server takes."""
        for payload in (b"1", b"2", b"too large" * 12, b"4"):
            self.buffer.post("s.a", payload)
        self.buffer.post("e.x", b"5", priority=1)
        self.buffer.post("no.profile", b"6")
        self.buffer.post("s.b", b"7", key=b"k", headers={"a": 1}, expiry_s=60)

    def feed(self, data: bytes) -> bytes:
        """Take what has arrived; returns what is sent because of it."""
        for kind, _, body in self._reader.feed(data):
            self._handle(Kind(kind), body)
        assert self._reader.failure is None, self._reader.failure
        return self.take()

    def take(self) -> bytes:
        """Return what is ready to be sent."""
        sent = b""
        while (block := self.buffer.take()) is not None:
            sent += bytes(block)
        return sent

    def _handle(self, kind: Kind, body: bytes) -> None:
        match kind:
            case Kind.WELCOME:
                self.buffer.resume(control.decode_welcome(body).highest)
            case Kind.PUBLISHED:
                self.buffer.answer(body)
            case Kind.ERROR:
                refusal = control.decode_error(body)
                if refusal.channel is not None:
                    self.buffer.refuse_channel(refusal.channel, refusal.failure)
                elif refusal.number is not None:
                    verdict = VERDICTS.get(refusal.failure.name, FOR_GOOD)
                    self.buffer.refuse(refusal.number, refusal.count or 1, refusal.failure, verdict)
