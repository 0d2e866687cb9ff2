"""Frames of one byte stream and what is called for each: the twin of `broker_native.intake`.

It keeps everything that has arrived in one buffer and looks at it anew each time.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tests.reference.frames import CREDIT, CREDIT_BODY, FRAME_HEADER, PUBLISH, PUBLISH_HEADER

if TYPE_CHECKING:
    from tests.reference.tails import Publisher

MALFORMED_FRAME, FRAME_TOO_LARGE = 3001, 3002
DUPLICATE = 1
CREDIT_MAX = 1 << 40
PAST_CREDIT = 1 << 32

Call = tuple[Any, ...]
"""The name of what is called, and its arguments."""


def is_credit(body: bytes) -> bool:
    """Whether a CREDIT is well formed: its size is right, and its reserved field is zero."""
    return len(body) == CREDIT_BODY.size and not CREDIT_BODY.unpack(body)[1]


class Intake:
    """One connection's way in.

    Args:
        publisher: who decides PUBLISH frames; None hands them on like any other.
        credits: the credit of each subscription; None hands CREDIT frames on.
        frame_bytes_max: largest body, bytes.
    """

    def __init__(self, publisher: Publisher | None, credits: dict[int, int] | None, frame_bytes_max: int) -> None:
        self.publisher = publisher
        self.credits = credits
        self.frame_bytes_max = frame_bytes_max
        self.calls: list[Call] = []
        self.closed = False
        self._arrived = b""

    def feed(self, data: bytes) -> None:
        """Take bytes in."""
        self._arrived += data
        while not self.closed and len(self._arrived) >= FRAME_HEADER.size:
            size, kind, flags, reserved = FRAME_HEADER.unpack_from(self._arrived)
            if size > self.frame_bytes_max:
                self.malformed(FRAME_TOO_LARGE, size)
            elif reserved:
                self.malformed(MALFORMED_FRAME, reserved)
            elif len(self._arrived) < FRAME_HEADER.size + size:
                return
            else:
                body = self._arrived[FRAME_HEADER.size :][:size]
                self._arrived = self._arrived[FRAME_HEADER.size + size :]
                self.take_frame(kind, flags, body)

    def malformed(self, code: int, detail: int) -> None:
        """The peer's bytes make no sense: the connection is over."""
        self.calls.append(("malformed", code, detail))
        self.closed = True

    def take_frame(self, kind: int, flags: int, body: bytes) -> None:
        if kind == PUBLISH and self.publisher is not None and not flags:
            self.take_publish(self.publisher, body)
        elif kind == CREDIT and self.credits is not None and not flags and is_credit(body):
            self.take_credit(self.credits, body)
        else:
            self.calls.append(("frame", kind, flags, body))

    def take_publish(self, publisher: Publisher, body: bytes) -> None:
        code = publisher.publish_frame(body)
        if code and len(body) < PUBLISH_HEADER.size:
            self.malformed(MALFORMED_FRAME, len(body))
        elif code:
            slot, count, number = PUBLISH_HEADER.unpack_from(body)
            if code == DUPLICATE:
                self.calls.append(("duplicate", slot, number, count))
            else:
                self.calls.append(("refused", code, slot, number, count))

    def take_credit(self, credits: dict[int, int], body: bytes) -> None:
        number, _, more = CREDIT_BODY.unpack(body)
        if number not in credits:
            return
        if more > CREDIT_MAX or credits[number] > CREDIT_MAX:
            self.malformed(MALFORMED_FRAME, PAST_CREDIT)
            return
        credits[number] += more
        self.calls.append(("credit", number))
