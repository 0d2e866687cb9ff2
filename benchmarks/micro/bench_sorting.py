"""Sorting what a look-up takes in order: names as bytes, and channels as numbers."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

from benchmarks.samples import name_of
from benchmarks.works import SEED, Works, measure
from broker_native.sorting import sort_keys, sort_numbers

if TYPE_CHECKING:
    from pytest_benchmark.fixture import BenchmarkFixture

    from benchmarks.works import Run, Work

WORKS = Works("sorting")

COUNT = 4000
NUMBERS = random.Random(SEED).sample(range(1, 1 << 40), COUNT)


@WORKS.work(COUNT, COUNT)
def keys() -> Run:
    names = [name_of(number) for number in NUMBERS]
    assert sort_keys(names) == sorted(names)
    return lambda: len(sort_keys(names))


@WORKS.work(COUNT, COUNT)
def numbers() -> Run:
    assert sort_numbers(NUMBERS) == sorted(NUMBERS)
    return lambda: len(sort_numbers(NUMBERS))


def test_sorting(benchmark: BenchmarkFixture, kernel_work: Work) -> None:
    measure(benchmark, kernel_work)
