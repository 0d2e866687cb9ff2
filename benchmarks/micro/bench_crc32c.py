"""CRC-32C: what a record, a chunk and a group cost, by each implementation that this machine has.

The call from Python is in the figure (the size 0 shows it alone); native callers do not pay it.
"""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

import pytest

from benchmarks.works import SEED, Works, measure
from broker_native.crc32c import crc32c_by, crc32c_of, implementations

if TYPE_CHECKING:
    from pytest_benchmark.fixture import BenchmarkFixture

    from benchmarks.works import Run, Work

CALLS = 100
DATA = random.Random(SEED).randbytes(1 << 20)
WORKS = Works("crc32c")


def counted(size: int, calls: int) -> Run:
    data = DATA[:size]
    expected = crc32c_by("portable", data)
    return lambda: sum(crc32c_of(data) == expected for _ in range(calls))


@WORKS.work(10 * CALLS, 10 * CALLS, bytes_per_operation=200)
def records() -> Run:
    return counted(200, 10 * CALLS)


@WORKS.work(CALLS, CALLS, bytes_per_operation=16 << 10)
def chunks() -> Run:
    return counted(16 << 10, CALLS)


@WORKS.work(1, 1, bytes_per_operation=1 << 20)
def megabyte() -> Run:
    return counted(1 << 20, 1)


@pytest.mark.parametrize("size", [0, 128, 200, 1000, 4096, 65536, 1 << 20])
@pytest.mark.parametrize("name", implementations())
def test_crc32c(benchmark: BenchmarkFixture, name: str, size: int) -> None:
    data = DATA[:size]

    def run() -> int:
        crc = 0
        for _ in range(CALLS):
            crc = crc32c_by(name, data, crc)
        return crc

    checksum = benchmark(run)
    benchmark.extra_info.update(checksum=checksum, bytes_per_operation=size, operations=CALLS)
    if benchmark.stats is not None:
        benchmark.extra_info["ns_per_operation"] = benchmark.stats.stats.median / CALLS * 1e9
        benchmark.extra_info["gigabytes_per_s"] = size * CALLS / benchmark.stats.stats.median / 1e9


def test_crc32c_works(benchmark: BenchmarkFixture, kernel_work: Work) -> None:
    measure(benchmark, kernel_work)
