"""What the handshakes with a peer must know of a work."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

if TYPE_CHECKING:
    import socket

Address: TypeAlias = tuple[str, int]
"""A host and a TCP port."""


class Seat(NamedTuple):
    """A member of a work queue that is connected.

    Attributes:
        socket: for the crew; non-blocking, and closed by whoever asked for it.
        ask: what the member says to be given messages.
        inbox: where its answers come, if its protocol has such a thing.
    """

    socket: socket.socket
    ask: bytes
    inbox: bytes = b""


@dataclass(frozen=True)
class PeerWork:
    """The channels of a work, by the names that they have at a peer.

    Attributes:
        dialect: of the driver.
        room: what all names begin with, words between points; a fresh one for each work, so that nothing is there yet.
        channels: how many, from 1.
        audiences: into how many groups channels and subscribers fall, from 1 to the number of channels.
        pattern: subscribe by one pattern for an audience instead of by the channels' names.
        resp: `redis` and `redis-stream` only: the version of the protocol, 2 or 3.
        storage: `jetstream` only: where the stream is kept, `file` or `memory`.
    """

    dialect: str
    room: str
    channels: int = 1
    audiences: int = 1
    pattern: bool = False
    resp: int = 2
    storage: str = "file"

    @cached_property
    def names(self) -> list[bytes]:
        """The channels' names for the driver; a name ends with its index, and before it stands its audience."""
        names = [f"{self.room}.{number % self.audiences}.{number}" for number in range(self.channels)]
        return [self.spelled(name).encode() for name in names]

    def filters(self, audience: int) -> list[bytes]:
        """Return what a subscriber of an audience asks for: its channels' names, or a pattern for them."""
        if not self.pattern:
            return self.names[audience :: self.audiences]
        return [self.spelled(f"{self.room}.{audience}.{'+' if self.is_mqtt else '*'}").encode()]

    def spelled(self, name: str) -> str:
        """Return a name as the peer has it: MQTT parts words with strokes."""
        return name.replace(".", "/") if self.is_mqtt else name

    @property
    def is_mqtt(self) -> bool:
        """Whether names are topics of MQTT."""
        return self.dialect.startswith("mqtt")
