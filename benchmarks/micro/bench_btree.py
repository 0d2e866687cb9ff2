"""Proving the pages of an LMDB file before LMDB may see them, and looking single rows up."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from benchmarks.samples import name_of, write_rows
from benchmarks.works import Works, measure
from broker.log.environment import check_file
from broker_native.btree import check_tree, find_row

if TYPE_CHECKING:
    from pytest_benchmark.fixture import BenchmarkFixture

    from benchmarks.works import Run, Work

WORKS = Works("btree")

ROWS = 10_000
LOOKS = 500
VALUE = bytes(100)


def written() -> tuple[bytes, int]:
    """Return a file and the place of its newer meta page."""
    with TemporaryDirectory() as folder:
        path = Path(folder) / "file"
        write_rows(path, [(name, VALUE) for name in sorted(map(name_of, range(ROWS)))])
        return path.read_bytes(), check_file(path)


@WORKS.work(ROWS, 1)
def check() -> Run:
    content, meta_at = written()

    def run() -> int:
        check_tree(content, meta_at, False)
        return 1

    return run


@WORKS.work(LOOKS, LOOKS * len(VALUE))
def find() -> Run:
    content, meta_at = written()
    names = [name_of(number * (ROWS // LOOKS)) for number in range(LOOKS)]

    def run() -> int:
        return sum(found[1] for name in names if (found := find_row(content, meta_at, name)) is not None)

    return run


def test_btree(benchmark: BenchmarkFixture, kernel_work: Work) -> None:
    measure(benchmark, kernel_work)
