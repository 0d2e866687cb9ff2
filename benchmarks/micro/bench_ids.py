"""Message ids: a window that is full and moves on, known ids, ids that are read back; nanoseconds an id."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

from benchmarks.works import Works
from benchmarks.works import measure as measure_work
from broker_native.ids import Ids
from broker_native.lines import Line
from broker_native.publisher import Publisher
from broker_native.tails import Tails

if TYPE_CHECKING:
    from pytest_benchmark.fixture import BenchmarkFixture

    from benchmarks.works import Run, Work

SYNCED = 3
WINDOW = 10_000
RECORDS = 4_096
PAYLOAD = bytes(128)
WORKS = Works("ids")


def body(number: int, ids: range) -> bytes:
    """Return a PUBLISH of one record for each id."""
    records = b"".join(
        struct.pack("<IHHI", 12 + 9 + len(PAYLOAD), 0x40, 0, 0) + struct.pack("<BQ", 8, id) + PAYLOAD for id in ids
    )
    return struct.pack("<IIQ", 0, len(ids), number) + records


def publisher() -> Publisher:
    """Return one whose channel's window is full."""
    tails = Tails(1, 4770)
    tails.now_us = 1_000_000_000
    tails.set_ids(0, 60, WINDOW)
    tails.load(b"c.x", SYNCED, 2, 1 << 20)
    made = Publisher(tails, Line(b"p" * 16), None, 0)
    made.bind(0, b"c.x")
    for first in range(0, WINDOW, 1_000):
        made.publish_frame(body(first + 1, range(first, first + 1_000)))
    return made


def published(begin: int, batch: int) -> Run:
    made = publisher()
    bodies = [body(WINDOW + 1 + at, range(begin + at, begin + at + batch)) for at in range(0, RECORDS, batch)]

    def run() -> int:
        return RECORDS - sum(map(made.publish_frame, bodies))

    return run


@WORKS.work(RECORDS, RECORDS, once=True)
def new_ids() -> Run:
    return published(WINDOW, 1)


@WORKS.work(RECORDS, RECORDS, once=True)
def new_ids_in_batches() -> Run:
    return published(WINDOW, 64)


@WORKS.work(RECORDS, RECORDS, once=True)
def known_ids() -> Run:
    return published(WINDOW // 4, 1)


@WORKS.work(WINDOW, WINDOW, once=True)
def read_back() -> Run:
    tails = Tails(1, 4770)
    tails.load(b"c.x", SYNCED, 2, 1 << 20)
    other = Publisher(tails, Line(b"p" * 16), None, 0)
    other.bind(0, b"c.x")
    for first in range(0, WINDOW, 1_000):
        other.publish_frame(body(first + 1, range(first, first + 1_000)))
    tails.close_turn()
    value, _ = tails.close_group(0, 0, 0, 0, 0)
    at = 96 + struct.unpack_from("<I", value, 56)[0]
    chunks = []
    while at < len(value):
        size = struct.unpack_from("<I", value, at)[0]
        chunks.append(value[at : at + size])
        at += size

    def run() -> int:
        ids = Ids(4770)
        for chunk in chunks:
            ids.take(chunk, 0, WINDOW + 1)
        return len(ids)

    return run


def test_ids_works(benchmark: BenchmarkFixture, kernel_work: Work) -> None:
    measure_work(benchmark, kernel_work)
