"""The table of pointers that grows by segments: keys come, are found, and go."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

from benchmarks.works import SEED, Works, measure
from broker_native.slots import Slots

if TYPE_CHECKING:
    from pytest_benchmark.fixture import BenchmarkFixture

    from benchmarks.works import Run, Work

WORKS = Works("slots")

COUNT = 4000
KEYS = [random.Random(SEED + number).getrandbits(64) for number in range(COUNT)]


def filled() -> Slots:
    slots = Slots()
    for item, key in enumerate(KEYS, 1):
        slots.insert(key, item)
    return slots


@WORKS.work(COUNT, COUNT)
def insert() -> Run:
    return lambda: len(filled())


@WORKS.work(COUNT, COUNT * (COUNT + 1) // 2)
def find() -> Run:
    slots = filled()
    return lambda: sum(map(slots.find, KEYS))


@WORKS.work(COUNT, COUNT, once=True)
def remove() -> Run:
    slots = filled()
    return lambda: sum(slots.remove(key, item) for item, key in enumerate(KEYS, 1))


def test_slots(benchmark: BenchmarkFixture, kernel_work: Work) -> None:
    measure(benchmark, kernel_work)
