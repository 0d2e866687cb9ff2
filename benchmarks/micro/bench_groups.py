"""Walks over groups and chunks: which are wanted, where they stand, what is cut and conflated."""

from __future__ import annotations

from typing import TYPE_CHECKING

from benchmarks.samples import chunk, group_of
from benchmarks.works import Works, measure
from broker_native.groups import (
    chunk_conflate,
    chunk_cut,
    chunk_heads,
    chunk_offset,
    chunks_in,
    chunks_of,
    chunks_start,
)
from tests.reference.frames import Record, build_record
from tests.reference.groups import Chunk, build_chunk

if TYPE_CHECKING:
    from pytest_benchmark.fixture import BenchmarkFixture

    from benchmarks.works import Run, Work

WORKS = Works("groups")

CHUNKS = 500
CUTS = 20
RECORDS = 100
KEYS = 10


def group() -> bytes:
    return group_of(1, range(1, CHUNKS + 1), 2)


@WORKS.work(CHUNKS, 1)
def one_channel() -> Run:
    value = group()
    return lambda: len(chunks_of(value, chunks_start(value), CHUNKS, 0))


@WORKS.work(CHUNKS, CHUNKS // 2)
def wanted_channels() -> Run:
    value, wanted = group(), set(range(2, CHUNKS + 1, 2))
    return lambda: len(chunks_in(value, chunks_start(value), wanted))


@WORKS.work(CHUNKS, CHUNKS)
def heads() -> Run:
    value = group()
    return lambda: len(chunk_heads(value, chunks_start(value)))


@WORKS.work(CHUNKS, len(group()) - (len(group()) - chunks_start(group())) // CHUNKS)
def offset_of_the_last() -> Run:
    value = group()
    return lambda: chunk_offset(value, CHUNKS - 1)


@WORKS.work(CUTS, CUTS * (56 + 140 * RECORDS // 2))
def cut() -> Run:
    whole = chunk(7, 1, RECORDS)
    return lambda: sum(len(chunk_cut(whole, RECORDS // 2)) for _ in range(CUTS))


@WORKS.work(CUTS * RECORDS, 0)
def conflate() -> Run:
    keyed = [build_record(Record(b"x" * 100, key=b"key%d" % (at % KEYS))) for at in range(RECORDS)]
    whole = build_chunk(Chunk(7, 9, 1, RECORDS, b"".join(keyed)))
    expected = chunk_conflate(whole, True)
    assert 0 < len(expected) < len(whole)
    return lambda: sum(chunk_conflate(whole, True) != expected for _ in range(CUTS))


def test_groups(benchmark: BenchmarkFixture, kernel_work: Work) -> None:
    measure(benchmark, kernel_work)
