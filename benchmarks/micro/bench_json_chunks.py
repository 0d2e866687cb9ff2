"""Deliveries as messages of the JSON dialect: rendered, and handed to the others who get the same."""

from __future__ import annotations

from typing import TYPE_CHECKING

from benchmarks.samples import PAYLOAD_BYTES, chunk
from benchmarks.works import Works, measure
from broker_native.fanout import Fanout
from broker_native.json_chunks import Renderer
from broker_native.tails import Tails
from tests.reference.frames import DELIVER, DELIVER_HEADER, build_frame

if TYPE_CHECKING:
    from pytest_benchmark.fixture import BenchmarkFixture

    from benchmarks.works import Run, Work

WORKS = Works("json_chunks")

RECORDS = 2000
BATCH = 32
READERS = 1000


class Connection:
    """Who is told what a delivery took."""

    def on_spent(self, subscription: int, size: int) -> None:
        """Take it."""


def renderer() -> Renderer:
    return Renderer(Fanout(Tails(1, 1)), bytes(16), lambda channel: b"room.1")


def delivery(count: int) -> bytes:
    return build_frame(DELIVER, DELIVER_HEADER.pack(1, 0, 9) + chunk(7, 1, count))


def render(count: int) -> Run:
    made, piece, connection = renderer(), delivery(count), Connection()

    def run() -> int:
        texts = 0
        for _ in range(RECORDS // count):
            texts += len(made.translate([piece], connection)) * count
            made.forget()
        return texts

    return run


@WORKS.work(RECORDS, RECORDS, bytes_per_operation=PAYLOAD_BYTES)
def render_single_records() -> Run:
    return render(1)


@WORKS.work(RECORDS, RECORDS, bytes_per_operation=PAYLOAD_BYTES)
def render_batches() -> Run:
    return render(50)


@WORKS.work(READERS * BATCH, READERS, bytes_per_operation=PAYLOAD_BYTES)
def share_with_readers() -> Run:
    """One chunk to many connections, each of which is handed the same piece."""
    made, piece, connection = renderer(), delivery(BATCH), Connection()

    def run() -> int:
        texts = sum(len(made.translate([piece], connection)) for _ in range(READERS))
        made.forget()
        return texts

    return run


def test_json_chunks(benchmark: BenchmarkFixture, kernel_work: Work) -> None:
    measure(benchmark, kernel_work)
