"""The reading half of the client's codec: from the bytes of DELIVER frames to payloads and messages."""

from __future__ import annotations

from typing import TYPE_CHECKING

from benchmarks.samples import PAYLOAD_BYTES, chunk
from benchmarks.works import Works, measure
from broker.model.errors import error
from broker_native.messages import FrameReader
from tests.reference.frames import DELIVER, DELIVER_HEADER, build_frame

if TYPE_CHECKING:
    from pytest_benchmark.fixture import BenchmarkFixture

    from benchmarks.works import Run, Work

WORKS = Works("messages")

FRAME_BYTES_MAX = 1 << 20
RECORDS = 2000


class Target:
    """What deliveries are handed to."""


def stream(batch: int) -> bytes:
    """Return DELIVER frames of so many records each."""
    starts = enumerate(range(1, RECORDS + 1, batch))
    return b"".join(
        build_frame(DELIVER, DELIVER_HEADER.pack(1, 0, group) + chunk(7, first, batch)) for group, first in starts
    )


def reader() -> FrameReader:
    made = FrameReader(error, FRAME_BYTES_MAX)
    made.journal = bytes(16)
    made.add_route(1, Target(), "room.1")
    return made


def feed(batch: int) -> Run:
    frames, to = stream(batch), reader()
    return lambda: sum(len(batch) for _, batch in to.feed(frames))


@WORKS.work(RECORDS, RECORDS, bytes_per_operation=PAYLOAD_BYTES)
def feed_single_records() -> Run:
    return feed(1)


@WORKS.work(RECORDS, RECORDS, bytes_per_operation=PAYLOAD_BYTES)
def feed_batches() -> Run:
    return feed(50)


@WORKS.work(RECORDS, RECORDS * PAYLOAD_BYTES, bytes_per_operation=PAYLOAD_BYTES)
def payloads() -> Run:
    found = reader().feed(stream(50))
    return lambda: sum(len(payload) for _, batch in found for payload in batch.payloads())


@WORKS.work(RECORDS, RECORDS * PAYLOAD_BYTES, bytes_per_operation=PAYLOAD_BYTES)
def messages() -> Run:
    found = reader().feed(stream(50))
    return lambda: sum(len(message.payload) for _, batch in found for message in batch)


def test_messages(benchmark: BenchmarkFixture, kernel_work: Work) -> None:
    measure(benchmark, kernel_work)
