"""Looking names and channels up in a sealed segment's pages, and in the filter that spares it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from benchmarks.samples import group_of, name_of, tree_of
from benchmarks.works import Works, measure
from broker_native.delta import TableDelta
from broker_native.pages import CHANNELS, NAMES, OPEN, TableFilter, find_in_pages, join_older, table_items

if TYPE_CHECKING:
    from pytest_benchmark.fixture import BenchmarkFixture

    from benchmarks.works import Run, Work

WORKS = Works("pages")

COUNT = 1000
IDS = range(1, COUNT + 1)
NAME_KEYS = sorted(map(name_of, IDS))
CHANNEL_KEYS = [number.to_bytes(8, "big") for number in IDS]


def sealed() -> TableDelta:
    delta = TableDelta()
    delta.add(group_of(1, IDS, 1, new=True))
    return delta


def look_up(kind: int, keys: list[bytes]) -> Run:
    reader, everything = tree_of((b"page" + low, page) for low, page in sealed().pages(kind)), list(range(COUNT))
    return lambda: len(find_in_pages(reader, kind, b"page", keys, everything)[0])


@WORKS.work(COUNT, COUNT)
def names() -> Run:
    return look_up(NAMES, NAME_KEYS)


@WORKS.work(COUNT, COUNT)
def channels() -> Run:
    return look_up(CHANNELS, CHANNEL_KEYS)


@WORKS.work(COUNT, COUNT)
def items() -> Run:
    pages = list(sealed().pages(NAMES))
    return lambda: sum(len(table_items(NAMES, low, page)[0]) for low, page in pages)


@WORKS.work(COUNT, COUNT)
def filter_hits() -> Run:
    table = TableFilter(sealed().filter())
    return lambda: len(table.pick(NAMES, NAME_KEYS))


@WORKS.work(COUNT, 1)
def filter_misses() -> Run:
    table = TableFilter(sealed().filter())
    others = sorted(name_of(number) for number in range(COUNT + 1, 2 * COUNT + 1))
    return lambda: int(len(table.pick(NAMES, others)) < COUNT // 20)


@WORKS.work(COUNT, COUNT)
def join() -> Run:
    indexes = list(range(COUNT))
    rows = dict(sealed().items(CHANNELS))
    found = [rows[key] for key in CHANNEL_KEYS]

    def run() -> int:
        parts: list[bytes | list[bytes] | None] = [None] * COUNT
        join_older(indexes, found, bytearray([OPEN]) * COUNT, parts)
        return sum(part is not None for part in parts)

    return run


def test_pages(benchmark: BenchmarkFixture, kernel_work: Work) -> None:
    measure(benchmark, kernel_work)
