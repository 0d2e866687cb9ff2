"""Reading a snapshot of an LMDB file without LMDB: single rows, sorted ones, and ranges."""

from __future__ import annotations

from typing import TYPE_CHECKING

from benchmarks.samples import name_of, tree_of
from benchmarks.works import Works, measure

if TYPE_CHECKING:
    from pytest_benchmark.fixture import BenchmarkFixture

    from benchmarks.works import Run, Work

WORKS = Works("tree")

ROWS = 2000
LOOKS = 500
VALUE = bytes(100)


def rows() -> list[tuple[bytes, bytes]]:
    return [(name, VALUE) for name in sorted(map(name_of, range(ROWS)))]


@WORKS.work(LOOKS, LOOKS * len(VALUE))
def get() -> Run:
    reader = tree_of(rows())
    names = [name_of(number * 7919 % ROWS) for number in range(LOOKS)]
    return lambda: sum(len(reader.get(name) or b"") for name in names)


@WORKS.work(LOOKS, LOOKS * len(VALUE))
def get_sorted() -> Run:
    reader = tree_of(rows())
    names = sorted(name_of(number * 7919 % ROWS) for number in range(LOOKS))
    return lambda: sum(len(value or b"") for value in reader.get_sorted(names))


@WORKS.work(ROWS, 2 * ROWS)
def ranges() -> Run:
    reader = tree_of(rows())

    def run() -> int:
        up = reader.range(b"\0", b"", ROWS + 1, 1 << 30)
        down = reader.range_back(b"", b"\0", ROWS + 1, 1 << 30)
        return len(up) + len(down)

    return run


def test_tree(benchmark: BenchmarkFixture, kernel_work: Work) -> None:
    measure(benchmark, kernel_work)
