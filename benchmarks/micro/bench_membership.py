"""Transactions that acknowledge a job too, decided: nanoseconds each."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

from benchmarks.micro.bench_jobs import ACK, ACK_ENTRY, ACK_HEADER, FIRST_LEASE, deliveries, jobs_of
from benchmarks.micro.bench_transactions import CHANNELS, COUNT, publisher, transaction
from benchmarks.works import Works, measure
from broker_native.membership import Membership
from broker_native.transactions import decide_transaction

if TYPE_CHECKING:
    from pytest_benchmark.fixture import BenchmarkFixture

    from benchmarks.works import Run, Work

WORKS = Works("membership")
KIND_ACK = 19


class Quiet(Membership):
    """A membership whose consumer is told once."""

    def on_settled(self) -> None:
        self.waits = True
        assert self.jobs is not None
        self.jobs.noted = True


@WORKS.work(COUNT, 0, once=True)
def ten_publishes_and_an_ack() -> Run:
    to, jobs, member = publisher(), jobs_of(COUNT, 1), Quiet()
    for frames in deliveries()[:7]:
        jobs.take(frames)
    assert jobs.grant(1, 0)
    member.number, member.jobs = 1, jobs
    bodies = []
    for at in range(COUNT):
        ack = ACK_HEADER.pack(1, 1, 0) + ACK_ENTRY.pack(FIRST_LEASE + at, 1, ACK, 0)
        publishes = transaction(1 + at * CHANNELS)[8:]
        frame = struct.pack("<IBBH", len(ack), KIND_ACK, 0, 0) + ack
        bodies.append(struct.pack("<II", CHANNELS, 1) + publishes + frame)
    members: dict[int, Membership] = {1: member}

    def run() -> int:
        return sum(decide_transaction(to, body, False, members)[0] for body in bodies)

    return run


def test_membership(benchmark: BenchmarkFixture, kernel_work: Work) -> None:
    measure(benchmark, kernel_work)
