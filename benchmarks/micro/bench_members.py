"""Members with one job at a time: what each says is taken, the next job queued and sent, and the answer with it."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

from benchmarks.micro.bench_jobs import deliveries, jobs_of
from benchmarks.samples import TIME_US
from benchmarks.works import Works, measure
from broker_native.fanout import Fanout
from broker_native.intake import Clock, Intake, ReadBuffer
from broker_native.members import Rotation, RotationMember
from broker_native.tails import Tails
from tests.reference.frames import build_frame

if TYPE_CHECKING:
    from pytest_benchmark.fixture import BenchmarkFixture

    from benchmarks.works import Run, Work

WORKS = Works("members")
MEMBERS = 64
ROUNDS = 256
ACK_KIND = 19
FIRST_LEASE = 1 << 40
"""As `jobs_of` has it."""


class Turn(Rotation):
    def touch(self) -> None:
        self.touched = True


class Transport:
    def writelines(self, pieces: list[bytes]) -> None:
        """Send."""


class Connection(Intake):
    def on_read(self) -> None:
        raise AssertionError("the end of the turn is due")


@WORKS.work(MEMBERS * ROUNDS, MEMBERS * ROUNDS, once=True)
def ack_and_be_given_the_next() -> Run:
    """64 members on a connection each; a group closes and is committed once in four turns."""
    turn, fanout = Turn(), Fanout(Tails(1, 4770))
    jobs = turn.jobs = jobs_of(1, MEMBERS)
    buffer, clock = ReadBuffer(1 << 16), Clock(manual=True)
    connections = []
    for number in range(1, MEMBERS + 1):
        connection = Connection(fanout, buffer, clock, 1 << 20)
        connection.outbox.transport = Transport()
        member = RotationMember(connection.outbox, 1, 1, 1 << 30)
        member.number, member.jobs = number, jobs
        connection.members = {1: member}
        turn.enter(member)
        connections.append(connection)
    for frame in deliveries():
        jobs.take(frame)
    turn.give(TIME_US)
    fanout.flush()
    fanout.kicked = True
    acks = [
        build_frame(ACK_KIND, struct.pack("<IIQQIB3xQ", 1, 1, at // MEMBERS + 1, FIRST_LEASE + at, 1, 1, 0))
        for at in range(MEMBERS * ROUNDS)
    ]

    def run() -> int:
        for at, ack in enumerate(acks):
            connections[at % MEMBERS].feed(ack)
            if at % MEMBERS == MEMBERS - 1:
                turn.touched = False
                turn.give(TIME_US)
                fanout.flush()
                if at // MEMBERS % 4 == 3:
                    said = turn.take_said()
                    jobs.changes()
                    turn.confirm(said)
        return jobs.done

    return run


def test_members(benchmark: BenchmarkFixture, kernel_work: Work) -> None:
    measure(benchmark, kernel_work)
