"""The publishing half of the client's codec: records posted, taken as frames, and answered."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgpack

from benchmarks.samples import PAYLOAD, PAYLOAD_BYTES, name_of
from benchmarks.works import Works, measure
from broker.model.errors import error
from broker.model.names import check_channel
from broker_native.posting import PublishBuffer
from tests.reference.frames import PUBLISHED_ENTRY

if TYPE_CHECKING:
    from pytest_benchmark.fixture import BenchmarkFixture

    from benchmarks.works import Run, Work

WORKS = Works("posting")
COVERS = ("draft", "outcomes", "posted", "publishing", "writing")

RECORDS = 2000
CHANNELS = [name_of(number).decode() for number in range(100)]


class Loop:
    """Stands for an event loop that nobody needs: nothing waits for an outcome."""

    def call_soon(self, *_: object) -> None:
        """Never call back."""


def buffer() -> PublishBuffer:
    made = PublishBuffer(
        Loop(),  # type: ignore[arg-type]
        error=error,
        check_channel=check_channel,
        pack_headers=msgpack.packb,
        kick=lambda: None,
        bytes_max=1 << 30,
    )
    made.resume(0)
    return made


def post(channels: list[str]) -> Run:
    to, turns = buffer(), RECORDS // len(channels)

    def run() -> int:
        for _ in range(turns):
            for channel in channels:
                to.post(channel, PAYLOAD)
        size = 0
        while (block := to.take()) is not None:
            size += len(block)
        return int(size > RECORDS * PAYLOAD_BYTES)

    return run


@WORKS.work(RECORDS, 1, bytes_per_operation=PAYLOAD_BYTES, once=True)
def post_to_one_channel() -> Run:
    return post(CHANNELS[:1])


@WORKS.work(RECORDS, 1, bytes_per_operation=PAYLOAD_BYTES, once=True)
def post_to_a_hundred_channels() -> Run:
    return post(CHANNELS)


@WORKS.work(RECORDS, 0, once=True)
def publish_and_answer() -> Run:
    to = buffer()
    outcomes = []
    for _ in range(RECORDS):
        # Taken one by one, each is a frame, and has an answer of its own.
        outcomes.append(to.publish(CHANNELS[0], PAYLOAD))
        to.take()
        assert to.take() is None
    answers = b"".join(PUBLISHED_ENTRY.pack(at, 9, at, 1, 0, 1, 0, bytes(6)) for at in range(1, RECORDS + 1))

    def run() -> int:
        to.answer(answers)
        return to.records_unanswered + sum(not outcome.done() for outcome in outcomes)

    return run


def test_posting(benchmark: BenchmarkFixture, kernel_work: Work) -> None:
    measure(benchmark, kernel_work)
