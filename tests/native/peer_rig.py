"""A driver in the dialect of a peer, on sockets whose other ends the test has.

The sockets keep the bounds of what is sent, so that a stream that was cut anywhere comes in exactly those pieces, and
everything can be sent before the driver runs: what a server answers does not depend on what it gets, but for times.
"""

from __future__ import annotations

import socket
from contextlib import contextmanager
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from broker_native.driver import Driver, Outcome, payload_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

PAYLOAD_BYTES = 40
NAME = b"bench.e.7f.0.0"
PIECES_MAX = 8
"""What a socket holds unread: the kernel takes about ten."""


def payload(counter: int, *, publisher: int = 0, channel: int = 0, time_ns: int = 1) -> bytes:
    """Return the payload of a flow as the driver would publish it."""
    return payload_of(publisher, counter, time_ns, channel, PAYLOAD_BYTES)


def flipped(data: bytes, at: int) -> bytes:
    """Return bytes of which one is another one."""
    return data[:at] + bytes([data[at] ^ 0x10]) + data[at + 1 :]


class PeerRig:
    """A driver with one publisher, subscribers, and the ends of the sockets that a server would have."""

    def __init__(
        self,
        dialect: str,
        *,
        names: Sequence[bytes] = (NAME,),
        subscribers: int = 1,
        bounded: bool = True,
        count: int = 4096,
        **options: Any,
    ) -> None:
        kind = socket.SOCK_DGRAM if bounded else socket.SOCK_STREAM
        pairs = [socket.socketpair(socket.AF_UNIX, kind) for _ in range(1 + subscribers)]
        self.publisher = pairs[0][0]
        self.subscribers = [theirs for theirs, _ in pairs[1:]]
        self.ours = [ours for _, ours in pairs]
        for each in (*self.ours, self.publisher, *self.subscribers):
            each.setblocking(False)
        self.driver = Driver(names, publishers=1, payload_bytes=PAYLOAD_BYTES, dialect=dialect, **options)
        self.driver.add_publisher(self.ours[0].fileno())
        for ours in self.ours[1:]:
            self.driver.add_subscriber(ours.fileno(), count=count)

    @property
    def subscriber(self) -> socket.socket:
        """The server's end of the first subscriber."""
        return self.subscribers[0]

    def run(self, messages: int, **options: Any) -> Outcome:
        """Let the driver publish and take what was sent."""
        return self.driver.run(**{"messages": messages, "patience_s": 0.05, **options})

    def close(self) -> None:
        """Close all sockets."""
        for each in (*self.ours, self.publisher, *self.subscribers):
            each.close()


@contextmanager
def peer_rig(dialect: str, **options: Any) -> Iterator[PeerRig]:
    """Yield a rig, and close it."""
    made = PeerRig(dialect, **options)
    try:
        yield made
    finally:
        made.close()


def received(side: socket.socket) -> bytes:
    """Return all that a side has been sent."""
    data = b""
    while True:
        try:
            data += side.recv(1 << 20)
        except BlockingIOError:
            return data


def said_at_last(rig: PeerRig) -> bytes:
    """Return all that the first subscriber says, to a server that reads it only now."""
    said = received(rig.subscriber)
    while True:
        # A socket that has nothing to send ends its run by itself.
        rig.driver.run(hold_s=0.001)
        more = received(rig.subscriber)
        if not more:
            return said
        said += more


def cut(data: bytes, places: Iterable[int]) -> list[bytes]:
    """Cut bytes at places; nothing is left out, and no piece is empty."""
    bounds = sorted({0, *(place % (len(data) + 1) for place in places), len(data)})
    return [data[begin:end] for begin, end in pairwise(bounds)]


def play(
    dialect: str, messages: int, answers: bytes, deliveries: bytes, places: Iterable[int] = (), **options: Any
) -> tuple[Outcome, bytes, bytes]:
    """Run a driver that is sent these bytes, both cut at the same places.

    Returns:
        The outcome, and what publisher and subscriber have sent.
    """
    places = list(places)
    assert len(places) < PIECES_MAX
    with peer_rig(dialect, **options) as rig:
        for side, data in ((rig.publisher, answers), (rig.subscriber, deliveries)):
            for piece in cut(data, places) if data else []:
                side.send(piece)
        outcome = rig.run(messages)
        return outcome, received(rig.publisher), received(rig.subscriber)


def good(outcome: Outcome) -> bool:
    """Say whether everything came, and nothing was wrong with it."""
    wrong = outcome.lost, outcome.duplicated, outcome.reordered, outcome.corrupt, outcome.misplaced
    return outcome.finished and outcome.failure is None and wrong == (0, 0, 0, 0, 0)


def counted(outcome: Outcome) -> tuple[int, int, int, int]:
    """Return what was wrong with messages: lost, duplicated, reordered, corrupt."""
    return outcome.lost, outcome.duplicated, outcome.reordered, outcome.corrupt


PAYLOAD_FAULTS: dict[str, tuple[list[bytes], tuple[int, int, int, int]]] = {
    "lost in the middle": ([payload(at) for at in (0, 1, 3, 4)], (1, 0, 0, 0)),
    "lost at the end": ([payload(at) for at in (0, 1, 2)], (2, 0, 0, 0)),
    "duplicated": ([payload(at) for at in (0, 1, 1, 2, 3, 4)], (0, 1, 0, 0)),
    "swapped": ([payload(at) for at in (0, 2, 1, 3, 4)], (0, 0, 1, 0)),
    "stamp changed": ([payload(0), flipped(payload(1), 3), *map(payload, (2, 3, 4))], (1, 0, 0, 1)),
    "last byte changed": ([*map(payload, (0, 1, 2, 3)), flipped(payload(4), PAYLOAD_BYTES - 1)], (0, 0, 0, 1)),
    "shorter": ([payload(0), payload(1)[:-1], *map(payload, (2, 3, 4))], (1, 0, 0, 1)),
    "empty": ([payload(0), b"", *map(payload, (2, 3, 4))], (1, 0, 0, 1)),
    "longer": ([payload(0), payload(1) + b"x", *map(payload, (2, 3, 4))], (1, 0, 0, 1)),
    "of another channel": ([payload(0), payload(1, channel=1), *map(payload, (2, 3, 4))], (1, 0, 0, 1)),
}
"""What a peer may do to five messages of one flow, and what must be found."""
