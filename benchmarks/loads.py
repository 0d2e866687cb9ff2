"""A load driver on socket pairs: everything has been published and delivered, and waits in the sockets to be read."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING

from benchmarks.samples import PAYLOAD_BYTES
from broker_native.driver import Driver
from broker_native.ledger import payload_of

if TYPE_CHECKING:
    from collections.abc import Callable

NAME = b"room.1"
DELIVERED = 500
"""They fit into a socket's buffer."""
BATCH = 50
"""Messages in a chunk, where there are chunks."""


class Load:
    """A driver with one publisher and one subscriber, and the ends of the sockets that a server would have.

    Args:
        dialect: of the driver.
        told: of the payloads in the order in which they were published, what a server says to the publisher, and what
            to the subscriber.
        batch: messages in what is published at once.
    """

    def __init__(self, dialect: str, told: Callable[[list[bytes]], tuple[bytes, bytes]], batch: int = 1) -> None:
        pairs = [socket.socketpair() for _ in range(2)]
        self.ours, self.theirs = zip(*pairs, strict=True)
        for each in self.ours:
            each.setblocking(False)
        options = {"batch": batch, "crc": True} if dialect == "broker" else {"dialect": dialect}
        self.driver = Driver([NAME], publishers=1, payload_bytes=PAYLOAD_BYTES, **options)
        self.driver.add_publisher(self.ours[0].fileno())
        self.driver.add_subscriber(self.ours[1].fileno(), credit_bytes=1 << 30)
        # Nobody answers or delivers yet, so it ends without.
        assert self.driver.run(messages=DELIVERED, patience_s=0.01).sent == DELIVERED
        payloads = [payload_of(0, counter, 1, 0, PAYLOAD_BYTES) for counter in range(DELIVERED)]
        for end, said in zip(self.theirs, told(payloads), strict=True):
            end.sendall(said)

    def read(self) -> int:
        """Read and verify everything; return how many deliveries there were."""
        outcome = self.driver.run(patience_s=5)
        for each in (*self.ours, *self.theirs):
            each.close()
        wrong = (outcome.lost, outcome.duplicated, outcome.reordered, outcome.corrupt, outcome.misplaced)
        assert (outcome.finished, outcome.failure, sum(wrong)) == (True, None, 0), outcome
        return outcome.deliveries
