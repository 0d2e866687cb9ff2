"""Token buckets: what is let in and what is not (the call from Python is in the figure)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from benchmarks.works import Works
from benchmarks.works import measure as measure_work
from broker_native.rates import Rate

if TYPE_CHECKING:
    from pytest_benchmark.fixture import BenchmarkFixture

    from benchmarks.works import Run, Work

COUNT = 1_000
WORKS = Works("rates")


@WORKS.work(COUNT, 0)
def take() -> Run:
    rate = Rate(10**9, 10**9)
    return lambda: sum(rate.take_some(1, 100, now_us) for now_us in range(COUNT))


@WORKS.work(COUNT, COUNT * 1000)
def refuse() -> Run:
    rate = Rate(1)
    rate.take_some(1, 0, 0)
    return lambda: sum(rate.take_some(1, 0, 0) for _ in range(COUNT))


def test_rates_works(benchmark: BenchmarkFixture, kernel_work: Work) -> None:
    measure_work(benchmark, kernel_work)
