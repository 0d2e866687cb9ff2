"""The load driver on what the broker says: DELIVER frames read from a socket and verified, record by record."""

from __future__ import annotations

from typing import TYPE_CHECKING

from benchmarks.loads import BATCH, DELIVERED, Load
from benchmarks.samples import EPOCH, PAYLOAD_BYTES
from benchmarks.works import Works, measure
from tests.reference.groups import build_chunk, chunk_of
from tests.reference.server import deliver, published

if TYPE_CHECKING:
    from pytest_benchmark.fixture import BenchmarkFixture

    from benchmarks.works import Run, Work

COVERS = ("driver_broker", "driver_load")
"""They are this driver's parts, and have no work of their own."""
WORKS = Works("driver")


def told(payloads: list[bytes]) -> tuple[bytes, bytes]:
    """Return what the broker answers, and what it delivers: a chunk for each frame that was published."""
    starts = range(0, DELIVERED, BATCH)
    chunks = [build_chunk(chunk_of(7, EPOCH, at + 1, payloads[at : at + BATCH])) for at in starts]
    return (
        b"".join(published(at + 1, BATCH, first=at + 1) for at in starts),
        b"".join(deliver(chunk, group=at + 1) for at, chunk in zip(starts, chunks, strict=True)),
    )


@WORKS.work(DELIVERED, DELIVERED, bytes_per_operation=PAYLOAD_BYTES, once=True)
def verify_deliveries() -> Run:
    return Load("broker", told, BATCH).read


def test_driver(benchmark: BenchmarkFixture, kernel_work: Work) -> None:
    measure(benchmark, kernel_work)
