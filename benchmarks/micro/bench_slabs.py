"""The heap of channels' structs: items taken and given back, in the order that is worst for it."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

from benchmarks.works import SEED, Works, measure
from broker_native.slabs import Slabs

if TYPE_CHECKING:
    from pytest_benchmark.fixture import BenchmarkFixture

    from benchmarks.works import Run, Work

WORKS = Works("slabs")

COUNT = 4000
ITEM_BYTES = 216


@WORKS.work(COUNT, 0)
def take_and_give() -> Run:
    order = random.Random(SEED).sample(range(COUNT), COUNT)

    def run() -> int:
        slabs = Slabs()
        items = [slabs.take(ITEM_BYTES) for _ in range(COUNT)]
        for index in order:
            slabs.give(items[index])
        return slabs.items

    return run


def test_slabs(benchmark: BenchmarkFixture, kernel_work: Work) -> None:
    measure(benchmark, kernel_work)
