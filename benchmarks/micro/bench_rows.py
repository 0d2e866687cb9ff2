"""Rows of the archive: a checksum over key and body, made and proved."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

from benchmarks.works import SEED, Works, measure
from broker_native.rows import pack_row, row_body

if TYPE_CHECKING:
    from pytest_benchmark.fixture import BenchmarkFixture

    from benchmarks.works import Run, Work

WORKS = Works("rows")

COUNT = 2000
BODY_BYTES = 100
CHANCE = random.Random(SEED)
ROWS = [(b"\x02" + number.to_bytes(8, "big"), CHANCE.randbytes(BODY_BYTES)) for number in range(COUNT)]


@WORKS.work(COUNT, COUNT * (4 + BODY_BYTES), bytes_per_operation=BODY_BYTES)
def pack() -> Run:
    return lambda: sum(len(pack_row(key, body)) for key, body in ROWS)


@WORKS.work(COUNT, COUNT * BODY_BYTES, bytes_per_operation=BODY_BYTES)
def prove() -> Run:
    packed = [(key, pack_row(key, body)) for key, body in ROWS]
    return lambda: sum(len(row_body(key, value)) for key, value in packed)


def test_rows(benchmark: BenchmarkFixture, kernel_work: Work) -> None:
    measure(benchmark, kernel_work)
