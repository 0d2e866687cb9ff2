"""Publishes under a condition and transactions, decided: nanoseconds each."""

from __future__ import annotations

import random
import struct
from typing import TYPE_CHECKING

from benchmarks.works import SEED, Works, measure
from broker_native.lines import Line
from broker_native.publisher import Publisher
from broker_native.tails import Tails
from broker_native.transactions import CODES, decide_expecting, decide_transaction

if TYPE_CHECKING:
    from pytest_benchmark.fixture import BenchmarkFixture

    from benchmarks.works import Run, Work

WORKS = Works("transactions")
SYNCED = 3
PUBLISH, EXPECT = 16, 1
CHANNELS = 10
COUNT = 400
RECORD = struct.pack("<IHHI", 12 + 128, 0, 0, 0) + random.Random(SEED).randbytes(128)


def publisher(tails: Tails | None = None) -> Publisher:
    tails = Tails(1, 4770) if tails is None else tails
    made = Publisher(tails, Line(b"p" * 16), None, 0)
    for slot in range(CHANNELS):
        name = b"room.%d" % slot
        tails.load(name, SYNCED, 2, 1 << 20)
        made.bind(slot, name)
    return made


def transaction(first: int) -> bytes:
    """Return a transaction of a record for each channel."""
    header = struct.pack("<IBBH", 16 + len(RECORD), PUBLISH, 0, 0)
    frames = (header + struct.pack("<IIQ", slot, 1, first + slot) + RECORD for slot in range(CHANNELS))
    return struct.pack("<II", CHANNELS, 0) + b"".join(frames)


def expecting(number: int, epoch: int, sequence: int) -> bytes:
    return struct.pack("<IIQQQ", 0, 1, number, epoch, sequence) + RECORD


@WORKS.work(COUNT, 0, once=True)
def ten_publishes() -> Run:
    to = publisher()
    bodies = [transaction(1 + at * CHANNELS) for at in range(COUNT)]

    def run() -> int:
        return sum(decide_transaction(to, body)[0] for body in bodies)

    return run


@WORKS.work(COUNT, 0, once=True)
def expected_heads() -> Run:
    tails = Tails(1, 4770)
    to = publisher(tails)
    assert decide_expecting(to, expecting(1, 0, 0))[0] == 0
    info = tails.info(b"room.0")
    assert info is not None
    bodies = [expecting(2 + at, info[2], 1 + at) for at in range(COUNT)]

    def run() -> int:
        return sum(decide_expecting(to, body)[0] for body in bodies)

    return run


@WORKS.work(COUNT, COUNT * CODES["CONFLICT"])
def conflicts() -> Run:
    to = publisher()
    assert decide_expecting(to, expecting(1, 0, 0))[0] == 0
    body = expecting(2, 0, 0)

    def run() -> int:
        return sum(decide_expecting(to, body)[0] for _ in range(COUNT))

    return run


def test_transactions(benchmark: BenchmarkFixture, kernel_work: Work) -> None:
    measure(benchmark, kernel_work)
