"""What a segment changes in the tables: gathered from its groups, written as pages, looked up."""

from __future__ import annotations

from typing import TYPE_CHECKING

from benchmarks.samples import group_of, name_of
from benchmarks.works import Works, measure
from broker_native.delta import TableDelta
from broker_native.pages import CHANNELS, NAMES

if TYPE_CHECKING:
    from pytest_benchmark.fixture import BenchmarkFixture

    from benchmarks.works import Run, Work

WORKS = Works("delta")

CHANNELS_COUNT = 1000
GROUP_CHUNKS = 50
IDS = range(1, CHANNELS_COUNT + 1)


def values() -> list[bytes]:
    starts = enumerate(range(1, CHANNELS_COUNT + 1, GROUP_CHUNKS), 1)
    return [group_of(number, range(first, first + GROUP_CHUNKS), 1, new=True) for number, first in starts]


def gathered(groups: list[bytes]) -> TableDelta:
    delta = TableDelta()
    for value in groups:
        delta.add(value)
    return delta


@WORKS.work(CHANNELS_COUNT, CHANNELS_COUNT)
def add() -> Run:
    groups = values()
    return lambda: gathered(groups).channels_new


@WORKS.work(CHANNELS_COUNT, 1, once=True)
def finish() -> Run:
    delta = gathered(values())
    return lambda: int(len(delta.finish()) > CHANNELS_COUNT)


@WORKS.work(CHANNELS_COUNT, 2, once=True)
def pages() -> Run:
    delta = gathered(values())
    return lambda: sum(sum(len(page) for _, page in delta.pages(kind)) > CHANNELS_COUNT for kind in (NAMES, CHANNELS))


@WORKS.work(CHANNELS_COUNT, CHANNELS_COUNT)
def find_names() -> Run:
    delta, names = gathered(values()), sorted(name_of(number) for number in IDS)
    return lambda: len(delta.find_names(names, bytearray(CHANNELS_COUNT))[0])


@WORKS.work(CHANNELS_COUNT, CHANNELS_COUNT)
def find_channels() -> Run:
    delta, keys = gathered(values()), [number.to_bytes(8, "big") for number in IDS]
    return lambda: len(delta.find_channels(keys, bytearray(CHANNELS_COUNT))[0])


def test_delta(benchmark: BenchmarkFixture, kernel_work: Work) -> None:
    measure(benchmark, kernel_work)
