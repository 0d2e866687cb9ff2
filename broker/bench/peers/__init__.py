"""The slow part of a connection to a server of another kind: a blocking handshake that ends in a socket for the driver.

A module each for Redis, NATS and MQTT, with the same functions: `prepare` makes what a work needs on the server and
`clean_up` removes it, `open_publisher` and `open_subscriber` connect and return non-blocking sockets that the driver of
`broker_native.driver` takes over in their dialect. Whatever came of what follows stays in the socket. Nothing of the
hot path is spoken here, and no server is started here.

    work = PeerWork("nats", room="bench.e.1f2e3d4c", channels=1)
    peer = peer_of(work.dialect)
    peer.prepare(address, work)
    driver = Driver(work.names, publishers=1, dialect=work.dialect)
    driver.add_publisher(peer.open_publisher(address, work).fileno())        # the caller keeps the sockets
    driver.add_subscriber(peer.open_subscriber(address, work).fileno())
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Protocol

from broker.bench.peers import mqtt, nats, redis

if TYPE_CHECKING:
    import socket

    from broker.bench.peers.work import Address, PeerWork, Seat


class Peer(Protocol):
    """What each module of a peer has."""

    def prepare(self, address: Address, work: PeerWork) -> None:
        """Make what a work needs on the server before anybody connects."""

    def open_publisher(self, address: Address, work: PeerWork) -> socket.socket:
        """Connect a publisher."""

    def open_subscriber(self, address: Address, work: PeerWork, audience: int = 0) -> socket.socket:
        """Connect a reader of all channels of an audience."""

    def clean_up(self, address: Address, work: PeerWork) -> None:
        """Remove what a work has left on the server."""


class QueuePeer(Protocol):
    """What those have besides who have work queues."""

    QUEUE_BATCH: int

    def make_queue(self, address: Address, work: PeerWork) -> bytes:
        """Make a queue over what is stored of a work, and return what members' acknowledgements say."""

    def open_member(self, address: Address, work: PeerWork, number: int, batch: int) -> Seat:
        """Connect a member that asks for so many messages at once."""

    def count_undone(self, address: Address, work: PeerWork) -> int:
        """Return how many messages of the queue are not acknowledged."""


QUEUES: Final[dict[str, QueuePeer]] = {"redis-stream": redis, "jetstream": nats}
"""Who speaks a dialect that has work queues."""

PEERS: Final[dict[str, Peer]] = {
    "redis": redis,
    "redis-stream": redis,
    "nats": nats,
    "jetstream": nats,
    "mqtt-0": mqtt,
    "mqtt-1": mqtt,
}
"""Who speaks a dialect."""


def peer_of(dialect: str) -> Peer:
    """Return who speaks a dialect of the driver.

    Raises:
        KeyError: nobody does; the broker's own is spoken by `broker.bench.conversation`.
    """
    return PEERS[dialect]
