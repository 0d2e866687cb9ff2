"""Questions about history answered in whole frames, from the archive alone."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgpack

from benchmarks.samples import CHANNEL_MESSAGES, RECORD, archive_rows, entries_of, name_of, tree_of
from benchmarks.works import Works, measure
from broker.model.history import HISTORY_BYTES_DEFAULT, HISTORY_BYTES_MAX, HistoryQuery
from broker_native.answers import StretchReader, channel_question, stored_channel

if TYPE_CHECKING:
    from pytest_benchmark.fixture import BenchmarkFixture

    from benchmarks.works import Run, Work

WORKS = Works("answers")

CHANNELS = 100
LAST = 50


@WORKS.work(CHANNELS, 1)
def newest_messages() -> Run:
    reader, stretches = tree_of(archive_rows(CHANNELS, 0)), StretchReader()
    asked = [(channel, entries_of(channel, CHANNEL_MESSAGES)) for channel in range(1, CHANNELS + 1)]
    query = HistoryQuery("room", last=LAST)

    def run() -> int:
        stretches.clear()
        for number, entries in asked:
            stretches.add_stored(number, entries, query)
        assert stretches.read(reader, 0, 1 << 30, 0) == CHANNELS
        return int(len(stretches.frames_of(0, CHANNELS)) > CHANNELS * LAST * len(RECORD))

    return run


@WORKS.work(CHANNELS, CHANNELS * (CHANNEL_MESSAGES + 1))
def stored_channels() -> Run:
    rows = [entries_of(channel, CHANNEL_MESSAGES) for channel in range(1, CHANNELS + 1)]
    return lambda: sum(stored_channel(entries)[3] for entries in rows)


@WORKS.work(CHANNELS, CHANNELS * LAST)
def questions() -> Run:
    bodies = [
        msgpack.packb({"request": number, "op": "history", "channel": name_of(number).decode(), "last": LAST})
        for number in range(CHANNELS)
    ]

    def run() -> int:
        told = (channel_question(body, HISTORY_BYTES_DEFAULT, HISTORY_BYTES_MAX) for body in bodies)
        return sum(question[1][6] or 0 for question in told if question is not None)

    return run


def test_answers(benchmark: BenchmarkFixture, kernel_work: Work) -> None:
    measure(benchmark, kernel_work)
