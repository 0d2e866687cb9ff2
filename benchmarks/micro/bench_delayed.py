"""Messages that wait for their time: taken in, put in order, sent, and found again at a start."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

from benchmarks.works import Works, measure
from broker_native.delayed import Waiting

if TYPE_CHECKING:
    from pytest_benchmark.fixture import BenchmarkFixture

    from benchmarks.works import Run, Work

WORKS = Works("delayed")

COUNT = 2000
PAYLOAD = bytes(128)
KEY = bytes(range(16))
CHUNK = struct.Struct("<IIQQQIIQQ")


def body_of(number: int) -> bytes:
    """A PUBLISH of one record, whose id is its number."""
    id = b"%016d" % number
    record = struct.pack("<IHHIB", 29 + len(PAYLOAD), 0x40, 0, 0, len(id)) + id + PAYLOAD
    return struct.pack("<IIQ", 0, 1, number) + record


BODIES = [body_of(number) for number in range(1, COUNT + 1)]


def scheduled() -> tuple[Waiting, list[bytes]]:
    """All of them, due a microsecond apart."""
    waiting = Waiting(KEY, 1 << 30)
    waiting.finish()
    return waiting, [
        waiting.schedule(b"some.channel", body, 16, 3, 1_000_000 + number, number)[0]
        for number, body in enumerate(BODIES, 1)
    ]


@WORKS.work(COUNT, COUNT)
def schedule() -> Run:
    return lambda: len(scheduled()[0])


@WORKS.work(COUNT, COUNT)
def load_and_send() -> Run:
    waiting, records = scheduled()
    body = b"".join(records)
    chunk = CHUNK.pack(CHUNK.size + len(body), 0, 7, 1 << 40, 1, COUNT, 0, 0, 0) + body

    def run() -> int:
        waiting.load(chunk, 0, 0, COUNT + 1)
        waiting.take(1 << 60, 1 << 30)
        [(_, _, count)], _ = waiting.send()
        waiting.undo()
        return count

    waiting.settle(waiting.mark)
    return run


@WORKS.work(COUNT, COUNT)
def note() -> Run:
    _, records = scheduled()
    body = b"".join(records)
    chunk = CHUNK.pack(CHUNK.size + len(body), 0, 7, 1 << 40, 1, COUNT, 0, 0, 0) + body

    def run() -> int:
        waiting = Waiting(KEY, 1 << 20)
        waiting.note(chunk, 0, 0, COUNT + 1)
        return len(waiting)

    return run


def test_delayed(benchmark: BenchmarkFixture, kernel_work: Work) -> None:
    measure(benchmark, kernel_work)
