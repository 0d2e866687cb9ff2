"""A connection's way in: whole frames and cut ones, from bytes to sequences; nanoseconds a frame."""

from __future__ import annotations

import random
import struct
from typing import TYPE_CHECKING

import pytest

from benchmarks.works import SEED, Works, measure
from broker_native.fanout import Fanout
from broker_native.intake import Clock, Intake, ReadBuffer
from broker_native.lines import Line
from broker_native.publisher import Publisher
from broker_native.tails import Tails

if TYPE_CHECKING:
    from pytest_benchmark.fixture import BenchmarkFixture

    from benchmarks.works import Run, Work

EPHEMERAL = 1
PING, PUBLISH = 4, 16
FRAMES = 4096
RECORD = struct.pack("<IHHI", 12 + 128, 0, 0, 0) + random.Random(SEED).randbytes(128)
WORKS = Works("intake")
PINGS = struct.pack("<IBBHQ", 8, PING, 0, 0, 1) * FRAMES


class Counting(Intake):
    """Counts what it is told."""

    frames = 0

    def on_read(self) -> None:
        pass

    def on_frame(self, kind: int, flags: int, body: bytes) -> None:
        self.frames += 1


def intake_with_a_channel() -> Counting:
    tails = Tails(1, 4770)
    tails.load(b"room", EPHEMERAL, 2, 1 << 20)
    intake = Counting(Fanout(tails), ReadBuffer(256 << 10), Clock(), 1 << 20)
    intake.publisher = Publisher(tails, Line(), intake, 0)
    intake.publisher.bind(0, b"room")
    return intake


def reads_of(stream: bytes, size: int) -> list[memoryview]:
    """Cut a stream as reads of one size would."""
    view = memoryview(stream)
    return [view[at : at + size] for at in range(0, len(stream), size)]


def publishes(first: int) -> bytes:
    """Return PUBLISH frames of a record each, from a number on."""
    frame = struct.pack("<IBBH", 16 + len(RECORD), PUBLISH, 0, 0)
    bodies = (struct.pack("<IIQ", 0, 1, first + at) + RECORD for at in range(FRAMES))
    return b"".join(frame + body for body in bodies)


def fed(stream: bytes, read_bytes: int) -> Run:
    """Feed a stream to a new connection, and count the frames that it had."""
    intake, reads = intake_with_a_channel(), reads_of(stream, read_bytes)

    def run() -> int:
        for read in reads:
            intake.feed(read)
        return intake.frames + intake.tails.records

    return run


@WORKS.work(FRAMES, FRAMES, bytes_per_operation=128, once=True)
def publish_frames() -> Run:
    return fed(publishes(1), 256 << 10)


@WORKS.work(FRAMES, FRAMES, bytes_per_operation=128, once=True)
def cut_publish_frames() -> Run:
    return fed(publishes(1), 100)


@WORKS.work(FRAMES, FRAMES, once=True)
def control_frames() -> Run:
    return fed(PINGS, 256 << 10)


@pytest.mark.parametrize("read_bytes", [100, 4096, 256 << 10])
def test_publish_frames(benchmark: BenchmarkFixture, read_bytes: int) -> None:
    intake = intake_with_a_channel()
    publisher = intake.publisher
    assert publisher is not None

    def setup() -> tuple[tuple[list[memoryview]], dict[str, object]]:
        intake.tails.close_turn()
        intake.tails.take_turn_answers()
        return (reads_of(publishes(publisher.line.next), read_bytes),), {}

    def run(reads: list[memoryview]) -> int:
        for read in reads:
            intake.feed(read)
        return intake.tails.records

    report(benchmark, benchmark.pedantic(run, setup=setup, rounds=20))  # type: ignore[no-untyped-call]


def test_control_frames(benchmark: BenchmarkFixture) -> None:
    intake = intake_with_a_channel()

    def run() -> int:
        intake.feed(PINGS)
        return intake.frames

    report(benchmark, benchmark.pedantic(run, rounds=20))  # type: ignore[no-untyped-call]


def report(benchmark: BenchmarkFixture, checksum: int) -> None:
    assert checksum % FRAMES == 0
    benchmark.extra_info.update(checksum=checksum, frames=FRAMES)
    if benchmark.stats is not None:
        benchmark.extra_info["ns_per_frame"] = benchmark.stats.stats.median / FRAMES * 1e9


def test_intake_works(benchmark: BenchmarkFixture, kernel_work: Work) -> None:
    measure(benchmark, kernel_work)
