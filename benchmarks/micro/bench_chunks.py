"""Chunks put together into rows, and what has expired or is superseded taken out."""

from __future__ import annotations

from typing import TYPE_CHECKING

from benchmarks.samples import EPOCH, TIME_US, chunk
from benchmarks.works import Works, measure
from broker_native.chunks import chunk_compact, chunk_expire, chunk_keys, chunk_sequence_at, chunks_expire, merge_chunks
from tests.reference.frames import Record, build_record
from tests.reference.groups import Chunk, build_chunk

if TYPE_CHECKING:
    from pytest_benchmark.fixture import BenchmarkFixture

    from benchmarks.works import Run, Work

WORKS = Works("chunks")

CHUNKS = 500
ROW_BYTES = 16_368
RECORDS = 500
KEYS = 20
TIME_S = TIME_US // 1_000_000


def keyed() -> bytes:
    """Return a chunk of records with keys, every second of which expires."""
    records = [
        Record(b"x" * 100, time_us=at, key=b"key%d" % (at % KEYS), expiry_s=60 if at % 2 else None)
        for at in range(RECORDS)
    ]
    data = b"".join(map(build_record, records))
    return build_chunk(Chunk(7, EPOCH, 1, RECORDS, data, TIME_US, TIME_S + 60))


@WORKS.work(CHUNKS, 56 * (-(-CHUNKS // 116)) + 140 * CHUNKS)
def merge() -> Run:
    small = [chunk(7, first, 1, TIME_US + first) for first in range(1, CHUNKS + 1)]
    return lambda: sum(map(len, merge_chunks(small, ROW_BYTES)))


@WORKS.work(RECORDS, RECORDS)
def keys() -> Run:
    whole = keyed()
    return lambda: len(chunk_keys(whole))


@WORKS.work(RECORDS, 1)
def compact() -> Run:
    whole = keyed()
    latest = {key: sequence for key, sequence, *_ in chunk_keys(whole)}
    return lambda: int(0 < len(chunk_compact(whole, latest)) < len(whole) // 10)


@WORKS.work(RECORDS, 1)
def expire() -> Run:
    whole = keyed()
    return lambda: int(len(chunk_expire(whole, TIME_S + 3600)) < len(whole) * 2 // 3)


@WORKS.work(CHUNKS, CHUNKS * 196)
def nothing_expires() -> Run:
    value = b"".join(chunk(7, first, 1) for first in range(1, CHUNKS + 1))
    return lambda: len(chunks_expire(value, 0, TIME_S))


@WORKS.work(RECORDS, RECORDS)
def sequence_at() -> Run:
    whole = keyed()
    return lambda: chunk_sequence_at(whole, TIME_US + RECORDS - 1)


def test_chunks(benchmark: BenchmarkFixture, kernel_work: Work) -> None:
    measure(benchmark, kernel_work)
