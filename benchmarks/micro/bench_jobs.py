"""A durable consumer's jobs: taken, granted and settled; nanoseconds a job."""

from __future__ import annotations

import random
import struct
from typing import TYPE_CHECKING

from benchmarks.samples import EPOCH, PAYLOAD, PAYLOAD_BYTES, TIME_US
from benchmarks.works import SEED, Works, measure
from broker_native.jobs import Jobs
from tests.reference.frames import DELIVER, DELIVER_HEADER, DELIVER_NAME, Record, build_frame, build_record
from tests.reference.groups import Chunk, build_chunk

if TYPE_CHECKING:
    from pytest_benchmark.fixture import BenchmarkFixture

    from benchmarks.works import Run, Work

WORKS = Works("jobs")
JOBS = 16_384
CHUNK_JOBS = 64
MEMBERS = 4
KEYS = 10_000
NAME = b"jobs.orders"
ACK_HEADER = struct.Struct("<IIQ")
ACK_ENTRY = struct.Struct("<QIB3xQ")
ACK, NACK = 1, 2
FIRST_LEASE = 1 << 40


def deliveries(*, keys: int = 0, lanes: bool = False) -> list[bytes]:
    """Return frames of all jobs, a chunk in each group."""
    chance = random.Random(SEED)
    frames = []
    for group in range(JOBS // CHUNK_JOBS):
        records = [
            build_record(
                Record(
                    PAYLOAD,
                    key=b"key.%d" % chance.randrange(keys) if keys else None,
                    priority=chance.randrange(4) if lanes else None,
                )
            )
            for _ in range(CHUNK_JOBS)
        ]
        chunk = Chunk(1, EPOCH, group * CHUNK_JOBS + 1, CHUNK_JOBS, b"".join(records), TIME_US)
        body = DELIVER_HEADER.pack(1, 0, group + 1) + bytes([len(NAME)]) + NAME + build_chunk(chunk)
        frames.append(build_frame(DELIVER, body, DELIVER_NAME))
    return frames


def jobs_of(window: int = 256, members: int = MEMBERS, *, lanes: bool = False, by_key: bool = False) -> Jobs:
    """Return a consumer with its members."""
    jobs = Jobs(lanes=lanes, by_key=by_key, first_lease=FIRST_LEASE, seed=SEED)
    for member in range(1, members + 1):
        jobs.join(member, 1, window, 1 << 30)
    return jobs


def ack_of(granted: bytes, verb: int = ACK) -> bytes:
    """Return the body of an ACK of everything in a JOBS frame."""
    count, first = struct.unpack_from("<IQ", granted, 12)
    return ACK_HEADER.pack(1, 1, 1) + ACK_ENTRY.pack(first, count, verb, 0)


def flow(jobs: Jobs, frames: list[bytes], members: int = MEMBERS) -> Run:
    """Return a run in which jobs come as they are granted and settled: few wait at a time."""

    def run() -> int:
        at = 0
        while jobs.done < JOBS:
            while at < len(frames) and jobs.ready < 512:
                jobs.take(frames[at])
                at += 1
            for member in range(1, members + 1):
                granted = jobs.grant(member, TIME_US)
                if granted:
                    jobs.settle(member, ack_of(granted), TIME_US)
            jobs.changes()
        return jobs.done

    return run


@WORKS.work(JOBS, JOBS, bytes_per_operation=PAYLOAD_BYTES, once=True)
def take() -> Run:
    jobs, frames = jobs_of(), deliveries()

    def run() -> int:
        for frame in frames:
            jobs.take(frame)
        return jobs.ready

    return run


@WORKS.work(JOBS, JOBS, bytes_per_operation=PAYLOAD_BYTES, once=True)
def take_grant_settle() -> Run:
    return flow(jobs_of(), deliveries())


@WORKS.work(JOBS, JOBS, bytes_per_operation=PAYLOAD_BYTES, once=True)
def take_grant_settle_by_key() -> Run:
    return flow(jobs_of(by_key=True), deliveries(keys=KEYS))


@WORKS.work(JOBS, JOBS, bytes_per_operation=PAYLOAD_BYTES, once=True)
def take_grant_settle_in_lanes() -> Run:
    return flow(jobs_of(lanes=True), deliveries(lanes=True))


@WORKS.work(JOBS, JOBS, bytes_per_operation=PAYLOAD_BYTES, once=True)
def take_grant_settle_one_at_a_time() -> Run:
    """64 members, each with one job under way."""
    return flow(jobs_of(1, 64), deliveries(), 64)


@WORKS.work(JOBS, JOBS, bytes_per_operation=PAYLOAD_BYTES, once=True)
def nack_and_grant_again() -> Run:
    """Everything is put off, comes again and is granted again."""
    jobs = jobs_of(JOBS, 1)
    jobs.configure(lease_ms=1000, attempts_max=0, backoff_first_ms=10, backoff_longest_ms=10)
    for frame in deliveries():
        jobs.take(frame)
    bodies = []
    while granted := jobs.grant(1, TIME_US):
        bodies.append(ack_of(granted, NACK)[:-8] + b"\xff" * 8)

    def run() -> int:
        for body in bodies:
            jobs.settle(1, body, TIME_US)
        jobs.expire(TIME_US + 1_000_000)
        while jobs.grant(1, TIME_US + 1_000_000):
            pass
        return jobs.redelivered

    return run


@WORKS.work(JOBS, JOBS, once=True)
def restore_and_take() -> Run:
    """Every other job was done before, and is told by a snapshot of as many runs."""
    frames = deliveries()
    before = jobs_of()
    for frame in frames:
        before.take(frame)
    for sequence in range(2, JOBS + 1, 2):
        before.done_at(1, EPOCH, sequence, 1)
    snapshot = before.snapshot()
    jobs = jobs_of()

    def run() -> int:
        jobs.restore([snapshot])
        for frame in frames:
            jobs.take(frame)
        return 2 * jobs.ready

    return run


def test_jobs(benchmark: BenchmarkFixture, kernel_work: Work) -> None:
    measure(benchmark, kernel_work)
