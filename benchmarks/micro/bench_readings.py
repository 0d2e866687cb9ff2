"""What a reader of the load tests does with each batch: every message checked for order, gaps and content."""

from __future__ import annotations

from typing import TYPE_CHECKING

from benchmarks.works import Works, measure
from broker.model.errors import error
from broker_native.histogram import Histogram
from broker_native.messages import FrameReader
from broker_native.readings import Reading, stamped
from tests.reference.server import chunk

if TYPE_CHECKING:
    from pytest_benchmark.fixture import BenchmarkFixture

    from benchmarks.works import Run, Work
    from broker_native.messages import Batch

WORKS = Works("readings")

CHANNEL = 7
COUNT = 2000
BATCH = 50
PAYLOAD_BYTES = 128
DUE_NS, NOW_NS = 1000, 2000


def payloads() -> list[bytes]:
    return stamped(COUNT, publisher=0, counter=0, time_ns=DUE_NS, channel=CHANNEL, payload_bytes=PAYLOAD_BYTES)


def batches() -> list[Batch]:
    """Return the batches in which a client would get all of them."""
    records = [(12 + PAYLOAD_BYTES).to_bytes(4, "little") + bytes(8) + payload for payload in payloads()]
    data = b"".join(chunk(99, 5, first + 1, records[first : first + BATCH]) for first in range(0, COUNT, BATCH))
    return FrameReader(error, 1 << 20).chunks(data, "channel")


@WORKS.work(COUNT, COUNT * PAYLOAD_BYTES, bytes_per_operation=PAYLOAD_BYTES)
def stamp() -> Run:
    return lambda: sum(map(len, payloads()))


@WORKS.work(COUNT, COUNT, bytes_per_operation=PAYLOAD_BYTES)
def take() -> Run:
    due = batches()

    def run() -> int:
        reading, latency = Reading(channel=CHANNEL, payload_bytes=PAYLOAD_BYTES), Histogram()
        for batch in due:
            reading.take(batch, NOW_NS, latency)
        return reading.taken - reading.missing - reading.duplicated - reading.reordered - reading.corrupt

    return run


def test_readings(benchmark: BenchmarkFixture, kernel_work: Work) -> None:
    measure(benchmark, kernel_work)
