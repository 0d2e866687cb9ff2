"""What a member of a consumer reads and says: from a JOBS frame to jobs, and from jobs to the ACK that settles them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from benchmarks.samples import PAYLOAD_BYTES
from benchmarks.works import Works, measure
from broker.model.errors import error
from broker_native.work import Settling
from tests.reference.frames import Record
from tests.reference.jobs import Told, build_jobs

if TYPE_CHECKING:
    from pytest_benchmark.fixture import BenchmarkFixture

    from benchmarks.works import Run, Work
    from broker_native.work import JobBatch

WORKS = Works("work")

JOBS = 1000
PAYLOAD = bytes(PAYLOAD_BYTES)
BODY = build_jobs(
    1, 1, 30_000, [Told(b"room.1" if at == 0 else None, 0, 1, 1 + at, Record(PAYLOAD)) for at in range(JOBS)]
)


def receive(settling: Settling) -> JobBatch:
    return settling.receive(BODY, [], settling.say)


def member() -> Settling:
    made = Settling(None, int, error, JOBS)
    made.begin(1)
    return made


@WORKS.work(JOBS, JOBS * PAYLOAD_BYTES, bytes_per_operation=PAYLOAD_BYTES)
def payloads() -> Run:
    return lambda: sum(map(len, receive(member()).payloads()))


@WORKS.work(JOBS, JOBS, bytes_per_operation=PAYLOAD_BYTES)
def jobs_acknowledged_by_the_batch() -> Run:
    def run() -> int:
        settling = member()
        batch = receive(settling)
        batch.ack()
        settling.take()
        return len(batch)

    return run


@WORKS.work(JOBS, JOBS * PAYLOAD_BYTES, bytes_per_operation=PAYLOAD_BYTES)
def jobs_acknowledged_one_by_one() -> Run:
    def run() -> int:
        settling, size = member(), 0
        for job in receive(settling):
            size += len(job.payload)
            job.ack()
        settling.take()
        return size

    return run


def test_work(benchmark: BenchmarkFixture, kernel_work: Work) -> None:
    measure(benchmark, kernel_work)
