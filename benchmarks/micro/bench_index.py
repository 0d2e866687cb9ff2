"""A group proved and walked over, and a segment's index: built, written as pages, looked up."""

from __future__ import annotations

from typing import TYPE_CHECKING

from benchmarks.samples import group_of
from benchmarks.works import Works, measure
from broker_native.index import SegmentIndex, check_group, cut_chunk, find_in_page, scan_group

if TYPE_CHECKING:
    from pytest_benchmark.fixture import BenchmarkFixture

    from benchmarks.works import Run, Work

WORKS = Works("index")

GROUPS, CHUNKS = 20, 100
LOOKS, PAGE_LOOKS = 500, 50
PLACE_BYTES = 24
UNLIMITED = 1 << 62


def groups() -> list[bytes]:
    return [group_of(number, range(1, CHUNKS + 1), 2, 2 * number - 1) for number in range(1, GROUPS + 1)]


def indexed(values: list[bytes]) -> SegmentIndex:
    index = SegmentIndex()
    for value in values:
        index.add(value)
    return index


@WORKS.work(GROUPS * CHUNKS, GROUPS * CHUNKS)
def check() -> Run:
    values = groups()
    return lambda: sum(check_group(value).chunks for value in values)


@WORKS.work(GROUPS * CHUNKS, GROUPS * CHUNKS)
def add() -> Run:
    values = groups()
    return lambda: indexed(values).chunks


@WORKS.work(LOOKS, LOOKS * GROUPS // 2)
def find() -> Run:
    index = indexed(groups())
    return lambda: sum(len(index.find(1 + look % CHUNKS, GROUPS, UNLIMITED)) for look in range(LOOKS))


@WORKS.work(GROUPS * CHUNKS, 1)
def pages() -> Run:
    index = indexed(groups())
    return lambda: int(sum(len(page) for _, page in index.pages()) > GROUPS * CHUNKS * PLACE_BYTES)


@WORKS.work(PAGE_LOOKS, PAGE_LOOKS)
def find_in_pages() -> Run:
    (_, page), *_ = indexed(groups()).pages()
    return lambda: sum(bool(find_in_page(page, 1 + look % 10, GROUPS, UNLIMITED)[0]) for look in range(PAGE_LOOKS))


@WORKS.work(GROUPS * CHUNKS, GROUPS * CHUNKS // 2)
def scan() -> Run:
    values, wanted = groups(), set(range(2, CHUNKS + 1, 2))

    def run() -> int:
        found: list[tuple[int, int, bytes]] = []
        for number, value in enumerate(values, 1):
            scan_group(value, number, -1, UNLIMITED, wanted, found)
        return len(found)

    return run


@WORKS.work(LOOKS, LOOKS * (56 + 2 * 140))
def cut() -> Run:
    (value, *_) = values = groups()[:1]
    (place,) = indexed(values).find(CHUNKS, 0, UNLIMITED)
    return lambda: sum(len(cut_chunk(value, CHUNKS, place)) for _ in range(LOOKS))


def test_index(benchmark: BenchmarkFixture, kernel_work: Work) -> None:
    measure(benchmark, kernel_work)
