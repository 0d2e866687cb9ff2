"""Replies framed for who has asked; nanoseconds a reply."""

from __future__ import annotations

from typing import TYPE_CHECKING

from benchmarks.works import Works, measure
from broker_native.lines import Line
from broker_native.publisher import Publisher
from broker_native.replies import reply_frame
from broker_native.tails import Tails
from tests.reference.frames import Record, build_record

if TYPE_CHECKING:
    from pytest_benchmark.fixture import BenchmarkFixture

    from benchmarks.works import Run, Work

WORKS = Works("replies")

TIME_US = 1_767_225_600_000_000
PAYLOAD_BYTES = 128


def frame_of(count: int) -> Run:
    publisher = Publisher(Tails(1, 4770), Line(), None, 1024)
    body = build_record(Record(bytes(PAYLOAD_BYTES))) * count

    def run() -> int:
        made = reply_frame(publisher, body, 0, 1, count, TIME_US, PAYLOAD_BYTES)
        assert isinstance(made, bytes)
        return len(made)

    return run


@WORKS.work(1, 8 + 16 + 56 + 12 + PAYLOAD_BYTES)
def one() -> Run:
    return frame_of(1)


@WORKS.work(100, 8 + 16 + 56 + 100 * (12 + PAYLOAD_BYTES))
def a_hundred() -> Run:
    return frame_of(100)


def test_replies(benchmark: BenchmarkFixture, kernel_work: Work) -> None:
    measure(benchmark, kernel_work)
