"""The latency histogram: recording from Python (the call is in the figure), merging, reading a percentile."""

from __future__ import annotations

import random
from itertools import repeat
from typing import TYPE_CHECKING

import pytest

from benchmarks.works import SEED, Works
from benchmarks.works import measure as measure_work
from broker_native.histogram import Histogram

if TYPE_CHECKING:
    from collections.abc import Callable

    from pytest_benchmark.fixture import BenchmarkFixture

    from benchmarks.works import Run, Work

CHANCE = random.Random(SEED)
VALUES = [int(CHANCE.lognormvariate(11, 2)) for _ in range(1000)]
WORKS = Works("histogram")


def filled() -> Histogram:
    histogram = Histogram()
    for value in VALUES:
        histogram.record(value)
    return histogram


@WORKS.work(len(VALUES), len(VALUES))
def record() -> Run:
    return lambda: filled().count


@WORKS.work(10, 10 * len(VALUES))
def merge() -> Run:
    part = filled()

    def run() -> int:
        whole = Histogram()
        for each in repeat(part, 10):
            whole.merge(each)
        return whole.count

    return run


@WORKS.work(20, 20 * filled().percentile(99.9))
def percentile() -> Run:
    histogram = filled()
    return lambda: sum(histogram.percentile(99.9) for _ in range(20))


@WORKS.work(2, 2 * len(VALUES))
def round_trip() -> Run:
    histogram = filled()
    return lambda: sum(Histogram.from_bytes(histogram.to_bytes()).count for _ in range(2))


def measure(benchmark: BenchmarkFixture, run: Callable[[], Histogram], operations: int, size: int) -> None:
    histogram = benchmark(run)
    benchmark.extra_info.update(checksum=histogram.percentile(50), operations=operations, bytes_per_operation=size)
    if benchmark.stats is not None:
        benchmark.extra_info["ns_per_operation"] = benchmark.stats.stats.median / operations * 1e9


def test_record(benchmark: BenchmarkFixture) -> None:
    # A thousand values share the one histogram that was made for them.
    measure(benchmark, filled, len(VALUES), Histogram().__sizeof__() // len(VALUES))


def test_merge(benchmark: BenchmarkFixture) -> None:
    part = filled()

    def run() -> Histogram:
        whole = Histogram()
        whole.merge(part)
        return whole

    measure(benchmark, run, 1, part.__sizeof__())


@pytest.mark.parametrize("percent", [50, 99.9])
def test_percentile(benchmark: BenchmarkFixture, percent: float) -> None:
    histogram = filled()

    def run() -> Histogram:
        histogram.percentile(percent)
        return histogram

    measure(benchmark, run, 1, 0)


def test_round_trip(benchmark: BenchmarkFixture) -> None:
    histogram = filled()
    measure(benchmark, lambda: Histogram.from_bytes(histogram.to_bytes()), 1, len(histogram.to_bytes()))


def test_histogram_works(benchmark: BenchmarkFixture, kernel_work: Work) -> None:
    measure_work(benchmark, kernel_work)
