"""The grammar of channels' names: what a CHANNEL frame pays for each of its names."""

from __future__ import annotations

from typing import TYPE_CHECKING

from benchmarks.samples import name_of
from benchmarks.works import Works, measure
from broker_native.names import is_channel

if TYPE_CHECKING:
    from pytest_benchmark.fixture import BenchmarkFixture

    from benchmarks.works import Run, Work

WORKS = Works("names")

COUNT = 4000


@WORKS.work(COUNT, COUNT)
def good() -> Run:
    names = [name_of(number) for number in range(COUNT)]
    return lambda: sum(map(is_channel, names))


@WORKS.work(COUNT, 0)
def bad_at_the_end() -> Run:
    names = [name_of(number) + b".*" for number in range(COUNT)]
    return lambda: sum(map(is_channel, names))


def test_names(benchmark: BenchmarkFixture, kernel_work: Work) -> None:
    measure(benchmark, kernel_work)
