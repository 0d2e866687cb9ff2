"""The ring of what was committed lately: groups come and are forgotten, and channels are looked for."""

from __future__ import annotations

from typing import TYPE_CHECKING

from benchmarks.samples import group_of
from benchmarks.works import Works, measure
from broker_native.ring import ChunkRing

if TYPE_CHECKING:
    from pytest_benchmark.fixture import BenchmarkFixture

    from benchmarks.works import Run, Work

WORKS = Works("ring")

GROUPS = 100
CHUNKS = 20
LOOKS = 200


@WORKS.work(GROUPS * CHUNKS, CHUNKS)
def add_and_forget() -> Run:
    values = [group_of(number, range(1, CHUNKS + 1), 1, number) for number in range(1, GROUPS + 1)]

    def run() -> int:
        ring = ChunkRing()
        for number, value in enumerate(values):
            ring.add(value)
            ring.forget(number)
        return len(ring)

    return run


@WORKS.work(LOOKS, LOOKS * GROUPS // 2)
def find() -> Run:
    ring = ChunkRing()
    for number in range(1, GROUPS + 1):
        ring.add(group_of(number, range(1, CHUNKS + 1), 1, number))
    channels = [1 + index % CHUNKS for index in range(LOOKS)]
    return lambda: sum(len(ring.find(channel, GROUPS // 2)) for channel in channels)


def test_ring(benchmark: BenchmarkFixture, kernel_work: Work) -> None:
    measure(benchmark, kernel_work)
