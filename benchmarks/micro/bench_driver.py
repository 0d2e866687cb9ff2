"""The load driver: payloads made and checked, and DELIVER frames verified from a socket."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING

from benchmarks.samples import EPOCH, PAYLOAD_BYTES
from benchmarks.works import Works, measure
from broker_native.driver import Driver, Verifier, payload_of
from tests.reference.groups import build_chunk, chunk_of
from tests.reference.server import deliver, published

if TYPE_CHECKING:
    from pytest_benchmark.fixture import BenchmarkFixture

    from benchmarks.works import Run, Work

WORKS = Works("driver")

RECORDS = 2000
BATCH = 50
DELIVERED = 500
"""They fit into a socket's buffer."""


@WORKS.work(RECORDS, RECORDS, bytes_per_operation=PAYLOAD_BYTES, once=True)
def make_payloads() -> Run:
    verifier = Verifier(payload_bytes=PAYLOAD_BYTES)
    return lambda: len(verifier.payloads(RECORDS))


@WORKS.work(RECORDS, RECORDS, bytes_per_operation=PAYLOAD_BYTES, once=True)
def check_payloads() -> Run:
    verifier = Verifier(payload_bytes=PAYLOAD_BYTES)
    payloads = verifier.payloads(RECORDS)

    def run() -> int:
        verifier.check_all(payloads)
        return verifier.taken - verifier.lost - verifier.duplicated - verifier.reordered - verifier.corrupt

    return run


@WORKS.work(DELIVERED, DELIVERED, bytes_per_operation=PAYLOAD_BYTES, once=True)
def verify_deliveries() -> Run:
    """Everything has been published and delivered, and waits in the sockets to be read."""
    load = Load()
    return load.read


class Load:
    """A driver with one publisher and one subscriber, and the ends of the sockets that a server would have."""

    def __init__(self) -> None:
        pairs = [socket.socketpair() for _ in range(2)]
        self.ours, self.theirs = zip(*pairs, strict=True)
        for each in self.ours:
            each.setblocking(False)
        self.driver = Driver([b"room.1"], publishers=1, payload_bytes=PAYLOAD_BYTES, batch=BATCH, crc=True)
        self.driver.add_publisher(self.ours[0].fileno())
        self.driver.add_subscriber(self.ours[1].fileno(), credit_bytes=1 << 30)
        # Nobody answers yet, so it ends without.
        assert self.driver.run(messages=DELIVERED, patience_s=0.01).sent == DELIVERED
        payloads = [payload_of(0, counter, 1, 0, PAYLOAD_BYTES) for counter in range(DELIVERED)]
        for first in range(0, DELIVERED, BATCH):
            self.theirs[0].sendall(published(first + 1, BATCH, first=first + 1))
            chunk = build_chunk(chunk_of(7, EPOCH, first + 1, payloads[first : first + BATCH]))
            self.theirs[1].sendall(deliver(chunk, group=first + 1))

    def read(self) -> int:
        """Read and verify everything."""
        outcome = self.driver.run(patience_s=5)
        for each in (*self.ours, *self.theirs):
            each.close()
        wrong = (outcome.lost, outcome.duplicated, outcome.reordered, outcome.corrupt, outcome.misplaced)
        assert (outcome.finished, outcome.failure, sum(wrong)) == (True, None, 0), outcome
        return outcome.deliveries


def test_driver(benchmark: BenchmarkFixture, kernel_work: Work) -> None:
    measure(benchmark, kernel_work)
