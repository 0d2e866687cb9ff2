"""A crew on sockets whose other ends the test has, and a server that says what it was told to."""

from __future__ import annotations

import socket
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from broker_native.crew import Done, Members
from tests.native.peer_rig import PAYLOAD_BYTES, received

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence


class CrewRig:
    """Members, and the ends of the sockets that a server would have."""

    def __init__(
        self,
        protocol: str,
        messages: int,
        *,
        seats: Sequence[dict[str, Any]] = ({},),
        bounded: bool = True,
        **options: Any,
    ) -> None:
        kind = socket.SOCK_DGRAM if bounded else socket.SOCK_STREAM
        pairs = [socket.socketpair(socket.AF_UNIX, kind) for _ in seats]
        self.theirs = [theirs for theirs, _ in pairs]
        self.ours = [ours for _, ours in pairs]
        for each in (*self.ours, *self.theirs):
            each.setblocking(False)
        self.members = Members(
            **{"messages": messages, "payload_bytes": PAYLOAD_BYTES, "protocol": protocol, **options}
        )
        for ours, seat in zip(self.ours, seats, strict=True):
            self.members.add_member(ours.fileno(), **seat)

    def run(self, *told: bytes | Iterable[bytes], patience_s: float = 0.05) -> Done:
        """Send each member its pieces, let the crew run, and return what came of it."""
        for side, pieces in zip(self.theirs, told, strict=False):
            for piece in [pieces] if isinstance(pieces, bytes) else pieces:
                side.send(piece)
        return self.members.run(patience_s=patience_s)

    def said(self, member: int = 0) -> bytes:
        """Return what a member has sent."""
        return received(self.theirs[member])


@contextmanager
def crew_rig(protocol: str, messages: int, **options: Any) -> Iterator[CrewRig]:
    """Yield a rig, and close its sockets."""
    rig = CrewRig(protocol, messages, **options)
    try:
        yield rig
    finally:
        for each in (*rig.ours, *rig.theirs):
            each.close()


def good(done: Done) -> bool:
    """Whether everything was done once, in order and whole."""
    wrong = done.lost, done.duplicated, done.corrupt, done.overtaken, done.unacked
    return done.finished and done.failure is None and not any(wrong)
