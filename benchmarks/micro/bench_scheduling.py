"""PUBLISH frames with AT, decided together: nanoseconds each."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

from benchmarks.micro.bench_delayed import BODIES, COUNT, KEY
from benchmarks.works import Works, measure
from broker_native.delayed import Waiting
from broker_native.lines import Line
from broker_native.publisher import Publisher
from broker_native.scheduling import schedule_frames
from broker_native.tails import Tails

if TYPE_CHECKING:
    from pytest_benchmark.fixture import BenchmarkFixture

    from benchmarks.works import Run, Work

WORKS = Works("scheduling")
S = 1_000_000
SYNCED = 3


@WORKS.work(COUNT, COUNT)
def single_records() -> Run:
    """Return a run that schedules each in a frame of its own, a tenth of a second apart."""
    tails = Tails(1, 4770)
    to = Publisher(tails, Line(b"p" * 16), None, 0)
    tails.load(b"some.channel", SYNCED, 2, 1 << 20)
    to.bind(0, b"some.channel")
    frames = b"".join(
        struct.pack("<IBBH", len(body) + 8, 16, 2, 0) + body[:16] + struct.pack("<Q", at * S // 10) + body[16:]
        for at, body in enumerate(BODIES)
    )

    def run() -> int:
        waiting = Waiting(KEY, 1 << 30)
        waiting.finish()
        return schedule_frames(waiting, to, frames, 1, 1, COUNT * S, 0, 1)[0]

    return run


def test_scheduling(benchmark: BenchmarkFixture, kernel_work: Work) -> None:
    measure(benchmark, kernel_work)
